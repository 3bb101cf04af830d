"""ali.experiment: one epoch a step, and training that evaluation does not touch."""

import subprocess
import sys

import pytest
import torch

from ali import experiment
from ali.config import Config
from ali.data import Dataset, Images, mixture
from ali.errors import NonFiniteError
from ali.evaluation import protocol, quality
from ali.figures import grids
from ali.metrics import (
    ACTIVATIONS,
    CODE_USE,
    COMPILED_LAYERS,
    D_LOSS,
    DEVICE,
    EPOCH,
    EVAL_SECONDS,
    G_LOSS,
    IMAGES_PER_SECOND,
    MODES_MISSED,
    NEAR_MODES,
    PRIOR_GAP,
    RAW_PIXEL_ERROR,
    RECONSTRUCTION_DISTANCE,
    SAMPLE_DISTANCE,
    SAMPLE_DIVERSITY,
    SAMPLE_SEPARATION,
    TRAIN_SECONDS,
    UNTRAINED_BN_ERROR,
    UNTRAINED_ERROR,
    VAL_ERROR,
)
from ali.models import narrow, precision
from ali.training import step
from ali.training.state import State
from tests.ali.noise import bits, noise

CONFIG = Config(width=0.1, labels=20, draws=1, batch_size=20, epochs=3, precision="fp32")
CPU = torch.device("cpu")
TRAINED = {EPOCH, D_LOSS, G_LOSS, IMAGES_PER_SECOND, TRAIN_SECONDS}
OF_SAMPLES = {SAMPLE_DISTANCE, SAMPLE_DIVERSITY, SAMPLE_SEPARATION}


@pytest.fixture(scope="module", autouse=True)
def no_inception_weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


@pytest.fixture(scope="module")
def dataset():
    return noise()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_facts_say_whether_layers_are_compiled():
    """On one CPU thread with a compiler; a mixture's activations are fp32 whatever the CPU has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        used = narrow.is_used(CPU, torch.float32)
        with narrow.left_out():
            left_out = experiment.facts(CONFIG)
        one = experiment.facts(CONFIG)
        torch.set_num_threads(2)
        two = experiment.facts(CONFIG)
    finally:
        torch.set_num_threads(before)
    if not torch.cuda.is_available():
        assert one == {DEVICE: "cpu", ACTIVATIONS: "fp32", COMPILED_LAYERS: "yes" if used else "no"}
    assert left_out[COMPILED_LAYERS] == two[COMPILED_LAYERS] == "no"
    bf16 = precision.compute_dtype("auto", step.device()) == torch.bfloat16
    assert experiment.facts(Config())[ACTIVATIONS] == ("bf16" if bf16 else "fp32")
    assert experiment.facts(Config(data="mixture"))[ACTIVATIONS] == "fp32"


HEAVY = {"torch._dynamo", "sympy", "torchmetrics", "torchvision"}  # together five seconds of CPU
EPOCH_OF_ITS_OWN = """
import sys
from ali import experiment
from ali.config import Config
from ali.training.state import State
from tests.ali.noise import noise

config = Config(width=0.05, labels=20, draws=1, batch_size=20, epochs=1, precision="fp32")
for state, _ in experiment.run(config, noise()):
    state.save(sys.argv[1])
State.load(sys.argv[1], "cpu")
print(*sys.modules)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch may import more for a GPU")
def test_an_epoch_imports_nothing_that_takes_seconds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EPOCH_OF_ITS_OWN, str(tmp_path / "c")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not HEAVY & set(done.stdout.split())


def test_yields_each_epoch(dataset):
    seen = [(state.epoch, m) for state, m in experiment.run(CONFIG, dataset, device=CPU)]
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    for epoch, metrics in seen:
        measured = OF_SAMPLES | {CODE_USE, PRIOR_GAP, VAL_ERROR, EVAL_SECONDS}
        assert set(metrics) == TRAINED | measured == experiment.metric_names(CONFIG, dataset)
        assert metrics[EPOCH] == epoch
        assert 0 <= metrics[VAL_ERROR] <= 1
        assert metrics[TRAIN_SECONDS] > 0 < metrics[EVAL_SECONDS]


def test_evaluates_at_its_cadence_and_last(dataset):
    config = CONFIG.replace(eval_every=2)
    seen = [set(metrics) for _, metrics in experiment.run(config, dataset, device=CPU)]
    assert seen[0] == TRAINED
    assert all({VAL_ERROR, SAMPLE_DISTANCE, EVAL_SECONDS} <= names for names in seen[1:])


def unlabelled(dataset):
    pool, valid = Images(dataset.train.x, None), Images(dataset.valid.x, None)
    return Dataset("folder", pool, pool, valid, 0, "0" * 16)


def points():
    x, y = mixture.sample_points(100, 9, seed=0)
    pool = Images(x.reshape(-1, 1, 1, 2), y)
    return Dataset("mixture", pool, pool, pool, 9, "0" * 16)


def last(config, dataset):
    *_, (_, metrics) = experiment.run(config.replace(epochs=1), dataset, device=CPU)
    assert set(metrics) == experiment.metric_names(config, dataset)
    return metrics


def test_a_gan_on_labelled_images_has_val_error_and_no_code(dataset):
    config = CONFIG.replace(model="gan")
    assert set(last(config, dataset)) - TRAINED == OF_SAMPLES | {VAL_ERROR, EVAL_SECONDS}
    assert experiment.objective(config, dataset) == VAL_ERROR


def test_without_labels_samples_are_the_objective(dataset):
    config, images = CONFIG.replace(data="folder"), unlabelled(dataset)
    metrics = last(config, images)
    assert experiment.objective(config, images) == SAMPLE_DISTANCE
    measured = OF_SAMPLES | {CODE_USE, PRIOR_GAP, EVAL_SECONDS}
    assert set(metrics) - TRAINED == measured


@pytest.mark.parametrize("model", ["ali", "gan"])
def test_on_the_mixture_modes_are_the_objective(model):
    config = CONFIG.replace(data="mixture", model=model)
    metrics = last(config, points())
    assert experiment.objective(config, points()) == MODES_MISSED
    of_code = {CODE_USE, PRIOR_GAP, RECONSTRUCTION_DISTANCE} if model == "ali" else set()
    measured = {MODES_MISSED, NEAR_MODES, EVAL_SECONDS} | of_code
    assert set(metrics) - TRAINED == measured


def test_training_is_the_same_whatever_is_evaluated(dataset):
    """To the bit, statistics and random state included, with pictures drawn in between."""

    def final(eval_every, pictures):
        config = CONFIG.replace(eval_every=eval_every)
        for state, _ in experiment.run(config, dataset, device=CPU):
            if pictures:
                grids.samples(state.networks, 4)
                grids.reconstructions(state.networks, dataset.valid.x[:4])
                grids.interpolations(state.networks, dataset.valid.x[:4])
        return state

    one, other = final(1, True), final(100, False)
    assert same(bits(one), bits(other))
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_goes_on_from_a_state(dataset):
    whole = [bits(state) for state, _ in experiment.run(CONFIG, dataset, device=CPU)]
    state = State.create(CONFIG, dataset.train, CPU)
    assert len(list(experiment.run(CONFIG.replace(epochs=1), dataset, state))) == 1
    rest = [bits(state) for state, _ in experiment.run(CONFIG, dataset, state)]
    assert len(rest) == 2 and same(rest[-1], whole[-1])
    assert list(experiment.run(CONFIG, dataset, state)) == []


def test_features_that_overflow_are_a_divergence(dataset, monkeypatch):
    def overflow(networks, x):
        raise FloatingPointError("features are not finite")

    monkeypatch.setattr(protocol, "features", overflow)
    with pytest.raises(NonFiniteError) as caught:
        list(experiment.run(CONFIG, dataset, device=CPU))
    assert caught.value.step == 3


def test_a_metric_that_is_not_finite_is_named(dataset, monkeypatch):
    found = {SAMPLE_DISTANCE: 1.0, CODE_USE: float("nan"), PRIOR_GAP: float("inf")}
    monkeypatch.setattr(quality, "measure", lambda *_: found)
    with pytest.raises(NonFiniteError) as caught:
        last(CONFIG, dataset)
    assert caught.value.what == (CODE_USE, PRIOR_GAP)


def test_samples_that_overflow_are_a_divergence(dataset):
    state = State.create(CONFIG, dataset.train, CPU)
    with torch.no_grad():
        state.networks.decoder.layers.rows[0].weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="non-finite samples at step 0"):
        experiment.evaluate(state, dataset, CONFIG)


def test_baseline_errors(dataset):
    errors = experiment.baseline_errors(CONFIG, dataset)
    assert list(errors) == [RAW_PIXEL_ERROR, UNTRAINED_ERROR, UNTRAINED_BN_ERROR]
    assert errors[RAW_PIXEL_ERROR] == protocol.raw_pixel_error(dataset, CONFIG)
    networks = State.create(CONFIG, dataset.train, CPU).networks
    assert errors[UNTRAINED_ERROR] == protocol.val_error(networks, dataset, CONFIG)
    assert experiment.baseline_errors(CONFIG.replace(data="folder"), unlabelled(dataset)) == {}


def test_knows_no_sweep():
    code = """import sys, ali.experiment, ali.cli, ali.__main__
print([name for name in ("ray", "optuna", "mlflow") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
