"""Sweeps over hyperparameters of ALI, or of an experiment of your own.

    from sweeps import Options, Sweep, launch

    launch(Sweep(), Options(name="first", num_trials=8, epochs=6, width=0.125, batch_size=32))

`parse` makes Options from the command line, `results` reads what a sweep has found.
"""

from sweeps.engine.driver import Sweep
from sweeps.engine.experiment import Experiment
from sweeps.engine.launch import launch
from sweeps.engine.options import Location, Options, parse
from sweeps.engine.results import TrialResult, results
from sweeps.engine.space import InitialPoint, Space, paper_defaults, short_budget

__all__ = [
    "Experiment",
    "InitialPoint",
    "Location",
    "Options",
    "Space",
    "Sweep",
    "TrialResult",
    "launch",
    "paper_defaults",
    "parse",
    "results",
    "short_budget",
]
