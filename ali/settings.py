"""Settings in a file (YAML, TOML, JSON): read, and checked against the fields of a dataclass."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import socket
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml

from ali.errors import UserError

MAX_BYTES = 2**20  # of a file of settings


@dataclass(frozen=True)
class Settings:
    """What a file of settings says.

    Attributes:
        file: where it was read.
        text: its content.
        values: by name, as plain JSON types.
    """

    file: Path
    text: str
    values: Any

    def check(self, kind: type) -> None:
        """Raises UserError if the values are not fields of a dataclass."""
        for name, problem in problems(kind, self.values):
            self.refuse(name, problem)

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """In the block, a UserError about an option ("--width must be …") names file and line."""
        try:
            yield
        except UserError as error:
            option = re.match(r"--([\w-]+) (.*)", str(error))
            name, problem = option.groups() if option else ("", str(error))
            self.refuse(name.replace("-", "_"), problem)

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raises UserError: file, line, setting, and what is wrong with it."""
        spelt = re.escape(name).replace("_", "[-_]")
        name_here = re.compile(rf"""\s*{{?\s*["']?{spelt}["']?\s*[:=]""")
        lines = enumerate(self.text.splitlines(), start=1)
        line = next((number for number, line in lines if name and name_here.match(line)), 1)
        raise UserError(f"{self.file}, line {line}: {f'{name} {problem}'.strip()}")


def read_settings(file: Path) -> Settings:
    """Reads a file: TOML or JSON if its name ends so, otherwise YAML. `num-trials` is `num_trials`.

    Raises UserError, naming the line, if it cannot be read; FileNotFoundError is passed on.
    """
    try:
        with file.open("rb") as source:
            content = source.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError("too long for a file of settings")
        text = content.decode("utf-8-sig")
        values = _PARSERS.get(file.suffix, _yaml)(text)
    except FileNotFoundError:
        raise
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise _unreadable(file, int(line[1]) if line else 1, f"not TOML ({error})") from error
    except json.JSONDecodeError as error:
        raise _unreadable(file, error.lineno, f"not JSON ({error.msg})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise _unreadable(file, mark.line + 1 if mark else 1, f"not YAML ({why})") from error
    except UnicodeDecodeError as error:
        raise _unreadable(file, 1, f"not a text file ({error})") from error
    except _TwiceError as error:
        Settings(file, text, None).refuse(str(error), "is there twice")
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, 1, str(error)) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error
    if not isinstance(values, dict):
        return Settings(file, text, values)
    names = [str(name).replace("-", "_") for name in values]
    found = Settings(file, text, dict(zip(names, values.values(), strict=True)))
    for name in found.values:
        if names.count(name) > 1:
            found.refuse(name, "is there twice")
    return found


def missing_file(file: Path) -> UserError:
    """The error for a missing settings file, which names the machine that was to read it."""
    where = socket.gethostname()
    return UserError(f"cannot read {file}: there is no such file on {where}, where this runs")


def _unreadable(file: Path, line: int, why: str) -> UserError:
    return UserError(f"{file}, line {line}: {why}")


class _Loader(yaml.SafeLoader):
    """Reads numbers as in YAML 1.2 (1e-4 is one); refuses a name given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found: dict = {}
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if str(name) in found:
                raise yaml.constructor.ConstructorError(
                    problem=f"{name} is there twice", problem_mark=key.start_mark
                )
            found[str(name)] = True
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in {
    _INT: r"[-+]?\d[\d_]*$",
    _FLOAT: r"([-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), [*"-+.0123456789"])
_Loader.add_constructor(_INT, lambda _, node: int(node.value))


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would read as something else: 1e-3, 08."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain JSON types as YAML that `read_settings` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


class _TwiceError(ValueError):
    """A name that is given twice."""


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise _TwiceError(twice[0])
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


_PARSERS: dict[str, Callable[[str], Any]] = {".json": _json, ".toml": tomllib.loads}


def problems(kind: type, plain: Any) -> Iterator[tuple[str, str]]:
    """Errors in plain JSON as the fields of a dataclass: names, and what is wrong."""
    if not isinstance(plain, dict):
        yield "", "is empty" if plain is None else f"{_shown(plain)} is not a table of settings"
        return
    known = get_type_hints(kind)
    for name, value in plain.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            meant = f"did you mean {close[0]}?" if close else ""
            yield str(name), f"is unknown: {meant or 'it is misspelt, or of a newer version'}"
        elif not _fits(value, known[name]):
            yield name, f"cannot be {_shown(value)}: {_expected(known[name])} is expected"


def _shown(value: Any) -> str:
    """A value, abbreviated: YAML aliases can expand a few lines to gigabytes."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlong = 1, 20
    return short.repr(value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is one of an annotated type."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return value in inner and not isinstance(value, bool)
    if get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if inner:  # a union
        return any(_fits(value, one) for one in inner)
    kinds = {float: (int, float), Path: (str, Path)}.get(hint, (hint,))
    if not isinstance(value, kinds) or (hint is not bool and isinstance(value, bool)):
        return False
    return hint is not float or is_float(value)


def is_float(value: Any) -> bool:
    """Whether a number converts to a float: a whole number may be too large."""
    try:
        return isinstance(float(value), float)
    except OverflowError:
        return False


def _expected(hint: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}
    words |= {Path: "a path", type(None): "null"}
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, inner))
    if get_origin(hint) is tuple:
        return f"a list of {_expected(inner[0])}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_expected(one) for one in inner)
    return words.get(hint, str(hint))
