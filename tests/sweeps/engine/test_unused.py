"""What a new sweep is asked in vain: options, and dimensions of its space."""

from dataclasses import replace

import pytest

from ali.errors import UserError
from sweeps.engine.driver import Sweep
from sweeps.engine.experiment import AliExperiment
from sweeps.engine.launch import asked_space, launch
from sweeps.engine.options import JOURNAL, Options
from sweeps.engine.space import Space
from sweeps.engine.study import Study
from sweeps.engine.unused import refuse_without_effect


class WithoutData(AliExperiment):
    def load_data(self, config):
        raise UserError("asked for its data")


def test_a_sweep_of_an_earlier_version_is_resumed(tmp_path):
    """It may have been started with options that were in vain."""
    options = Options(name="s", output_dir=tmp_path, draw=1)
    sweep = Sweep(experiment=WithoutData())
    with pytest.raises(UserError, match="--draw has no effect"):
        launch(sweep, options)
    assert list(tmp_path.iterdir()) == []
    options.folder.mkdir()
    options.save()
    Study(options.folder / JOURNAL, "s", seed=0)
    with pytest.raises(UserError, match="asked for its data"):
        launch(sweep, replace(options, resume=True))


def check(options, space=None):
    space = asked_space(space or Space(), options)
    refuse_without_effect(options, space, AliExperiment().unused(options.config()))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": 64}, "--image-size has no effect with --data house-numbers: leave it out"),
        ({"draw": 1}, "--draw has no effect with --model ali: leave it out"),
        ({"model": "sdgm", "bn_with_z": True}, "--bn-with-z has no effect with --model sdgm"),
        ({"confirm_seeds": 8}, "--confirm-seeds has no effect without --race or --confirm"),
    ],
)
def test_an_option_without_effect(settings, says):
    with pytest.raises(UserError, match=says):
        check(Options(name="s", **settings))


@pytest.mark.parametrize(
    ("settings", "space", "says"),
    [
        ({"model": "gan"}, Space(fixed={"dropout_z": 0.1}), "dropout_z has no effect .* gan"),
        ({"model": "gan"}, Space(fixed={"bn_z": True}), "bn_z has no effect with --model gan"),
        (
            {"data": "mixture"},
            Space(fixed={"dropout_x": 0.1}),
            "dropout_x has no effect .* mixture",
        ),
        ({"data": "mixture"}, Space(fixed={"bn": True}), "bn has no effect with --data mixture"),
        ({"model": "convnet"}, Space(fixed={"adam_apart": True}), "adam_apart has no effect"),
        ({"model": "convnet"}, Space(extra={"lr_g": (1e-4, 1e-3)}), "lr_g has no effect"),
        ({"model": "sdgm"}, Space(bn_with_z=True), "space: bn_with_z has no effect"),
        ({"model": "sdgm"}, Space(fixed={"dropout": 0.1}), "space: dropout has no effect .* sdgm"),
        ({"model": "sdgm"}, Space(fixed={"slope": 0.1}), "space: slope has no effect .* sdgm"),
        ({"model": "sdgm"}, Space(slope=(0.0, 0.2)), "space: slope has no effect .* sdgm"),
        ({"model": "sdgm"}, Space(dropout=(0.0, 0.2)), "space: dropout has no effect .* sdgm"),
    ],
)
def test_a_dimension_without_effect(settings, space, says):
    with pytest.raises(UserError, match=says):
        check(Options(name="s", **settings), space)


def test_what_has_an_effect_or_its_default_is_accepted():
    check(Options(name="s", model="gan", bn_with_z=True))
    check(Options(name="s", confirm=2, confirm_seeds=8))
    check(Options(name="s", data="folder", image_size=64))
    check(Options(name="s", model="sdgm", draw=1))
    check(Options(name="s", data="mixture"), Space(fixed={"dropout": 0.1, "bn": False}))
    check(Options(name="s", model="gan"), Space(fixed={"bn_z": False, "lr": 1e-3}))
    check(Options(name="s", model="convnet"), Space(fixed={"lr": 1e-3}))
    check(Options(name="s", data="mixture"), Space(dropout=(0.0, 0.2)))
