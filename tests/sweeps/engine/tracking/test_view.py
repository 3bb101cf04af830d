"""The views of a sweep in MLflow's UI: names, size, and which columns they have."""

import json

import pytest
from mlflow.utils.validation import _validate_experiment_tag

from ali.config import Config
from sweeps.engine.space import Space, searched_fields
from sweeps.engine.tracking import view

BASE = Config(data="svhn")
WIDEST = Space(bn_with_z=True, weight_std=(0.01, 0.1), batch_sizes=(50, 100, 200))
LIMIT = 5000  # characters of an experiment's tag, of the oldest MLflow that is allowed


class Client:
    """The tags of an experiment."""

    def __init__(self):
        self.tags, self.writes = {}, 0

    def get_experiment(self, experiment):
        return self

    def set_experiment_tag(self, experiment, key, value):
        _validate_experiment_tag(key, value)
        self.tags[key], self.writes = value, self.writes + 1


def test_it_is_written_once_and_fits_into_a_tag():
    client, searched = Client(), searched_fields(WIDEST, BASE)
    for _ in range(2):
        view.save_view(client, "1", "s" * 200, "sample_distance", searched, 100)
        view.save_best_view(client, "1", "s" * 200, "val_error", ["f" * 32] * 2, 100)
    assert client.writes == 2 == len(client.tags)
    assert max(map(len, client.tags.values())) < LIMIT
    state = json.loads(client.tags[view.VIEW + view.view_key("s" * 200)])
    assert state["orderByKey"] == "metrics.`sample_distance`" and state["orderByAsc"]
    assert {f"params.`{name}`" for name in searched} <= set(state["selectedColumns"])
    assert state["selectedColumns"][1:5] == [
        "tags.`interval_95`", "metrics.`sample_diversity`", "metrics.`sample_separation`",
        "tags.`end_state`",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["laptop", "first try", "ä/b?c&d", "s" * 200])
def test_the_link_names_a_tag_that_may_be(name):
    client = Client()
    view.save_view(client, "1", name, "val_error", ("lr_d",), 3)
    view.save_best_view(client, "1", name, "val_error", ["f" * 32], 3)
    for path, end in ((view.view_path("1", name), ""), (view.best_path("1", name), view.BEST)):
        key = path.partition("viewStateShareKey=")[2].partition("&compareRunsMode")[0]
        assert client.tags[view.VIEW + key] and key == view.view_key(name) + end
        assert "workflowType=machine_learning" in path
    assert view.view_key("laptop") == "laptop"


def test_of_an_earlier_version_what_differs_between_trials_is_shown():
    configs = [Config(seed=n, lr_d=1e-4 * (n + 1)).to_dict() for n in range(3)]
    assert view.varied(configs) == ("lr_d",) and view.varied([]) == ()
