"""Sweeps ALI's hyperparameters on images of your own: any folder of them, no code to write.

    python sweeps/folder.py --name mine --data-dir DIR                   32×32 pixels, Table 3
    python sweeps/folder.py --name mine --data-dir DIR --image-size 64   64×64 pixels, Table 5
    python sweeps/folder.py --name mine --resume                         resumes it
    python sweeps/best.py --name mine --epochs 500                       trains the best in full

Data: DIR/<class>/*.jpg (any format that Pillow reads) are labelled images, and the objective is
val_error; with few images a class, lower --labels. DIR/*.jpg are unlabelled, and the objective is
sample_distance. DIR/train, DIR/val and DIR/test (or two of them, train among these) are each such a
folder; a missing split is cut from train. Images are resized and centre-cropped once; only an
animation's first frame counts. Time: an epoch of 10,000 images of 32 pixels takes about 20 s on two
cores at full width (benchmarks/README.md). This file also runs when copied elsewhere, if the
project is installed.
"""

from ali.cli import main
from sweeps import Options, Sweep, launch, parse


def sweep() -> int:
    options = parse(Options(name="folder", data="folder", race=3))
    return launch(Sweep(), options)


if __name__ == "__main__":
    main(sweep)
