"""Steps captured as CUDA graphs train the bits of eager ones; on a CPU nothing is captured."""

from itertools import pairwise
from typing import get_args

import pytest
import torch

from ali import experiment
from ali.catalog import Model
from ali.errors import NonFiniteError
from ali.training import step_graph
from ali.training.state import State
from tests.ali.noise import bits, noise
from tests.ali.training.test_models import config_of

cuda = pytest.mark.cuda
GPU = torch.device("cuda")
models = pytest.mark.parametrize("model", get_args(Model))


@pytest.fixture(scope="module")
def dataset():
    return noise()


def trained(config, dataset, state=None):
    *_, (state, metrics) = experiment.run(config, dataset, state, GPU)
    return state, {name: metrics[name] for name in state.networks.LOSSES}


def same(one: State, other: State) -> bool:
    a, b = bits(one), bits(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@models
def test_a_graph_trains_the_same_bits_and_resumes_exactly(
    model, precision, dataset, tmp_path, monkeypatch
):
    config = config_of(model, precision=precision, batch_size=10, epochs=3)
    state, losses = trained(config, dataset)
    assert state.graph is not None
    assert state.step == 3 * (len(dataset.train) // config.batch_size)
    for half, _ in experiment.run(config, dataset, device=GPU):
        if half.epoch == 1:
            half.save(tmp_path)
            break
    resumed, resumed_losses = trained(config, dataset, State.load(tmp_path, GPU, config))
    monkeypatch.setenv("ALI_CUDA_GRAPHS", "0")
    eager, eager_losses = trained(config, dataset)
    assert eager.graph is None
    assert losses == eager_losses == resumed_losses
    assert same(state, eager) and same(resumed, eager)
    assert torch.equal(state.generator.get_state(), eager.generator.get_state())


@cuda
def test_the_step_of_a_graph_that_is_not_finite_is_named(dataset):
    config = config_of("ali", batch_size=10, epochs=3)
    run = experiment.run(config, dataset, device=GPU)
    state, _ = next(run)
    with torch.no_grad():
        next(state.networks.discriminator.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError) as caught:
        next(run)
    assert (caught.value.step, state.graph is None) == (state.step // 2, False)


@cuda
def test_a_step_that_cannot_be_captured_says_how_to_train_all_the_same(dataset, monkeypatch):
    config = config_of("convnet", batch_size=10)
    state = experiment.new_state(config, dataset, GPU)
    losses = state.networks.losses

    def waiting(*arguments):
        found = losses(*arguments)
        return (found[0] * (1 + 0 * found[0].item()),)

    monkeypatch.setattr(state.networks, "losses", waiting)
    with pytest.raises(RuntimeError, match="ALI_CUDA_GRAPHS=0"):
        trained(config, dataset, state)
    assert torch.rand(2, device=GPU).isfinite().all(), "PyTorch's own generator"
    monkeypatch.undo()
    assert trained(config, dataset)[0].graph is not None, "the next trial of the process"


@models
def test_what_changes_with_the_epoch_is_seen(model, dataset):
    """M1 + M2 trains another part from its second half on; the others' steps stay the same."""
    networks = experiment.new_state(config_of(model), dataset, torch.device("cpu")).networks
    seen = []
    for epoch in range(4):
        networks.begin_epoch(epoch, 4)
        seen.append(step_graph.constants(networks))
    changes = [one != other for one, other in pairwise(seen)]
    assert changes == [False, model == "vae-m1m2", False]


def test_nothing_is_captured_on_a_cpu(dataset):
    config = config_of("gan", batch_size=10)
    *_, (state, _) = experiment.run(config, dataset, device=torch.device("cpu"))
    assert state.graph is None and not step_graph.captures(state)
