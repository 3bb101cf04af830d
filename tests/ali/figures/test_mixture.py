"""ali.figures.mixture: the panels of Fig. 7."""

import numpy as np
import pytest
import torch

from ali.data import mixture
from ali.evaluation import quality
from ali.figures import mixture as figure
from ali.metrics import MODES_MISSED
from ali.models.networks import build
from tests.ali.figures.pictures import MIXTURE, alive

pytestmark = pytest.mark.numerics


def test_panels_count_what_the_metric_counts(monkeypatch, tmp_path):
    """Modes covered, in the title, are those that MODES_MISSED is counted on."""
    from ali import data

    monkeypatch.setenv("ALI_CACHE", str(tmp_path))
    networks = alive(build(MIXTURE))
    seen = []
    monkeypatch.setattr(figure, "_plot", lambda rows, colours: seen.extend(rows))
    figure.mixture_panels(networks, MIXTURE)
    small = MIXTURE.replace(train_size=1000, labels=9)
    missed = quality.measure(networks, data.load(small), small)[MODES_MISSED]
    above, below = seen
    assert f"{9 - missed:.0f} of 9 modes" in above[2].title
    assert [p.title.split("\n")[0] for p in above] == ["Data", "ALI reconstructions", "ALI samples"]
    assert below[0] is None
    assert [p.title for p in below[1:]] == ["ALI encodings ẑ", "Prior z"]


def test_panels_colour_points_by_the_mode_they_come_from(monkeypatch):
    networks = alive(build(MIXTURE))
    seen = []
    monkeypatch.setattr(figure, "_plot", lambda rows, colours: seen.extend(rows))
    figure.mixture_panels(networks, MIXTURE)
    (data, x_hat, drawn), (_, codes, prior) = seen
    np.testing.assert_array_equal(mixture.nearest_mode(data.points, 9)[0], data.mode)
    assert data.mode is x_hat.mode is codes.mode
    assert drawn.mode is prior.mode
    mode, distance = mixture.nearest_mode(drawn.points, 9)
    np.testing.assert_array_equal(drawn.mode, np.where(distance <= mixture.NEAR, mode, -1))
    with torch.inference_mode():  # a draw from the prior has the colour of its own sample
        networks.eval()
        x_tilde = networks.decoder(torch.from_numpy(prior.points)).flatten(1).numpy()
    np.testing.assert_allclose(x_tilde, drawn.points, atol=1e-5)


def test_panels_of_each_model():
    gan = build(MIXTURE.replace(model="gan"))
    levels = MIXTURE.replace(levels=2)
    pictures = {
        "ali": figure.mixture_panels(build(MIXTURE), MIXTURE),
        "both": figure.mixture_panels(build(MIXTURE), MIXTURE, gan),
        "gan": figure.mixture_panels(gan, MIXTURE.replace(model="gan")),
        "levels": figure.mixture_panels(build(levels), levels),
    }
    side = round(figure.PANEL * figure.DPI)
    shapes = {name: (p.shape[0] // side, p.shape[1] // side) for name, p in pictures.items()}
    assert shapes == {"ali": (2, 3), "both": (2, 4), "gan": (2, 2), "levels": (3, 3)}
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in pictures.values())
    for picture in pictures.values():  # no title is cut
        assert (picture[:, :1] == 255).all() and (picture[:, -1:] == 255).all()


@pytest.mark.parametrize("modes", [9, 25])
def test_colours_tell_modes_apart(modes):
    colours = figure._colours(modes)
    assert len(colours) == modes + 1
    np.testing.assert_array_equal(colours[-1], figure.GREY)
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)[~np.eye(modes + 1, dtype=bool)]
    assert apart.min() > 0.1
