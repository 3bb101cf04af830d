"""Sweeps ALI's hyperparameters on CelebA with the networks of Table 4: faces, 64 pixels.

    python sweeps/celeba.py                                      50 trials of up to 20 epochs
    python sweeps/celeba.py --name celeba --resume               resumes it, after a kill -9 too
    python sweeps/celeba.py --name smiling --attribute Smiling   with an attribute as label
    python sweeps/best.py --name celeba --epochs 123

Data: ./data/celeba/img_align_celeba/*.jpg and list_eval_partition.txt, as CelebA's authors publish
them, or as Kaggle does (.csv), or --data-dir. The table trains for 123 epochs of 100 images a step;
trials train for 20 of them, about 32,000 steps, and the best one for all. Without labels the
objective is sample_distance. --attribute reads list_attr_celeba.txt and labels the faces 0 or 1 by
one of its attributes; the objective is then val_error. It needs GPUs, and has not been run at this
size yet. Table 4 tends to collapse: look at the images in MLflow, and at sample_diversity in the
report. This file also runs when copied elsewhere, if the project is installed.
"""

from ali.cli import main
from sweeps import Options, Sweep, launch, parse


def sweep() -> int:
    options = parse(Options(name="celeba", data="celeba", epochs=20, race=3))
    return launch(Sweep(), options)


if __name__ == "__main__":
    main(sweep)
