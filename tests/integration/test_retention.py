"""Checkpoints on disk: of the best trials the last one, of other ended trials none."""

import contextlib
import json
import time

import pytest

from tests.audit import audit
from tests.integration.harness import EPOCHS, kill_when

pytestmark = pytest.mark.versions

OPTIONS = ("--num-trials", "6", "--keep", "2", "--grace-epochs", str(EPOCHS))  # none stopped early


def checkpoints(toy):
    """The epochs in the checkpoints on disk, by trial."""
    found = {}
    for file in sorted((toy.runs / toy.name).glob("*/checkpoint_*/epoch.json")):
        with contextlib.suppress(ValueError):  # cut short by a kill
            epoch, _ = json.loads(file.read_text())
            found.setdefault(file.parents[1].name, []).append(epoch)
    return found


def best_two(toy):
    complete = [trial for trial in toy.study().get_trials() if trial.state.name == "COMPLETE"]
    return {f"{t.number:05d}" for t in sorted(complete, key=lambda t: (t.value, t.number))[:2]}


def test_the_last_checkpoints_of_the_best_trials_remain(toy):
    toy.run(*OPTIONS, "--max-concurrent", "1")
    audit(toy, 6)
    assert len({pid for _, _, pid in toy.starts()}) == 1, "in one process"
    assert checkpoints(toy) == {name: [EPOCHS] for name in best_two(toy)}
    assert len(list((toy.runs / toy.name).glob("*/checkpoint_*"))) == 2, "and no empty folders"


@pytest.mark.long
def test_the_same_remain_after_a_kill_and_a_resume(toy):
    toy.env["TOY_SECONDS"] = "0.3"

    def four_have_ended():
        return sum(toy.epochs()[number, EPOCHS] for number in range(6)) >= 4

    kill_when(toy, lambda: toy.epochs() and four_have_ended(), *OPTIONS)
    time.sleep(3)  # trials outlive their driver by a moment
    before = checkpoints(toy)
    # While a sweep runs: two checkpoints of each trial that trains (a third while it is written),
    # one of each of the best two; the driver may have been killed before it deleted the rest.
    running = {f"{t.number:05d}" for t in toy.study().get_trials() if t.state.name == "RUNNING"}
    assert all(len(before.get(name, [])) <= 3 for name in running)
    assert len(before) <= len(running) + 2 + 2, before
    assert best_two(toy) <= set(before), "of those that have ended"
    toy.run("--resume")
    audit(toy, 6)
    assert checkpoints(toy) == {name: [EPOCHS] for name in best_two(toy)}
