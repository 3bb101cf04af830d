"""Sweeps over hyperparameters of ALI, or of an experiment of your own.

    from sweeps import Options, Sweep, launch

    launch(Sweep(), Options(name="first", num_trials=8, epochs=6, width=0.125, batch_size=32))

`parse` makes Options from the command line. `load` reads results, also of a running sweep:

    sweep = load("first")
    sweep.dataframe()                    one row per trial, the best first
    sweep.curves()                       one row per trial and epoch
    sweep.best.networks().sample(64)     images of the best trial

docs/sweep.ipynb goes through it from start to best.
"""

from ali.errors import UserError
from sweeps.engine.driver import Sweep
from sweeps.engine.experiment import Experiment
from sweeps.engine.launch import launch
from sweeps.engine.loaded import LoadedSweep, Trial, load
from sweeps.engine.objective import Objective
from sweeps.engine.options import Location, Options
from sweeps.engine.results import TrialResult, results
from sweeps.engine.saved_options import parse
from sweeps.engine.space import InitialPoint, Space, paper_defaults, read_space, short_budget

__all__ = [
    "Experiment",
    "InitialPoint",
    "LoadedSweep",
    "Location",
    "Objective",
    "Options",
    "Space",
    "Sweep",
    "Trial",
    "TrialResult",
    "UserError",
    "launch",
    "load",
    "paper_defaults",
    "parse",
    "read_space",
    "results",
    "short_budget",
]
