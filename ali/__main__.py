"""`python -m ali`: one experiment without a sweep, and what a trained one can do."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import subcommand

from ali.cli import main, parse_args
from ali.cli.common import PROG
from ali.cli.encode import Encode
from ali.cli.figure import Figure
from ali.cli.interpolate import Interpolate
from ali.cli.reconstruct import Reconstruct
from ali.cli.sample import Sample
from ali.cli.table1 import Table1
from ali.cli.train import Train, train_defaults

Commands = (
    Annotated[Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Interpolate, subcommand("interpolate")]
    | Annotated[Figure, subcommand("figure")]
    | Annotated[Encode, subcommand("encode")]
    | Annotated[Table1, subcommand("table1")]
)


def run(argv: list[str] | None = None) -> None:
    """Parses the arguments (None: the process's) and runs their command."""
    defaults = train_defaults(argv)
    options = parse_args(Commands, argv, default=defaults, prog=PROG)
    if defaults:
        options.refuse_unused(defaults)
    options.run()


if __name__ == "__main__":
    main(run)
