"""ali.evaluation.table1: the published rows, and results that are measured once."""

import json

import numpy as np
import pytest

from ali.config import Config
from ali.data import Dataset, Images
from ali.errors import UserError
from ali.evaluation import table1
from ali.history import LOG, write_history
from tests.paths import REAL_DATA


def test_published_rows_are_the_papers():
    """Against the text of Table 1, where it is at hand."""
    paper = REAL_DATA.parent / "paper.txt"
    if not paper.exists():
        pytest.skip("no text of the paper")
    text = paper.read_text().replace("\xa0", " ")
    for _, published in table1.TABLE_1:
        assert published.split(" ")[0] in text


def test_learning_curve_of_a_checkpoint(tmp_path):
    """From the run's log, where the last word on an epoch counts; or from a trial's checkpoint."""
    epochs = [(1, 5.0), (2, 9.0), (2, 7.0), (3, 1.0)]
    metrics = [{"epoch": e, "train_seconds": s, "val_error": s / 10} for e, s in epochs]
    del metrics[0]["val_error"]
    lines = [*map(json.dumps, metrics)]
    (tmp_path / LOG).write_text("\n".join([lines[0], '{"epo', "3", *lines[1:]]))
    for checkpoint in (tmp_path / "checkpoint", tmp_path / "trial" / "checkpoint_000001"):
        seconds, errors = table1.learning_curve(checkpoint, 2)
        assert seconds == [5.0, 12.0] and np.isnan(errors[0]) and errors[1] == 0.7
        assert table1.learning_curve(checkpoint, 0) == ([], [])
        assert table1.learning_curve(checkpoint, 4) is None
        kept = tmp_path / "trial" / "checkpoint_000001"
        kept.mkdir(parents=True, exist_ok=True)
        write_history(kept, metrics)
    (kept / "metrics.json").write_text("[")
    assert table1.learning_curve(kept, 1) is None


def noise(n):
    rng = np.random.default_rng(n)
    return Images(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10)


def test_an_error_is_measured_once_for_its_settings(tmp_path):
    pool, test = noise(40), noise(20)
    dataset = Dataset("noise", pool, pool, noise(10), 10, "0" * 16)
    calls = []

    def errors(*arguments, k=1):
        calls.append(k)
        return np.array([0.1, 0.3])

    def measure(draws=2, k=1, test=test, file="measured.json"):
        config = Config(labels=20)
        measurements = table1.Measurements(dataset, test, config, draws, tmp_path / file)
        return measurements.of_baseline("row", errors, k=k)

    first = measure()
    assert (first.mean, first.draws) == (pytest.approx(0.2), 2)
    assert first.std == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert measure() == first and calls == [1]
    measure(k=2)
    measure(draws=3)
    measure(test=noise(21))
    assert calls == [1, 2, 1, 1]
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(UserError, match=r"broken\.json is damaged: delete it"):
        measure(file="broken.json")
