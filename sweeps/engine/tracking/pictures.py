"""Pictures as files of a run: under the names by which MLflow's charts find them, and the last
ones under names that all runs share, which its page Compare shows side by side."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

LOGGED_IMAGES = "mlflow.loggedImages"  # tag of a run that has pictures for MLflow's charts
FOLDER = "images"  # where its charts look for them
# MLflow separates the parts of a name by +, its older versions by %
_NAME = re.compile(rf"{FOLDER}/(.+?)[%+]step[%+](\d+)[%+].*\.png")


def logged_pictures(client: MlflowClient, run_id: str) -> dict[tuple[str, int], str]:
    """The pictures that a run has: their paths by key and epoch."""
    names = [_NAME.fullmatch(file.path) for file in client.list_artifacts(run_id, FOLDER)]
    return {(name[1], int(name[2])): name[0] for name in names if name}


def file_key(key: str) -> str:
    """A key as it is in names of files: charts show "a~b" as b in a section a."""
    return key.replace("/", "~")


def write_pictures(
    folder: Path, images: Mapping[str, np.ndarray], epoch: int, milliseconds: int
) -> None:
    """Writes pictures, uint8 (H, W, 3) by key, into a folder for `MlflowClient.log_artifacts`.

    The names are those of `MlflowClient.log_image`, which limits what charts show to 256 pixels,
    blurred; here it has full size. Writing again gives the same names.
    """
    from PIL import Image

    for key, pixels in images.items():
        picture = Image.fromarray(pixels)
        name = uuid.uuid5(uuid.NAMESPACE_OID, f"{key} {epoch} {milliseconds}")
        stem = f"{file_key(key)}+step+{epoch}+timestamp+{milliseconds}+{name}"
        shared = folder / f"{file_key(key)}.png"  # Compare looks at no folders
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        picture.save(shared, compress_level=4)
        shutil.copy(shared, folder / FOLDER / f"{stem}.png")
        picture.save(folder / FOLDER / f"{stem}+compressed.webp", quality=90, method=1)
