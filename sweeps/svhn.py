"""Sweeps ALI's hyperparameters on SVHN, at paper scale unless told otherwise.

    python sweeps/svhn.py                        Table 3 on SVHN, 50 trials of up to 100 epochs
    python sweeps/svhn.py --name svhn --resume   resumes it, after a kill -9 too
    make sweep                                   the same script, laptop-sized, on embedded data

At paper scale a trial trains up to 100 epochs of 531,131 images: it is meant for GPUs. This file
also runs as a lone copy where the project is installed.
"""

from ali.cli import main
from sweeps import Options, Sweep, launch, paper_defaults, parse, short_budget


def sweep() -> int:
    options = parse(Options(name="svhn", data="svhn"))
    return launch(Sweep(points_to_evaluate=(paper_defaults, short_budget)), options)


if __name__ == "__main__":
    main(sweep)
