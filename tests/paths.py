"""Where the tests find the project, and real images where there are any."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS, CLUSTER, SWEEPS = ROOT / "benchmarks", ROOT / "cluster", ROOT / "sweeps"
REAL_DATA = Path(os.environ.get("ALI_TEST_DATA", ROOT.parent / "shared" / "data"))
