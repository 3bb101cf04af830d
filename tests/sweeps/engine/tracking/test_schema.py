"""What a run's parameters and tags hold."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from ali.config import Config
from sweeps.engine.endings import EndState
from sweeps.engine.space import Space, searched_fields
from sweeps.engine.tracking.schema import (
    ANYTHING,
    MISSING,
    STATUS,
    TAG_LENGTH,
    config_text,
    missing_text,
    parameters,
    read_missing,
)


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


EPOCHS = st.sets(st.integers(0, 6475), min_size=1)


@given(st.dictionaries(st.sampled_from(["metrics", "pictures", "texts"]), EPOCHS))
def test_what_is_missing_is_read_as_it_was_written(missing):
    assert read_missing({MISSING: missing_text(missing)}) == missing


def test_what_is_missing_fits_into_the_tag_as_ranges_and_is_unknown_where_it_does_not():
    assert TAG_LENGTH <= MAX_TAG_VAL_LENGTH
    few = {"pictures": {*range(3, 18), 20}, "metrics": set()}
    assert missing_text(few) == '{"pictures": "3-17,20"}'
    for step, known in ((1, True), (2, False)):
        missing = {"pictures": set(range(0, 6475, step))}
        assert len(text := missing_text(missing)) <= TAG_LENGTH
        assert read_missing({MISSING: text}) == (missing if known else {ANYTHING: {0}})


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"metrics": "3-', '{"metrics": 3}', '{"metrics": null}', '{"metrics": ""}',
     '{"metrics": "5-3"}', '{"metrics": "0-999999999999"}', '{"metrics": "3,3"}', "[" * 8000],
)  # fmt: skip
def test_a_tag_that_cannot_be_read_never_means_that_nothing_is_missing(text):
    assert read_missing({MISSING: text}) == {ANYTHING: {0}}


def test_what_earlier_versions_wrote_is_read():
    assert read_missing({}) == read_missing({MISSING: "{}"}) == {}
    assert read_missing({MISSING: '{"texts": [], "metrics": [1, 3]}'}) == {"metrics": {1, 3}}
