import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Toy


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)
