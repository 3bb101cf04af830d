"""How a cluster's resources are divided among trials."""

import pytest

from ali.errors import UserError
from sweeps.engine.cluster import NODE_CPU, TrialResources, allocate_resources
from sweeps.engine.options import Options


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
