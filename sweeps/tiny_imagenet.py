"""Sweeps ALI's hyperparameters on Tiny ImageNet with the networks of Table 5: 64 pixels.

    python sweeps/tiny_imagenet.py                                 50 trials of up to 25 epochs
    python sweeps/tiny_imagenet.py --name tiny-imagenet --resume   resumes it, after a kill -9 too
    python sweeps/best.py --name tiny-imagenet --epochs 125

Data: ./data/tiny-imagenet/tiny-imagenet-200, or --data-dir. The paper's own "Tiny ImageNet" is
all of ImageNet at 64 pixels: use sweeps/folder.py --image-size 64 for that. The table trains for
125 epochs of 128 images a step; trials train for a fifth of them, and the best one for all. The
objective is val_error with 10 labelled images of each of the 200 classes (1000 labels would be 5).
It needs GPUs, and has not been run at this size yet (docs/results.md has a small training). This
file also runs when copied elsewhere, if the project is installed.
"""

from ali.cli import main
from sweeps import Options, Sweep, launch, parse


def sweep() -> int:
    options = parse(
        Options(
            name="tiny-imagenet",
            data="tiny-imagenet",
            batch_size=128,
            epochs=25,
            labels=2000,
            race=3,
        )
    )
    return launch(Sweep(), options)


if __name__ == "__main__":
    main(sweep)
