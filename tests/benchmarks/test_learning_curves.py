"""Tables of learning curves: whole runs, whatever happens meanwhile; a format that others read."""

import contextlib
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from optuna.distributions import FloatDistribution

from ali.config import Config
from ali.errors import UserError
from ali.lock import folder_lock
from benchmarks import blackbox, curve_statistics, learning_curves
from benchmarks.blackbox import Blackbox
from benchmarks.learning_curves import CURVE, TABLES, Export, Table, effective
from sweeps import Space, paper_defaults
from tests.paths import ROOT

TINY = Table(
    Config(data="mixture", train_size=2000, epochs=4, width=0.1, precision="fp32"),
    Space(lr=(1e-5, 1e-2)),
    (paper_defaults,),
    "modes_missed",
    configurations=4,
    seeds=2,
    best=1,
    more_seeds=3,
)
TRAIN = """
import sys
from pathlib import Path
from ali.config import Config
from benchmarks.learning_curves import train
import json, os, torch
torch.set_num_threads(1)
train(Config.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The folder of a small table, all of its runs."""
    monkeypatch.setitem(TABLES, "tiny", TINY)
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    learning_curves.work("tiny", folder)
    return folder


def curve(folder):
    """Metrics of each epoch, without times."""
    found = json.loads((folder / CURVE).read_text())
    return [{k: v for k, v in m.items() if "second" not in k} for m in found["curve"]]


def test_a_table_from_its_runs_to_its_statistics(tiny, tmp_path, capsys):
    names = {path.name for path in tiny.iterdir()}
    assert {f"{n:05d}-{seed}" for n in range(4) for seed in range(2)} <= names
    assert len(names) in (9, 10), "one more seed of the paper's point, and of the best if another"

    learning_curves.export(Export("tiny", tmp_path / "runs", tmp_path / "tables"))
    table = blackbox.read(tmp_path / "tables" / "tiny")
    assert table.objectives.shape == (4, 3, 4, len(table.names))
    values = table.curves("modes_missed")
    for number, seed in [(0, 0), (3, 1)]:
        expected = [m["modes_missed"] for m in curve(tiny / f"{number:05d}-{seed}")]
        assert values[number, seed].tolist() == expected
    assert np.isfinite(values).all(axis=2).sum() == len(names), "the rest is NaN"
    assert (table.curves("cpu_seconds")[:, :2] > 0).all()
    assert table.hyperparameters.loc[0, "lr_d"] == 1e-4, "the paper's"

    curve_statistics.describe(table, "tiny", {})
    out = capsys.readouterr().out
    assert "4 configurations" in out and "0 diverged" in out and "adam_apart" in out
    assert "reconstruction_distance" in out


def test_a_process_waits_while_another_has_the_last_run(tiny, monkeypatch):
    """Only then is it known which configurations get more seeds: it trains those."""
    extra = [path for path in tiny.iterdir() if path.name.endswith("-2")]
    held = tiny / "00003-1"
    ended = (held / CURVE).read_bytes()
    for path in [held, *extra]:
        (path / CURVE).unlink()
    lock = contextlib.ExitStack()
    lock.enter_context(folder_lock(held, "run"))

    def other_ends(seconds):
        (held / CURVE).write_bytes(ended)
        lock.close()

    monkeypatch.setattr(learning_curves.time, "sleep", other_ends)
    learning_curves.work("tiny", tiny.parent / "tiny")
    assert all(len(curve(path)) == TINY.base.epochs for path in extra)


def test_the_runs_of_a_kept_table_are_not_trained_again(tiny, tmp_path, monkeypatch):
    kept = tmp_path / "tables"
    learning_curves.export(Export("tiny", tmp_path / "runs", kept))
    learning_curves.unpack("tiny", tmp_path / "other" / "tiny", kept)
    learning_curves.export(Export("tiny", tmp_path / "other", tmp_path / "again"))
    first, again = blackbox.read(kept / "tiny"), blackbox.read(tmp_path / "again" / "tiny")
    np.testing.assert_array_equal(first.objectives, again.objectives)
    assert list(learning_curves.missing(TINY, tmp_path / "other" / "tiny")) == []

    changed = Table(TINY.base.replace(batch_size=50), *list(vars(TINY).values())[1:])
    monkeypatch.setitem(TABLES, "tiny", changed)
    with pytest.raises(UserError, match="is another table"):
        learning_curves.unpack("tiny", tmp_path / "third", kept)


def test_syne_tune_reads_it(tiny, tmp_path):
    tabular = pytest.importorskip("syne_tune.blackbox_repository.blackbox_tabular")
    learning_curves.export(Export("tiny", tmp_path / "runs", tmp_path / "tables"))
    (read,) = tabular.deserialize(tmp_path / "tables" / "tiny").values()
    ours = blackbox.read(tmp_path / "tables" / "tiny")
    row = read.hyperparameters.to_dict("records")[2]
    value = read.objective_function(row, fidelity={"epoch": 3}, seed=1)["modes_missed"]
    assert value == ours.curves("modes_missed")[2, 1, 2]


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    torch.set_num_threads(1)
    config = Config(data="mixture", train_size=12_000, epochs=6, width=0.25, seed=3)
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    learning_curves.train(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", TRAIN, json.dumps(config.to_dict()), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT)
    while not (folder / CURVE).exists() or len(curve(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    learning_curves.train(config, folder)
    assert curve(folder) == curve(tmp_path / "whole")


def test_a_diverged_run_is_kept_as_such(tmp_path):
    config = Config(data="mixture", train_size=2000, epochs=3, width=0.1, lr_d=1e30, lr_g=1e30)
    learning_curves.train(config, tmp_path)
    table = Table(config, Space(), (), "modes_missed", configurations=1)
    assert "non-finite" in table.ended(tmp_path)["diverged"] and table.end(tmp_path) == np.inf


def test_a_longer_budget_goes_on_from_the_end(tmp_path):
    config = Config(data="mixture", train_size=2000, epochs=2, width=0.1)
    for name, budgets in {"whole": [4], "longer": [2, 4]}.items():
        (tmp_path / name).mkdir()
        for epochs in budgets:
            learning_curves.train(config.replace(epochs=epochs), tmp_path / name)
    assert curve(tmp_path / "longer") == curve(tmp_path / "whole")


def test_runs_of_another_table_are_refused(tiny, tmp_path, monkeypatch):
    other = Table(TINY.base.replace(batch_size=50), *list(vars(TINY).values())[1:])
    monkeypatch.setitem(TABLES, "tiny", other)
    with pytest.raises(UserError, match="of another table"):
        learning_curves.export(Export("tiny", tmp_path / "runs", tmp_path / "tables"))
    with pytest.raises(UserError, match="no run in"):
        learning_curves.export(Export("tiny", tmp_path, tmp_path / "tables"))


def test_what_was_not_drawn_has_the_value_it_amounts_to():
    names = ("lr_d", "lr_g", "bn", "bn_x1")
    assert effective({"lr_d": 1e-3, "bn": False}, names) == {
        **{"lr_d": 1e-3, "lr_g": 1e-3, "bn": False, "bn_x1": False}
    }


def test_variance_of_a_known_model():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2, (4000, 1)) + rng.normal(0, 1, (4000, 3))
    values[::2, 2] = np.nan
    within, between = curve_statistics.variance(values)
    assert within == pytest.approx(1, rel=0.05) and between == pytest.approx(4, rel=0.1)


def test_tables_of_the_same_configurations_are_compared():
    """The second has a row more, and an order that is the first's but for noise."""
    points = pd.DataFrame({"lr_d": np.geomspace(1e-5, 1e-3, 13), "bn": [True] * 13})
    rng = np.random.default_rng(0)

    def table(rows: int, noise: float) -> Blackbox:
        ends = np.arange(rows)[:, None, None, None] + noise * rng.normal(size=(rows, 3, 2, 1))
        meta = {"objective": "val_error"}
        return Blackbox(points.iloc[:rows], ends.astype(np.float32), ("val_error",), meta)

    told = curve_statistics.agreement(table(12, 0.1), table(13, 0.1))
    assert "of the 12 means 1.00 (95 % 1.00 to 1.00)" in told
    assert told.endswith("are numbers 1, 2, 3 there")
    assert "means 1.00" not in curve_statistics.agreement(table(12, 5.0), table(13, 5.0))
    other = replace(table(13, 0.1), hyperparameters=points.assign(lr_d=1e-4))
    assert curve_statistics.agreement(table(12, 0.1), other) == ""


def test_of_a_table_with_other_points_only_the_points_are_read(tmp_path):
    values = np.zeros((8, 1, 500, 500), np.float32)  # 8 MB
    names, points = tuple(f"m{i}" for i in range(500)), pd.DataFrame({"lr_d": np.arange(8.0)})
    space = {"lr_d": FloatDistribution(0, 8)}
    blackbox.write(tmp_path, Blackbox(points, values, names, {"objective": "m0"}), "t", space)
    blackbox.read(tmp_path)  # imports pyarrow
    tracemalloc.start()
    table = blackbox.read(tmp_path)
    other = replace(table, hyperparameters=points + 1)
    assert curve_statistics.agreement(table, other) == ""
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values.nbytes / 4
