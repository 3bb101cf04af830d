"""One contract for every implementation of Experiment."""

import pytest

from ali.config import Config
from ali.errors import UserError
from ali.metrics import EPOCH
from sweeps import Experiment
from sweeps.engine.endings import EndState
from sweeps.engine.experiment import AliExperiment
from tests.integration.toy_sweep import ToyExperiment

CONFIG = Config(
    width=0.1, train_size=200, batch_size=50, labels=20, draws=1, epochs=2, precision="fp32"
).replace(dropout_x=0.1)


@pytest.fixture(params=["ali", "toy"])
def experiment(request, tmp_path):
    told = {"TOY_LOG": str(tmp_path / "toy.log"), "TOY_SECONDS": "0"}
    return AliExperiment() if request.param == "ali" else ToyExperiment(told)


@pytest.mark.slow
def test_the_contract(experiment, tmp_path):
    dataset = experiment.load_data(CONFIG)
    objective = experiment.objective(CONFIG, dataset)
    assert experiment.fingerprint(dataset) == experiment.fingerprint(dataset)
    whole = []
    for state, metrics in experiment.run(CONFIG, dataset, None):
        whole.append(metrics)
        if metrics[EPOCH] == 1:
            (tmp_path / "c").mkdir()
            (tmp_path / "c" / "metrics.json").write_text("another's")
            state.save(tmp_path / "c")
        pictures = experiment.pictures(state, CONFIG, dataset)
        assert all(p.dtype == "uint8" and p.shape[2] == 3 for p in pictures.values())
    assert [metrics[EPOCH] for metrics in whole] == [1, 2] and objective in whole[-1]
    assert list(experiment.run(CONFIG, dataset, state)) == []
    assert (tmp_path / "c" / "metrics.json").read_text() == "another's"

    if (start := experiment.initial_state(CONFIG, dataset)) is not None:
        assert experiment.pictures(start, CONFIG, dataset)
        _, first = next(experiment.run(CONFIG, dataset, start))
        assert first["d_loss"] == whole[0]["d_loss"], "as one that `run` makes, to the bit"

    again = experiment.load_state(tmp_path / "c", CONFIG)
    (resumed,) = [dict(metrics) for _, metrics in experiment.run(CONFIG, dataset, again)]
    assert resumed[objective] == whole[-1][objective] and resumed["d_loss"] == whole[-1]["d_loss"]
    for path in sorted((tmp_path / "c").iterdir()):
        if path.name == "metrics.json":
            continue
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(damaged)
            with pytest.raises(UserError):
                experiment.load_state(tmp_path / "c", CONFIG)
        path.write_bytes(content)
    with pytest.raises(UserError):
        experiment.load_state(tmp_path / "nothing", CONFIG)


def test_an_incomplete_one_cannot_be_made():
    class Half(Experiment):
        def load_data(self, config):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Half()


def after(*epochs):
    return AliExperiment().breakdown([{EPOCH: n, **m} for n, m in enumerate(epochs, start=1)])


def test_samples_that_stay_the_same_are_a_collapse_by_name():
    same, varied = {"sample_diversity": 0.02}, {"sample_diversity": 0.6}
    assert after(varied, same, same) is None, "it may pass"
    assert after(*[same] * 9) is None, "training has not taken off yet"
    assert after(*[same] * 10).state is EndState.COLLAPSED
    assert after(same, same, varied, same, same) is None
    assert after(same, {}, same, {}, {}) is None, "two evaluations"
    ending = after(varied, same, {}, same, {"sample_diversity": 0.049})
    assert ending.state is EndState.COLLAPSED and ending.reason == (
        "sample_diversity 0.020, 0.020, 0.049, the last of 3 alike"
    )


def test_a_very_large_loss_is_a_divergence_by_name():
    usual = {"d_loss": 14.0, "g_loss": 12.9}
    assert after(usual, usual) is None and after({"val_error": 0.5}) is None
    large = {"d_loss": 0.0, "g_loss": 1.5e4}
    assert after(usual, large) is None, "a step at one huge encoding, after which training goes on"
    assert after(large, usual, large) is None
    ending = after(usual, large, {"d_loss": 0.0, "g_loss": 559.0})
    assert ending.state is EndState.DIVERGED
    assert ending.reason == "g_loss 1.5e+04 and 559 nats, the means of the last epochs"
