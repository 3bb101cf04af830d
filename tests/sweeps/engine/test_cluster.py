"""How a cluster's resources are divided among trials."""

import pytest

from ali.errors import UserError
from sweeps.engine import ray_compat
from sweeps.engine.cluster import (
    NODE_CPU,
    TrialResources,
    allocate_resources,
    max_cluster_resources,
    refuse_dead_cluster,
    start_ray,
)
from sweeps.engine.options import Options

pytestmark = pytest.mark.versions


def options(**more):
    return Options(name="s", **more)


@pytest.mark.parametrize(
    ("asked", "resources", "share"),
    [
        ({}, {"CPU": 2}, TrialResources(1, 0.0, 1, 2)),
        ({"max_concurrent": 1}, {"CPU": 2}, TrialResources(2, 0.0, 2, 1)),
        ({"num_trials": 1}, {"CPU": 8}, TrialResources(8, 0.0, 8, 1)),
        ({"cpus_per_trial": 4}, {"CPU": 8}, TrialResources(4, 0.0, 4, 2)),
        ({}, {"CPU": 16, "GPU": 2}, TrialResources(8, 1.0, 8, 2)),
        ({"gpus_per_trial": 0.25}, {"CPU": 16, "GPU": 2}, TrialResources(2, 0.25, 2, 8)),
        ({"gpus_per_trial": 0}, {"CPU": 4, "GPU": 1}, TrialResources(1, 0.0, 1, 4)),
        ({"max_concurrent": 3}, {"CPU": 2}, TrialResources(1, 0.0, 1, 2)),
        ({"max_concurrent": 3}, {"CPU": 16, NODE_CPU: 4}, TrialResources(4, 0.0, 4, 3)),
    ],
)
def test_shares(asked, resources, share):
    assert allocate_resources(options(**asked), resources) == share


@pytest.mark.parametrize("asked", [{"gpus_per_trial": 1}, {"cpus_per_trial": 3}])
def test_a_share_larger_than_the_node(asked):
    with pytest.raises(UserError, match="lower --cpus-per-trial"):
        allocate_resources(options(**asked), {"CPU": 8, NODE_CPU: 2})


CLUSTER = {
    "max_workers": 4,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8}},
        "small": {"resources": {"CPU": 2}},
        "large": {"resources": {"CPU": 16, "GPU": 2}},
    },
}


def test_an_autoscaler_counts_with_the_workers_that_it_may_add(monkeypatch):
    monkeypatch.setattr(ray_compat, "cluster_config", lambda: CLUSTER)
    assert max_cluster_resources({"CPU": 8, NODE_CPU: 8, "memory": 1}) == {
        "CPU": 64,
        "GPU": 8,
        NODE_CPU: 16,
        "memory": 1,
    }
    assert max_cluster_resources({"CPU": 100, NODE_CPU: 50})["CPU"] == 100, "there are more already"


def test_without_an_autoscaler_there_is_what_there_is(monkeypatch):
    now = {"CPU": 3, NODE_CPU: 1}
    monkeypatch.setattr(ray_compat, "cluster_config", lambda: None)
    assert max_cluster_resources(now) == now
    alone = CLUSTER | {"available_node_types": {"head": {"resources": {"CPU": 8}}}}
    monkeypatch.setattr(ray_compat, "cluster_config", lambda: alone)
    assert max_cluster_resources(now) == now


def test_a_machine_too_busy_for_ray_is_said_in_one_line(monkeypatch):
    import ray

    def init(**_):
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="too busy: try again later"):
        start_ray()


def test_a_cluster_that_is_gone_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(ray_compat, "recorded_cluster_address", lambda: ("127.0.0.1:9", file))
    with pytest.raises(UserError, match="does not answer"):
        refuse_dead_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    refuse_dead_cluster()
