"""Tries both ends of pyproject.toml's ranges: the lowest versions that they allow, and the newest.

    python tests/versions.py                        # both ends; or: make test-versions
    python tests/versions.py newest --python 3.13

Each end gets a virtual environment of its own in build/, removed if all passed: 7 GB with torch's
CUDA build; UV_TORCH_BACKEND=cpu in the environment asks for the small one. Packages that
pyproject.toml does not name are the newest that fit, as in an installation of today.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESOLUTION = {"lowest": "lowest-direct", "newest": "highest"}  # in uv's words
UV = (sys.executable, "-m", "uv")
SWEEP = (
    "sweeps/svhn.py --name versions --data house-numbers --width 0.125 --train-size 600 "
    "--labels 100 --draws 1 --batch-size 50 --epochs 2"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("end", nargs="?", choices=RESOLUTION, help="default: both")
    parser.add_argument("--python", default=sys.executable, help="an interpreter, or 3.13")
    options = parser.parse_args()
    ends = [options.end] if options.end else list(RESOLUTION)
    verdicts = [attempt(end, options.python) for end in ends]
    print(*verdicts, sep="\n")
    sys.exit(any("FAILED" in verdict for verdict in verdicts))


def attempt(end: str, interpreter: str) -> str:
    """Installs one end, runs the tests and a sweep; the verdict in one line."""
    start = time.monotonic()
    folder = ROOT / "build" / f"versions-{end}"
    python = str(folder / "bin" / "python")
    try:
        run(*UV, "venv", "--quiet", "--clear", "--python", interpreter, str(folder))
        install = (*UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", python)
        run(*install, "--resolution", RESOLUTION[end], "-e", ".[cluster,dashboard,fid]")
        versions = frozen(python)
        pins = folder / "constraints.txt"  # what runs the tests must not move what is tested
        pins.write_text("\n".join(versions))
        run(*install, "--constraints", str(pins), "-e", ".[test]")
        print(f"{end}:", *declared(versions), sep="\n  ")
        run(python, "-m", "pytest", "-m", "versions", "-n", "2", "--dist", "loadfile")
        with tempfile.TemporaryDirectory() as runs:
            sweep = (python, *SWEEP.split(), "--output-dir", runs)
            run(*sweep, "--num-trials", "3")
            run(*sweep, "--num-trials", "4", "--resume")
            run(python, "sweeps/report.py", "--name", "versions", "--output-dir", runs)
    except subprocess.CalledProcessError as error:
        return f"{end}: FAILED ({folder} is kept): {' '.join(error.cmd)}"
    shutil.rmtree(folder)
    return f"{end}: passed in {(time.monotonic() - start) / 60:.0f} minutes"


def run(*command: str) -> None:
    print("+", *command, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def frozen(python: str) -> list[str]:
    command = (*UV, "pip", "freeze", "--quiet", "--python", python)
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "==" in line]


def declared(versions: list[str]) -> list[str]:
    """Those of `versions` that pyproject.toml names, each beside its range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = dict(line.split("==") for line in versions)
    lines = []
    for requirement in [*project["dependencies"], *extras["cluster"], *extras["fid"]]:
        name = re.split(r"[\[<>=]", requirement)[0]
        lines.append(f"{name} {found[name]}".ljust(32) + requirement)
    return lines


if __name__ == "__main__":
    main()
