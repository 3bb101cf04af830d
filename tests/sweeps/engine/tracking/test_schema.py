"""What a run's parameters and tags hold."""

import json
import math

from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from ali.config import Config
from sweeps.engine.endings import EndState
from sweeps.engine.space import Space, searched_fields
from sweeps.engine.tracking.schema import STATUS, config_text, parameters


def test_parameters_are_what_is_searched_and_its_log10():
    base = Config(data="svhn")
    searched = searched_fields(Space(), base)
    config = base.replace(lr_d=2e-4, beta2_g=0.99, dropout_x=0.1).to_dict()
    found = parameters(config, searched)
    assert found["lr_d"] == 2e-4 and found["log10_lr_d"] == round(math.log10(2e-4), 4)
    assert found["log10_one_minus_beta2_g"] == -2 and found["seed"] == 0
    assert "dropout_z" not in found, "the table's, and no number"
    assert "epochs" not in found and len(found) <= 20


def test_all_that_is_there_to_know_fits_into_the_tag():
    longest = "/".join(["ä" * 120] * 34)[:4095]
    config = Config(data="folder", attribute=None, data_dir=longest).to_dict()
    text = config_text(config)
    assert len(text) < MAX_TAG_VAL_LENGTH and json.loads(text) == config


def test_a_trial_that_the_scheduler_stopped_has_not_failed():
    assert STATUS.keys() == set(EndState)
    assert STATUS[EndState.STOPPED_EARLY] == STATUS[EndState.COMPLETED] == "FINISHED"
    assert STATUS[EndState.INTERRUPTED] == "KILLED"
    assert {STATUS[s] for s in (EndState.DIVERGED, EndState.COLLAPSED)} == {"FAILED"}
