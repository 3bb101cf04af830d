"""What `benchmarks.gpu` finds: one row per figure, and how it is written to files and screens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ali.errors import UserError
from ali.output import first_line

NEEDS_CUDA = "needs CUDA"
OWN = {"ali", "sweeps", "benchmarks"}  # packages


class Outcome(StrEnum):
    """What became of a measurement."""

    MEASURED = "measured"
    MET = "met"  # a goal
    NOT_MET = "not met"
    SKIPPED = "skipped"  # the note says what it needs
    FAILED = "failed"
    STOPPED = "stopped"  # at its section's time limit


WRONG = {Outcome.NOT_MET, Outcome.FAILED, Outcome.STOPPED}


@dataclass(frozen=True)
class Row:
    """A figure.

    Attributes:
        share: of the bf16 matrix products' peak that was measured in the same run.
        note: what else one has to know, in a few words.
        details: for the JSON file alone.
    """

    what: str
    value: float | None = None
    unit: str = ""
    share: float | None = None
    outcome: Outcome = Outcome.MEASURED
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def figure(self) -> str:
        """The value with its unit, three digits of it, or the outcome where there is none."""
        if self.value is None:
            return self.outcome.value
        size = abs(self.value)
        shown = f"{self.value:,.0f}" if size >= 100 or size == 0 else f"{self.value:.3g}"
        return f"{shown} {self.unit}".rstrip()

    @property
    def peak_share(self) -> str:
        return "" if self.share is None else f"{self.share:.2%}"

    @property
    def remark(self) -> str:
        """The outcome of a goal, and the note."""
        goal = self.value is not None and self.outcome is not Outcome.MEASURED
        return ": ".join([self.outcome.value] * goal + [self.note] * bool(self.note))

    @classmethod
    def read(cls, line: str) -> Row:
        plain = json.loads(line)
        return cls(**plain | {"outcome": Outcome(plain["outcome"])})

    def line(self) -> str:
        """As JSON, without a new line."""
        return json.dumps(dataclasses.asdict(self))


def skipped(what: str, why: str = NEEDS_CUDA) -> Row:
    return Row(what, outcome=Outcome.SKIPPED, note=why)


def goal(what: str, met: bool, value: float | None = None, unit: str = "", note: str = "") -> Row:
    return Row(what, value, unit, outcome=Outcome.MET if met else Outcome.NOT_MET, note=note)


def attempt(what: str, measure: Callable[[], Row | Iterable[Row]]) -> Iterator[Row]:
    """The rows of a measurement; if it fails, one that says why, so that the others still run."""
    try:
        made = measure()
        yield from (made,) if isinstance(made, Row) else made
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OWN:
            yield Row(what, outcome=Outcome.FAILED, note=str(error))
        else:  # a machine with PyTorch and not much else can still answer the rest
            yield skipped(what, f"needs the package {package}")
    except (Exception, SystemExit) as error:
        said = isinstance(error, (UserError, SystemExit))  # a sentence for people
        note = f"{type(error).__name__}: " * (not said) + first_line(error)
        yield Row(what, outcome=Outcome.FAILED, note=note)


@dataclass(frozen=True)
class Run:
    """What a section is given.

    Attributes:
        seconds: its time limit, its process's start included.
        work: folder for its files, deleted at the end of the whole run.
        output: folder of the results, for pictures.
        peak: TFLOP/s of bf16 matrix products, measured in this run; None: not yet, or it failed.
        peers: folders of public codes (benchmarks/peers.py).
    """

    device: str
    small: bool
    seconds: float
    work: Path
    output: Path
    peak: float | None = None
    peers: tuple[Path, ...] = ()

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def share(self, images_per_second: float, gflop_an_image: float) -> float | None:
        """The share of the peak."""
        return self.peak and images_per_second * gflop_an_image / 1e3 / self.peak

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Run:
        plain = json.loads(text)
        paths = {name: Path(plain[name]) for name in ("work", "output")}
        return cls(**plain | paths | {"peers": tuple(map(Path, plain["peers"]))})
