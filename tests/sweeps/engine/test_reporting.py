"""The report: its tables are whole."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from ali.config import Config
from sweeps.engine import reporting
from sweeps.engine.options import Options
from sweeps.engine.results import TrialResult

pytestmark = pytest.mark.versions


def test_the_table_of_best_trials_is_not_cut():
    config = Config(bn_x=(True,) * 5, dropout_x=0.25, dropout_z=0.25, dropout_xz=0.25)
    slopes = {f"slope_{who}": 0.125 for who in ("encoder", "decoder", "discriminator")}
    plain = config.replace(**slopes).to_dict()
    metrics = dict.fromkeys(("sample_distance", "sample_diversity", "val_error"), 0.123456)
    run = SimpleNamespace(data=SimpleNamespace(metrics=metrics))
    trial = TrialResult("00000", plain, 0.123456, {1: 0.123456}, None, True)
    table = reporting._best(Options(name="s"), [trial], {"00000": run}, "val_error")
    console = Console(file=io.StringIO(), width=reporting.WIDTH, color_system=None)
    console.print(table)
    shown = console.file.getvalue()
    assert "…" not in shown and "diversity" in shown and "1.0e-4/1.0e-4" in shown
    assert "11111" in shown and "0.1235" in shown
