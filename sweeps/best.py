"""Trains the best configuration of a sweep in full, and reads the test split: once, and only here.

    python sweeps/best.py --name svhn                 the sweep's full budget
    python sweeps/best.py --name svhn --epochs 100    more epochs
    python sweeps/best.py --name svhn --workers 2     each batch split across two workers
    python sweeps/best.py --name svhn --seeds 4       four trainings with seeds of their own
    python sweeps/best.py --config runs/svhn/best.yaml    repeats the last run, which wrote it

The training starts from the best trial's last checkpoint if that is still there. Run the same
command again to resume a training that was stopped, with any number of workers. It prints the test
error (mean ± std over 100 SVMs, §4.4) beside Table 1 and registers the model in MLflow as ali-NAME.
With --seeds it prints the mean ± std over trainings, and registers the best one by validation.
"""

from functools import partial

from ali.cli import main, parse_args
from sweeps.engine.final import FinalOptions, train_best
from sweeps.engine.options import read_config

if __name__ == "__main__":
    read = partial(read_config, FinalOptions)  # --config
    main(lambda: train_best(parse_args(FinalOptions, read=read)))
