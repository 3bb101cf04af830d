"""ADGM and SDGM: sizes, the one edge between them, exact posteriors, gradients, clipping."""

import pytest
import torch
from torch import nn

from ali.config import Config
from ali.models.base import Noise
from ali.models.registry import create
from ali.models.sdgm import MAX_GRADIENT, MAX_NORM
from tests.ali.models.test_vae import F64, check_gradients, draws, lost_units, parameters, untouched
from tests.ali.training.states import images

POINTS = torch.randn(50, 1, 1, 2, generator=torch.Generator().manual_seed(0)).numpy()
TOY = Config(data="mixture", model="sdgm", width=0.008, z_size=3)


def toy(model="sdgm", classes=3, std=0.4):
    """On points of the plane with 8 units a layer, weights of a size that matters, in fp64."""
    generator = torch.Generator().manual_seed(0)
    made = create(TOY.replace(model=model), POINTS, classes, generator, torch.float32)
    for weight in made.parameters():
        nn.init.normal_(weight, 0, std, generator=generator)
    made.double().compute_in(F64)
    made.begin_epoch(0, 1)
    return made


def test_sizes():
    found = {}
    for model, width, z in (("sdgm", 0.5, 100), ("adgm", 0.5, 100), ("sdgm", 1.0, 300)):
        config = Config(model=model, width=width, z_size=z)
        found[model, z] = parameters(untouched(config))
    assert found == {("sdgm", 100): 9_511_754, ("adgm", 100): 9_461_754, ("sdgm", 300): 23_717_954}


def test_without_its_edge_from_a_to_x_sdgm_is_adgm_to_the_bit():
    sdgm, adgm = toy("sdgm"), toy("adgm")
    shared = {k: v for k, v in sdgm.state_dict().items() if not k.startswith("p_x.first.2")}
    adgm.load_state_dict(shared)
    nn.init.zeros_(sdgm.p_x.first[2].weight)
    v, y = draws(1)((5, 2)), torch.tensor([0, 1, 2, 0, 1])
    for made in (sdgm, adgm):
        made.found = made.unlabelled_bound(v, draws(2)), *made.labelled_terms(v, y, draws(3))
    for ours, theirs in zip(sdgm.found, adgm.found, strict=True):
        assert torch.equal(ours, theirs)


def test_the_unlabelled_bound_is_the_sum_over_y():
    made, v = toy(), draws(1)((5, 2))
    eps_a, eps_z = draws(2)((5, 3)), draws(3)((5, 3, 3))
    given = {(5, 3): eps_a, (5, 3, 3): eps_z}
    found = made.unlabelled_bound(v, lambda shape: given[shape])
    a, log_q_a = made.draw_a(v, lambda shape: eps_a)
    total, log_q = -log_q_a, made.log_q(v, a)
    for k in range(3):
        y = torch.eye(3, dtype=F64)[k].expand(5, 3)
        bound = made.bound(v, a, y, lambda shape, k=k: eps_z[:, k])
        total = total + log_q[:, k].exp() * (bound - log_q[:, k])
    assert torch.allclose(found, total)


def test_bounds_against_pyro():
    pyro = pytest.importorskip("pyro")
    from pyro import distributions as dist
    from pyro.infer import TraceEnum_ELBO, config_enumerate

    made, samples = toy(std=0.2), 4000
    v = draws(1)((2, 2)).repeat_interleave(samples, 0)

    def gaussian(name, mu, log_var, obs=None):
        return pyro.sample(name, dist.Normal(mu, (0.5 * log_var).exp()).to_event(1), obs=obs)

    def model(v):
        with pyro.plate("data", len(v)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3, dtype=F64) / 3))
            zero = torch.zeros(3, dtype=F64)
            z = gaussian("z", zero, zero)
            a = gaussian("a", *made.p_a(z, y))
            mean, log_var = made.p_x(z, y, a)
            gaussian("v", mean, log_var.clamp(min=-8), obs=v)

    @config_enumerate
    def guide(v):
        with pyro.plate("data", len(v)):
            a = gaussian("a", *made.q_a(v))
            y = pyro.sample("y", dist.OneHotCategorical(logits=made.log_q(v, a)))
            gaussian("z", *made.q_z(v, a, y))

    torch.manual_seed(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    with torch.no_grad():
        theirs = -elbo.loss(model, guide, v) / samples
        ours = made.unlabelled_bound(v, draws(3)).sum().item() / samples
    assert ours == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize("model", ["sdgm", "adgm"])
def test_gradients_are_those_of_finite_differences(model):
    made, y = toy(model), torch.tensor([0, 1, 2, 0])
    x_l, x = draws(1)((4, 2, 1, 1)), draws(2)((4, 2, 1, 1))

    class Same(Noise):
        """The same numbers on every call."""

        def _draw(self, draw, shape):
            return draws(sum(shape))(shape)

    noise = Same(torch.Generator(), torch.device("cpu"))
    check_gradients(lambda: made.losses(x, (x_l, y), noise)[0], list(made.parameters()))


@pytest.mark.parametrize("model", ["sdgm", "adgm"])
def test_no_unit_of_p_is_lost_below_the_bound(model):
    made, y = toy(model), torch.tensor([0, 1, 2, 0])
    x_l, x = draws(1)((4, 2, 1, 1)), draws(2)((4, 2, 1, 1))
    noise = Noise(torch.Generator().manual_seed(0), torch.device("cpu"))
    assert lost_units(made.p_x.heads[1], lambda: made.losses(x, (x_l, y), noise)[0]) == 0


def test_gradients_are_limited_in_norm_and_then_each():
    made = toy()
    large = [torch.full((3,), 100.0), torch.tensor([200.0])]
    limited = made.limited(large)
    norm = torch.cat(large).norm()
    for before, after in zip(large, limited, strict=True):
        assert torch.allclose(after, (before * MAX_NORM / norm).clamp(max=MAX_GRADIENT))
    small = [torch.tensor([0.5, -0.5])]
    assert torch.equal(made.limited(small)[0], small[0])


def test_pixels_fill_the_interval_between_two_values_and_come_back():
    made = create(
        Config(model="sdgm", width=0.01), images().x, 10, torch.Generator(), torch.float32
    )
    x = torch.from_numpy(images().x[:4]).permute(0, 3, 1, 2) / 255
    low, high = (made.vectors(x, u).unflatten(1, made.image) * made.scale for u in (0.0, 1.0))
    assert torch.allclose(low, 255 * x, atol=1e-3)
    assert torch.allclose(high - low, torch.ones_like(x), atol=1e-3)
    del made.p_x
    made.p_x = lambda *codes: (codes[0],)  # whose mean is the code itself
    assert torch.allclose(made.decode(None, None, made.vectors(x)), x, atol=1e-5)
