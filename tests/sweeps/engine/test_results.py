"""What is read of a sweep: the order, and that reading leaves it alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ali.errors import UserError
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.options import JOURNAL, Location
from sweeps.engine.results import results
from sweeps.engine.study import Study
from sweeps.engine.tracking import runs


def test_results_are_ranked_as_the_study_defines_best(tmp_path, point):
    here = Location(name="s", output_dir=tmp_path)
    here.folder.mkdir()
    study = Study(here.folder / JOURNAL, "s", seed=0)
    completed, stopped = Ending(EndState.COMPLETED, ""), Ending(EndState.STOPPED_EARLY, "cut")
    for number, (value, ending) in enumerate(
        [(0.4, completed), (0.1, stopped), (0.3, completed), (0.2, None)]
    ):
        study.ask(point)
        study.report(number, 1, value)
        if ending:
            study.tell(number, ending, value)
    before = (here.folder / JOURNAL).read_bytes()
    found = results(here)
    assert [trial.trial_id for trial in found] == ["00002", "00000", "00001", "00003"]
    assert [trial.complete for trial in found] == [True, True, False, False]
    assert [trial.value for trial in found] == [0.3, 0.4, 0.1, 0.2]
    assert found[2].ending == stopped and found[3].ending is None
    assert found[0].config["lr_d"] > 0 and found[0].values == {1: 0.3}
    assert (here.folder / JOURNAL).read_bytes() == before
    with pytest.raises(UserError, match="no sweep 'other'"):
        results(replace(here, name="other"))


@pytest.mark.parametrize("text", ["", "{", "[1", "3", '"x"', "null"])
def test_damaged_tags_in_mlflow_are_named_with_their_run(text):
    run = SimpleNamespace(
        data=SimpleNamespace(tags={"config": text, "best_trials": text}),
        info=SimpleNamespace(run_id="0123"),
    )
    for read, tag in ((runs.config_of, "config"), (runs.best_trials, "best_trials")):
        with pytest.raises(UserError, match=f"tag '{tag}' of run 0123 is damaged"):
            read(run)
