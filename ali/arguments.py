"""Turns a dataclass into a command line: options in groups, each with its help and default."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro


@dataclass(frozen=True)
class Group:
    """Options that --help shows in a box; a dataclass lists its own in GROUPS.

    Attributes:
        title: the word before "options".
        example: arguments to show, as they stand after the program's name.
        names: the fields' names, separated by spaces, those of nested dataclasses included.
            Empty: all fields that no other group names.
    """

    title: str
    example: str
    names: str = ""


@dataclass(frozen=True)
class Option:
    """A field of a dataclass, as an option of a command line."""

    hint: Any
    help: str = ""
    default: Any = tyro.MISSING

    def annotated(self, value: Any) -> Any:
        """Its type, annotated with what --help shows if the default is `value`."""

        def default(shown: str) -> str:
            told = value is None or value is False
            told = told or ("default:" in self.help and value == self.default)
            return "" if told else f"(default: {shown})"

        about = tyro.conf.arg(help=self.help, metavar=self._metavar(), help_behavior_hint=default)
        return Annotated[self.hint, about]

    def _metavar(self) -> str | None:
        """The value's placeholder; None: tyro's own, which is for types that cannot be None."""
        inner = [one for one in get_args(self.hint) if one is not type(None)]
        if len(inner) == len(get_args(self.hint)):
            return None
        if get_origin(inner[0]) is Literal:
            return "{" + ",".join(map(str, get_args(inner[0]))) + "}"
        return "{True,False} …" if get_origin(inner[0]) is tuple else inner[0].__name__.upper()


class Arguments:
    """The dataclass that tyro parses in place of the original: it nests one dataclass per group.

    tyro shows the fields of a nested dataclass in a box of their own. `build` puts the parsed
    values back together, so that groups exist only for --help.

    Args:
        kind: the dataclass. The text below a field is its help.
        program: the command that its examples begin with.
        values: by field, where they differ from the defaults.
        more: further options of the command line.
    """

    def __init__(
        self,
        kind: type,
        program: str,
        values: Mapping[str, Any] | None = None,
        more: Mapping[str, Option] | None = None,
    ) -> None:
        self._kind, options = kind, dict(options_of(kind))
        defaults = {name: option.default for name, option in options.items()} | dict(values or {})
        groups: tuple[Group, ...] = getattr(kind, "GROUPS", ())
        named = {name for group in groups for name in group.names.split()}

        def rows(names: list[str]) -> list[Any]:
            return [_row(name, options[name], defaults[name]) for name in names]

        others = [name for name in options if name not in named]
        outer: list[Any] = [_row(name, option, None) for name, option in (more or {}).items()]
        outer += [] if any(not group.names for group in groups) else rows(others)
        self._titles = [group.title for group in groups]
        for group in groups:
            made = _dataclass(group.title, rows(group.names.split() or others))
            about = tyro.conf.arg(help=f"e.g. {program} {group.example}")
            outer.append((group.title, Annotated[made, about]))
        self.type = _dataclass(kind.__name__, outer)
        self.type.__doc__ = kind.__doc__

    def build(self, parsed: Any) -> Any:
        """The original dataclass, from a parsed instance of `type`."""
        found: dict[str, Any] = {}
        for name, value in vars(parsed).items():
            found |= vars(value) if name in self._titles else {name: value}
        # No shell has expanded ~ in --output-dir=~/runs, nor in a file of settings.
        found = {k: v.expanduser() if isinstance(v, Path) else v for k, v in found.items()}
        return _build(self._kind, found)


def options_of(kind: type) -> Iterator[tuple[str, Option]]:
    """The fields of a dataclass, and of those that are nested in it, by name."""
    hints, docs = get_type_hints(kind, include_extras=True), _docs(kind)
    for one in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[one.name]):
            yield from options_of(hints[one.name])
            continue
        default = tyro.MISSING if one.default is dataclasses.MISSING else one.default
        if one.default_factory is not dataclasses.MISSING:
            default = one.default_factory()
        yield one.name, Option(hints[one.name], docs.get(one.name, ""), default)


def values_of(instance: Any) -> dict[str, Any]:
    """The values of the fields that `options_of` lists."""
    found: dict[str, Any] = {}
    for name, value in vars(instance).items():
        found |= values_of(value) if dataclasses.is_dataclass(value) else {name: value}
    return found


def _build(kind: type, found: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    nested = {name for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return kind(
        **{
            one.name: _build(hints[one.name], found) if one.name in nested else found[one.name]
            for one in dataclasses.fields(kind)
        }
    )


def _row(name: str, option: Option, value: Any) -> tuple[str, Any, Any]:
    """A field, as `make_dataclass` takes it."""
    return name, option.annotated(value), field(default=value)


def _dataclass(name: str, rows: list[Any]) -> Any:
    return dataclasses.make_dataclass(name, rows, kw_only=True, frozen=True)


def _docs(kind: type) -> dict[str, str]:
    """The docstring below each field, as one line."""
    docs = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for one, text in itertools.pairwise(getattr(made, "body", ())):
            if isinstance(one, ast.AnnAssign) and isinstance(text, ast.Expr):
                docs[ast.unparse(one.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    return docs
