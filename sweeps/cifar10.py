"""Sweeps ALI's hyperparameters on CIFAR-10 with the networks of Table 2.

    python sweeps/cifar10.py                           50 trials of up to 100 epochs
    python sweeps/cifar10.py --name cifar10 --resume   resumes it, after a kill -9 too
    python sweeps/best.py --name cifar10 --epochs 6475

Data: ./data/cifar10/cifar-10-batches-py, the official Python version, or --data-dir; downloaded
where it is missing. The table trains for 6475 epochs of 100 images a step. At 45,000 images that is
a night or more on a GPU, so trials are compared after 100 epochs, and the best one trains for all.
The objective is val_error. The first trial has the table's dropout, 0.2 on the input and 0.5 above;
the others have one rate in all layers of a part. The whole sweep has not been run yet; one training
on 4,000 images reached a val_error of 0.550 after 32 minutes on one core (docs/results.md). This
file also runs when copied elsewhere, if the project is installed.
"""

from ali.cli import main
from sweeps import Options, Sweep, launch, parse


def sweep() -> int:
    options = parse(Options(name="cifar10", data="cifar10", race=3))
    return launch(Sweep(), options)


if __name__ == "__main__":
    main(sweep)
