"""Finds the options that a sweep was started with, and applies what a resume changes."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache, partial

from ali.cli import parse_args
from ali.errors import UserError
from sweeps.engine import scripts
from sweeps.engine.options import (
    JOURNAL,
    OLD_OPTIONS,
    OPTIONS,
    RESUME_MAY_CHANGE,
    Location,
    Options,
    options_file,
    read_config,
    read_options,
)


def saved_options(location: Location) -> Options:
    """The options that a sweep was started with, at this location.

    Raises UserError if there is no such sweep, naming those that there are.
    """
    if not (saved := read_options(location.folder)):
        refuse_missing(location)
        folders = location.output_dir.glob("*/")
        there = sorted(folder.name for folder in folders if options_file(folder).exists())
        raise UserError(
            f"there is no sweep {location.name!r} in {location.output_dir}; "
            f"found: {', '.join(there) or 'none'}"
        )
    here = {"name": location.name, "output_dir": location.output_dir}
    if location.tracking_uri:
        here["tracking_uri"] = location.tracking_uri
    return replace(Options.from_dict(saved), **here)  # type: ignore[arg-type]


def refuse_missing(location: Location) -> None:
    """Raises UserError if a sweep lacks one of the files that it always has."""
    journal, options = location.folder / JOURNAL, options_file(location.folder)
    if journal.exists() != options.exists():
        missing = options if journal.exists() else journal
        raise UserError(
            f"{missing} is missing: restore it from a copy, or start a sweep with another --name"
        )


def is_behind(location: Location) -> bool:
    """Whether the storage has more of a sweep than its folder here: another machine resumed it.

    Raises UserError if the storage cannot be read.
    """
    options = options_file(location.folder)
    return location.storage.is_ahead(location.folder / JOURNAL) or not options.exists()


def parse(defaults: Options, argv: list[str] | None = None) -> Options:
    """Options from the command line; a resume starts from those that the sweep was started with.

    Raises UserError if a resume would make the sweep's trials incomparable.
    """
    read = cache(partial(read_config, Options))  # a pipe can be read once
    scripts.arguments.are_read = argv is None
    options = parse_args(Options, argv, default=defaults, read=read).automatic()
    if not options.resume:
        return options
    if (stored := options.with_saved_storage()).storage_path and is_behind(stored):
        for name in (OLD_OPTIONS, OPTIONS):
            stored.storage.fetch(options.folder / name)
    if not (plain := read_options(options.folder)):
        refuse_missing(options)
        raise UserError(
            f"there is no sweep {options.name!r} in {options.output_dir} to resume: "
            f"leave --resume out to start it"
        )
    saved = replace(Options.from_dict(plain), output_dir=options.output_dir, resume=True)
    options = parse_args(Options, argv, default=saved, read=read)
    changed = [
        f.name for f in fields(Options) if getattr(options, f.name) != getattr(saved, f.name)
    ]
    if fixed := [name for name in changed if name not in RESUME_MAY_CHANGE]:
        names = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise UserError(
            f"a resume cannot change {names}: leave it out, or start a sweep with another --name"
        )
    return options
