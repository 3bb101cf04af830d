"""Every model of Table 1 trains by the same generator: exact resume, bf16, NaN named, pictures."""

from typing import get_args

import numpy as np
import pytest
import torch

from ali import data, experiment
from ali.catalog import KINDS, SETTINGS, Model
from ali.config import Config
from ali.data import Images, LabelledBatches, labelled_draw
from ali.data.splits import Split, Splits
from ali.errors import NonFiniteError, UserError
from ali.evaluation import protocol
from ali.figures import grids
from ali.figures.grids import epoch_pictures
from ali.metrics import D_LOSS, G_LOSS, INTERPOLATIONS, LOSS, RECONSTRUCTIONS, SAMPLES, VAL_ERROR
from ali.models import inference
from ali.training.state import State
from tests.ali.noise import bits, noise

CPU = torch.device("cpu")
OTHERS = [model for model in get_args(Model) if model not in ("ali", "gan")]
others = pytest.mark.parametrize("model", OTHERS)


def config_of(model, **changes):
    small = {"width": 0.05, "labels": 20, "draws": 1, "batch_size": 20, "epochs": 2}
    small |= {"components": 10} if "components" in KINDS[model].settings else {}
    small |= {"z_size": 5} if "z_size" in KINDS[model].settings else {}
    return Config.of_model(model).replace(**{**small, "precision": "fp32", **changes})


@pytest.fixture(scope="module")
def dataset():
    return noise()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@others
def test_resumes_exactly(model, precision, dataset, tmp_path):
    """Evaluation and pictures in between change nothing."""
    config = config_of(model, precision=precision)
    kind = KINDS[model]
    for state, metrics in experiment.run(config, dataset, device=CPU):
        assert set(metrics) == experiment.metric_names(config, dataset)
        assert set(state.networks.LOSSES) == ({D_LOSS, G_LOSS} if len(kind.adam) == 2 else {LOSS})
        if state.epoch == 1:
            state.save(tmp_path)
            pictures = set(epoch_pictures(state.networks, dataset, config))
            codes = {RECONSTRUCTIONS} if kind.encodes else set()
            between = {INTERPOLATIONS} if kind.encodes and kind.generates else set()
            assert pictures == codes | between | ({SAMPLES} if kind.generates else set())
    again = State.load(tmp_path, CPU, config)
    ((resumed, last),) = experiment.run(config, dataset, again)
    one, other = bits(state), bits(resumed)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert last[VAL_ERROR] == metrics[VAL_ERROR]
    assert torch.equal(state.generator.get_state(), resumed.generator.get_state())


@others
def test_a_weight_that_is_not_finite_is_named(model, dataset):
    config = config_of(model)
    state = experiment.new_state(config, dataset, CPU)
    for weights in state.networks.weights():
        with torch.no_grad():
            weights[0].fill_(torch.nan)
    with pytest.raises(NonFiniteError) as caught:
        list(experiment.run(config, dataset, state))
    assert set(caught.value.what) & set(state.networks.LOSSES)


@others
def test_the_error_of_a_model_with_labels_is_its_own(model, dataset):
    config = config_of(model)
    networks = experiment.new_state(config, dataset, CPU).networks
    if not KINDS[model].classifies:
        with pytest.raises(UserError, match="trained without labels"):
            inference.classify(networks, dataset.valid.x)
        return
    wrong = (inference.classify(networks, dataset.valid.x) != dataset.valid.y).mean()
    assert protocol.val_error(networks, dataset, config) == wrong
    assert protocol.test_errors(networks, dataset, dataset.valid, config, 5).tolist() == [wrong]
    networks.class_scores = lambda x, normal: torch.full((len(x), 10), torch.nan)
    with pytest.raises(FloatingPointError):
        protocol.val_error(networks, dataset, config)


def test_a_model_sees_the_labels_of_its_draw_alone(dataset):
    """Those of labelled draw --draw, which SVMs are fitted to as well, and no others."""
    for draw in (0, 3):
        config = config_of("convnet", draw=draw, epochs=1)
        state, _ = next(experiment.run(config, dataset, device=CPU))
        x, y = labelled_draw(dataset, config, draw)
        assert (state.labelled.x.numpy() == x).all() and (state.labelled.y.numpy() == y).all()


def test_labelled_batches_draw_all_before_one_is_again():
    x = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    known, rng = LabelledBatches(x, torch.arange(6)), torch.Generator().manual_seed(0)
    drawn = torch.cat([known.draw(4, rng)[1] for _ in range(3)])
    assert all(sorted(part.tolist()) == list(range(6)) for part in drawn.split(6))
    images, y = known.draw(15, rng)
    assert torch.allclose(images.flatten() * 255, y.float())  # a batch larger than all there are
    assert len(y) == 15


def test_what_a_resume_may_change_depends_on_what_a_model_is_trained_with(dataset, tmp_path):
    config = config_of("convnet")
    experiment.new_state(config, dataset, CPU).save(tmp_path)
    for changes in ({"labels": 30}, {"draw": 1}, {"balanced": False}):
        with pytest.raises(UserError, match="other settings"):
            State.load(tmp_path, CPU, config.replace(**changes))
    assert State.load(tmp_path, CPU, config.replace(epochs=9)).config.epochs == 9


def test_settings_are_those_of_the_catalog():
    assert set(KINDS) == set(get_args(Model))
    for model, kind in KINDS.items():
        config = Config.of_model(model)
        plain = config.to_dict()
        assert Config.from_dict(plain) == config
        assert plain.keys() & SETTINGS == kind.settings.keys()
        for name, setting in kind.settings.items():
            assert config.setting(name) == setting.value
        for name in SETTINGS - kind.settings.keys():
            value = "mean" if name == "predict_z" else 0.25 if "_fc" in name else 2
            option = name.replace("_", "-")
            with pytest.raises(UserError, match=f"--{option} must be left out with --model"):
                config.replace(**{name: value})
    assert not Config().to_dict().keys() & SETTINGS  # an ALI's files are what they were


def test_data_without_labels_is_refused(monkeypatch):
    train = Images(np.zeros((50, 32, 32, 3), np.uint8), None)
    splits = Splits({"train": Split(train, "0", ())}, 0)
    monkeypatch.setitem(data.DATASETS, "folder", lambda *_: splits)
    with pytest.raises(UserError, match="trained with labels, and folder has none"):
        data.load(config_of("sdgm", data="folder"))
    assert len(data.load(config_of("vae-m1", data="folder")).train) == 40


def test_what_a_model_cannot_do_is_said_in_a_line(dataset):
    convnet, swwae, m1 = (
        experiment.new_state(config_of(model), dataset, CPU).networks
        for model in ("convnet", "swwae", "vae-m1")
    )
    x = dataset.valid.x[:4]
    for asked, says in (
        (lambda: inference.mu(convnet, x), "a convnet has no encoder: use it to classify only"),
        (lambda: inference.sample(convnet, 2), "a convnet has no prior to sample from"),
        (lambda: inference.sample(swwae, 2), "a swwae has no prior to sample from"),
        (lambda: grids.interpolations(swwae, x), "a swwae has no prior"),
        (lambda: inference.classify(m1, x), "a vae-m1 is trained without labels"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            asked()
        assert "\n" not in str(caught.value)
    assert inference.reconstruct(swwae, x).shape == x.shape
