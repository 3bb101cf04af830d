"""Faults on purpose, each on a sweep of short trials of a toy objective, and what is lost by them.

    make faults                              all of them, as root
    make faults ARGS="--only 1 6 10"         or: python -m tests.faults --only 1 6 10

Real processes and signals. Faults 2 to 5, 7 and 8 strike three hosts played by this machine
(tests/testbed, as root), the others a sweep on this machine alone. After each, tests/audit.py
counts trials that are lost, that is missing, wrong or not in the same end state in Tune, Optuna and
MLflow; runs or epochs that are there twice; what is left RUNNING; and epochs that were trained
again, in how many restarts. "best": all trials equal those of an undisturbed sweep (replayed, one
trial at a time), or every value is what the trial's logged configuration gives (recomputed). Exit
code 1 if anything was lost.

--soak runs one sweep after the other for so long, with a random fault every minute.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from tests.faults.runner import FAULTS, HEADER, Runner
from tests.faults.soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", type=int, nargs="+", choices=FAULTS, metavar="FAULT")
    parser.add_argument("--trials", type=int, default=24, help="of each sweep")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="random faults for so long")
    parser.add_argument("--keep", type=Path, help="folder for logs and runs, which then stay")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        runner = stack.enter_context(Runner(options.trials, folder))
        print(HEADER, flush=True)
        if options.soak:
            good = soak(runner, options.soak)
        else:
            good = True
            for number in options.only or FAULTS:
                good &= runner.run(number)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
