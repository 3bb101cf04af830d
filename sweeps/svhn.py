"""Sweeps ALI's hyperparameters on SVHN with the networks of Table 3, by default at paper scale.

    python sweeps/svhn.py                        50 trials of up to 100 epochs, the best repeated
    python sweeps/svhn.py --name svhn --resume   resumes it, after a kill -9 too
    python sweeps/best.py --name svhn            trains the best in full, and tests it
    python sweeps/svhn.py --name sdgm --model sdgm    another model of Table 1
    make sweep                                   the same script, laptop-sized, on embedded data

Data: ./data/svhn with the official .mat files, or --data-dir; downloaded where it is missing. The
objective is val_error. At paper scale an epoch is 531,131 images: that needs GPUs, and has not been
run yet. `make sweep` takes 7 minutes on two cores; its best configuration has a val_error of 0.281
and 0.328 with two seeds, where an untrained encoder has 0.511 (docs/results.md). This file also
runs when copied elsewhere, if the project is installed.
"""

from ali.cli import main
from sweeps import Options, Sweep, launch, paper_defaults, parse, short_budget


def sweep() -> int:
    options = parse(Options(name="svhn", data="svhn", race=3))
    return launch(Sweep(points_to_evaluate=(paper_defaults, short_budget)), options)


if __name__ == "__main__":
    main(sweep)
