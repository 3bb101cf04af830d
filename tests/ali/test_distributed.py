"""Two processes over gloo against one with the same global batch."""

import multiprocessing
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ali import distributed
from ali.config import Config
from ali.data import Images, to_unit
from ali.errors import NonFiniteError, UserError
from ali.evaluation.quality import frechet_distance
from ali.models.chain import Layer
from ali.training import step
from ali.training.state import State

CONFIG = Config(width=0.125, batch_size=8, precision="fp32", bn_z=True, bn_xz=True, levels=2)


def images():
    return Images(np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), None)


def begin(config):
    state = State.create(config, images(), "cpu")
    with torch.no_grad():  # past the start, where every gradient is tiny
        for layer in state.networks.modules():
            if isinstance(layer, Layer):
                layer.weight.mul_(5)
    return state


def epochs(state, n):
    x = torch.from_numpy(images().x)
    return [step.train_epoch(state, x) for _ in range(n)]


def together(work, *arguments, workers=2):
    """What `work` returns in each of several processes that train together."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    started = [
        spawn.Process(target=_join, args=(rank, workers, port, results, work, arguments))
        for rank in range(workers)
    ]
    for process in started:
        process.start()
    told = dict(results.get() for _ in started)
    for process in started:
        process.join()
    return [told[rank] for rank in range(workers)]


def _join(rank, workers, port, results, work, arguments):
    torch.set_num_threads(1)
    at = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=workers)
    try:
        results.put((rank, work(*arguments)))
    except Exception as error:
        results.put((rank, error))
    dist.destroy_process_group()


def tensors(state):
    return {name: tensor.numpy() for name, tensor in state.networks.state_dict().items()}


def first_moments(config):
    """Adam's first moments after a step, by weight: (1 − β₁) times its gradients."""
    x = distributed.shard(to_unit(torch.from_numpy(images().x[:8])))
    if config.model in OTHERS:
        state = State.create(config, images(), "cpu", classes=10)
        known = distributed.shard(to_unit(torch.from_numpy(images().x[8:16])))
        state.networks.begin_epoch(0, 1)
        step.model_step(state, x, (known, distributed.shard(torch.arange(8))))
    else:
        state = begin(config)
        step.train_step(state, x)
    names = {weight: name for name, weight in state.networks.named_parameters()}
    return {
        names[weight]: moments["exp_avg"].numpy()
        for optimizer in state.optimizers
        for weight, moments in optimizer.state.items()
    }


def trained(folder):
    """Tensors and losses after two epochs; worker 0 saves them."""
    state = begin(CONFIG)
    losses = [(m["d_loss"], m["g_loss"]) for m in epochs(state, 2)]
    if distributed.rank() == 0:
        state.save(folder)
    return tensors(state), losses


def apart(a, b, scale):
    """Largest distance of two runs' tensors, by the norm, relative to another norm."""
    return max(np.linalg.norm(a[name] - b[name]) / np.linalg.norm(scale(name)) for name in a)


GAN = CONFIG.replace(model="gan", levels=1)
OTHERS = {
    "ali-labels": CONFIG.replace(model="ali-labels"),
    "gan-labels": GAN.replace(model="gan-labels"),
    "sdgm": Config(model="sdgm", width=0.01, z_size=3, batch_size=8, precision="fp32"),
    "swwae": Config(model="swwae", width=0.05, batch_size=8, precision="fp32"),
}


def everything(folder):
    """What each test looks at, by its name: a pair of processes takes seconds to start."""
    with pytest.raises(NonFiniteError) as diverged:  # the group goes on
        diverges()
    return {
        "ali": first_moments(CONFIG),
        "gan": first_moments(GAN),
        **{model: first_moments(config) for model, config in OTHERS.items()},
        "trained": trained(folder / "two"),
        "diverged": diverged.value.step,
        "evaluated": evaluates(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def pair(folder):
    both = together(everything, folder)
    return {name: [told[name] for told in both] for name in both[0]}


@pytest.mark.parametrize("config", [CONFIG, GAN, *OTHERS.values()], ids=lambda config: config.model)
def test_two_workers_have_the_gradients_of_one(pair, config):
    alone = first_moments(config)
    first, second = pair[config.model]
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert apart(alone, first, lambda name: alone[name]) < 1e-3


def test_two_workers_train_as_one_and_one_goes_on_from_there(pair, folder):
    start = tensors(begin(CONFIG))
    alone, losses = trained(folder / "one")
    (first, seen), (second, also_seen) = pair["trained"]
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert seen == also_seen
    np.testing.assert_allclose(seen, losses, rtol=1e-4)
    # Adam's first steps are signs of gradients: where one is 0 but for rounding, it may turn.
    assert apart(alone, first, lambda name: alone[name] - start[name]) < 0.1

    other = State.load(folder / "two", "cpu", CONFIG)
    known = State.load(folder / "one", "cpu", CONFIG)
    assert torch.equal(other.generator.get_state(), known.generator.get_state())
    went_on, known_on = (epochs(state, 1)[0]["d_loss"] for state in (other, known))
    assert abs(went_on - known_on) < 1e-3


def diverges():
    state = begin(CONFIG)
    x = torch.from_numpy(images().x)
    if distributed.rank() == 1:  # its rows alone are bad
        state.networks.decoder.layers.rows[0].weight.data.fill_(float("nan"))
    step.train_epoch(state, x)


def one_epoch():
    return epochs(begin(CONFIG), 1)


def evaluates():
    def evaluate():
        assert distributed.rank() == 0
        raise FloatingPointError("bad samples")

    with pytest.raises(FloatingPointError, match="bad samples"):
        distributed.on_rank_zero(evaluate)
    features = np.random.default_rng(0).normal(size=(8, 2))
    # torchmetrics must not wait for the other worker
    distributed.on_rank_zero(lambda: frechet_distance(features, features))
    return distributed.on_rank_zero(lambda: f"of {distributed.rank()}")


def test_a_failure_in_one_worker_ends_all(pair):
    assert pair["diverged"] == [0, 0]


def test_one_worker_evaluates_for_all(pair):
    assert pair["evaluated"] == ["of 0"] * 2


def test_a_batch_is_shared_evenly_or_not_at_all():
    told = together(one_epoch, workers=3)
    says = "a batch of 8 images cannot be split evenly across 3 workers"
    assert all(says in str(error) for error in told), told
    assert {type(error) for error in told} == {UserError}
