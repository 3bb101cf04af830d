"""`import sweeps`: light, and enough for an experiment of one's own."""

import subprocess
import sys

import sweeps


def test_everything_public_is_there():
    assert all(hasattr(sweeps, name) for name in sweeps.__all__)


def test_importing_it_does_not_start_the_heavy_libraries():
    code = "import sys, sweeps; print({'ray', 'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
