"""How many trials run at a time on a real Ray cluster, and which are refused."""

from dataclasses import replace

import pytest

from tests.audit import audit
from tests.integration.harness import EPOCHS, Toy, error_line, ray_cluster

pytestmark = pytest.mark.versions

SECONDS = 1.0  # of an epoch


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two CPUs, whatever this machine has."""
    with ray_cluster(2, 2, options=["--include-dashboard=false"]) as env:
        yield env


@pytest.fixture
def clustered(toy, cluster):
    return replace(toy, env={**toy.env, **cluster, "TOY_SECONDS": str(SECONDS)})


def most_at_a_time(toy: Toy) -> int:
    """The largest number of trials that trained at the same moment."""
    spans: dict[str, list[float]] = {}
    for line in (toy.folder / "toy.log").read_text().splitlines():
        seed, _, _, time = line.split()
        spans.setdefault(seed, []).append(float(time))
    begun = [(min(times) - SECONDS, max(times)) for times in spans.values()]
    return max(sum(a <= moment < b for a, b in begun) for moment, _ in begun)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "at_a_time", "cpus"),
    [
        ((), 4, 1),
        pytest.param(("--max-concurrent", "3"), 3, 1, marks=pytest.mark.long),
        pytest.param(("--cpus-per-trial", "2"), 2, 2, marks=pytest.mark.long),
    ],
    ids=["all", "max-concurrent", "cpus-per-trial"],
)
def test_trials_at_a_time(clustered, options, at_a_time, cpus):
    out = clustered.run("--num-trials", "6", "--grace-epochs", str(EPOCHS), *options)
    audit(clustered, 6)
    assert f"6 trials, {at_a_time} at a time with {cpus} CPU each;" in out
    assert 1 < most_at_a_time(clustered) <= at_a_time  # on a busy machine they start one by one


@pytest.mark.parametrize("asked", [("--cpus-per-trial", "3"), ("--gpus-per-trial", "1")])
def test_a_trial_that_no_node_can_run_is_refused(clustered, asked):
    # There are four CPUs, but a trial runs on one node: Tune would wait for ever.
    process = clustered.start("--num-trials", "1", *asked)
    out, err = process.communicate(timeout=120)
    line = error_line(process.returncode, err)
    assert asked[0] in line and "2 on a node" in line
    assert not clustered.epochs(), out
