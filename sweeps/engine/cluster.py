"""Ray: which cluster a sweep joins or starts, and how its resources are divided among trials."""

from __future__ import annotations

import logging
import os
import signal
import socket
from dataclasses import dataclass

from ali import environment
from ali.errors import UserError
from sweeps.engine.options import Options

NODE_CPU = "CPUs of the largest node"  # beside Ray's own names of resources
PRELOADING_CORES = 16  # on larger machines a worker a core that imports torch takes much memory


def refuse_dead_cluster() -> None:
    """Raises UserError if this machine belonged to a Ray cluster that is gone."""
    from sweeps.engine import ray_compat

    if environment.ray_address() or not (recorded := ray_compat.recorded_cluster_address()):
        return
    address, file = recorded
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        raise UserError(
            f"the Ray cluster at {address}, which this machine belongs to by {file}, does not "
            "answer: start it again, or run `ray stop` and delete that file to use this machine"
        ) from None


def start_ray() -> dict[str, float]:
    """Joins the cluster that RAY_ADDRESS names, or the one this node belongs to, or starts Ray.

    Returns `max_cluster_resources` of it. Raises UserError if no cluster answers.
    """
    import ray

    from sweeps.engine import ray_compat

    address = environment.ray_address()
    if (os.cpu_count() or 1) <= PRELOADING_CORES:  # what trials need, while the driver prepares
        modules = "sweeps.engine.trial,ali.experiment,mlflow"
        environment.set_defaults(**{ray_compat.PRELOADED_MODULES: modules})
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: start it or unset the variable"
        ) from error
    except Exception as error:
        if not ray_compat.start_timed_out(error):
            raise
        raise UserError(
            "Ray did not start within half a minute, so this machine is too busy: try again later"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, terminate)  # Ray installs a handler of its own
    ray_compat.reuse_prestarted_workers()
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return max_cluster_resources({**ray.cluster_resources(), NODE_CPU: max(nodes)})


def max_cluster_resources(now: dict[str, float]) -> dict[str, float]:
    """CPUs and GPUs of the cluster with all the workers that its autoscaler may add to it.

    Without an autoscaler what there is `now` is all there will be.
    """
    from sweeps.engine import ray_compat

    cluster = ray_compat.cluster_config()
    if cluster is None:
        return now
    kinds = {k: v["resources"] for k, v in cluster["available_node_types"].items()}
    kinds.pop(cluster["head_node_type"])
    if not kinds:
        return now
    largest = max(kinds.values(), key=lambda has: (has.get("GPU", 0), has.get("CPU", 0)))
    workers = cluster["max_workers"]
    added = {key: workers * largest.get(key, 0) for key in ("CPU", "GPU")}
    added[NODE_CPU] = largest.get("CPU", 0)
    return {**now, **{key: max(now.get(key, 0), count) for key, count in added.items()}}


@dataclass(frozen=True)
class TrialResources:
    """What one trial gets, and how many trials run at a time."""

    cpus: int
    gpus: float
    threads: int
    concurrent: int


def allocate_resources(options: Options, resources: dict[str, float]) -> TrialResources:
    """Divides a cluster's CPUs and GPUs among trials.

    Raises UserError if a trial asks for more than there is.
    """
    cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    trial_gpus = options.gpus_per_trial
    if trial_gpus is None:
        trial_gpus = 1.0 if gpus else 0.0
    node = int(resources.get(NODE_CPU, cpus))  # a trial runs on one node
    if trial_gpus > gpus or (options.cpus_per_trial or 1) > node:
        raise UserError(
            f"a trial asks for {options.cpus_per_trial or 1} CPUs and {trial_gpus:g} GPUs, but "
            f"there are {node} on a node and {gpus:g}: lower --cpus-per-trial or --gpus-per-trial"
        )
    by_gpu = int(gpus / trial_gpus) if trial_gpus else cpus
    concurrent = min(options.max_concurrent or cpus, options.num_trials, by_gpu)
    trial_cpus = options.cpus_per_trial or min(node, max(1, cpus // concurrent))
    at_once = max(1, min(concurrent, cpus // trial_cpus))
    return TrialResources(trial_cpus, trial_gpus, threads=trial_cpus, concurrent=at_once)
