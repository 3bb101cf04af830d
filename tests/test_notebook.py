"""docs/sweep.ipynb: kept with its outputs, and each of its cells runs.

To write the outputs anew: `jupyter nbconvert --to notebook --execute --inplace docs/sweep.ipynb`,
in an environment that has jupyter, too.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT

NOTEBOOK = ROOT / "docs" / "sweep.ipynb"
MAX_BYTES = 500_000


def cells() -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def test_it_is_kept_with_its_outputs():
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    kinds = [out["output_type"] for cell in cells() for out in cell["outputs"]]
    assert "error" not in kinds
    pictures = [out for c in cells() for out in c["outputs"] if "image/png" in out.get("data", {})]
    assert len(pictures) == 4


@pytest.mark.long
def test_it_runs(tmp_path):
    script = "\n\n".join("".join(cell["source"]) for cell in cells())
    (tmp_path / "notebook.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[12/12 ended]" in done.stdout and "networks of house-numbers" in done.stdout
