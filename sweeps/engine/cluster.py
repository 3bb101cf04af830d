"""Ray: which cluster a sweep joins or starts, and how its resources are divided among trials."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from ali import environment
from ali.errors import UserError
from ali.output import first_line, without_password
from sweeps.engine.live import say
from sweeps.engine.options import Options

# What Ray appends to its folder, and the longest path of a socket.
_SOCKET = "/ray/session_2026-11-26_02-49-42_993445_4194304/sockets/plasma_store"
MAX_PATH, FREE_MB = 107 - len(_SOCKET), 32
# Beside Ray's own names of resources: CPUs of the largest node; and where there are GPUs.
NODE_CPU, GPU_CPU, GPU_NODE_CPU = "node's CPUs", "CPUs by GPUs", "node's CPUs by GPUs"
PRELOADING_CORES = 16  # above, one worker per core that imports torch takes much memory


def find_cluster() -> tuple[str, Path | None] | None:
    """The Ray cluster to join, and the file that names it; None: one of our own is started.

    RAY_ADDRESS names it (no file), or this user's `ray start` has made this machine a part of it.
    A cluster of other users is not joined automatically: it could run anything as this user.
    """
    from sweeps.engine import ray_compat

    address = environment.ray_address()
    if address == "local":
        return None
    if address not in (None, "auto"):
        return address, None
    if recorded := ray_compat.recorded_cluster_address():
        ray_compat.enable_token_authentication()
        return recorded
    if address == "auto":
        raise UserError(
            "you have started no Ray on this machine for RAY_ADDRESS=auto to find: name the "
            "cluster's address, or unset the variable"
        )
    return None


def check_ray() -> None:
    """Raises UserError within seconds if Ray cannot be joined, or has no folder to start in."""
    from sweeps.engine import ray_compat

    if (found := find_cluster()) is None:
        own_temp_folder()
        return
    address, file = found
    if file is None:
        if why := ray_compat.unreachable(address):
            raise UserError(
                f"the Ray cluster at RAY_ADDRESS={address} does not answer ({why}): start it, "
                "correct the variable, or unset it"
            )
    elif not ray_compat.runs_node(address) or ray_compat.unreachable(address):
        raise UserError(
            f"the Ray cluster at {address}, which this machine belongs to by {file}, does not "
            "answer: start it again, or run `ray stop` and delete that file to use this machine"
        )


def answers(address: str) -> bool:
    """Whether anything answers at the address of a Ray cluster, or at a raylet's socket."""
    host, _, port = address.rpartition(":")
    try:
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as raylet:
                raylet.settimeout(5)
                raylet.connect(address)
            return True
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def joined_address() -> str | None:
    """The address of the cluster that this process has joined; None: remotely, by Ray Client."""
    import ray

    if "://" in (environment.ray_address() or ""):
        return None
    return ray.get_runtime_context().gcs_address


def own_raylet() -> str | None:
    """The socket of the raylet of this process, which ends when that does; None: not known."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((n.get("RayletSocketName") for n in ray.nodes() if n["NodeID"] == own), None)


def own_temp_folder() -> Path:
    """A folder for the sockets and logs of a Ray of our own, which no other user can enter.

    Ray opens its own default, /tmp/ray, to all users, who could put their sockets in the place of
    ours. Raises UserError if there is no such folder.
    """
    given, base = environment.ray_tmpdir(), environment.tmpdir()
    folder = (given or base / f"ali-{os.getuid()}").absolute()
    why = ""
    try:
        if len(str(folder)) > MAX_PATH:
            why = "has too long a path"
        elif given is None and not base.is_dir():
            why = f"is in TMPDIR={base}, which is no folder"
        else:
            folder.mkdir(mode=0o700, parents=given is not None, exist_ok=True)
            if given is None and folder.lstat().st_uid != os.getuid():
                why = "is another user's"
            elif not os.access(folder, os.W_OK):
                why = "is not yours to write to"
            elif shutil.disk_usage(folder).free < FREE_MB * 2**20:
                why = "is on a full disk"
            elif given is None:
                folder.chmod(0o700)
    except OSError as error:
        why = f"cannot be used ({error.strerror or error})"
    if why:
        raise UserError(
            f"Ray needs a folder for its sockets and logs, and {folder} {why}: set RAY_TMPDIR to "
            f"one that you may write to, with {FREE_MB} MB free and at most {MAX_PATH} characters"
        )
    return folder


def start_ray() -> dict[str, float]:
    """Joins the cluster that `find_cluster` finds, or starts Ray, for this user alone.

    Returns `max_cluster_resources` of it. Raises UserError if no cluster answers, or if Ray cannot
    start.
    """
    import ray
    from ray.exceptions import RayError

    from sweeps.engine import ray_compat

    address, _ = find_cluster() or ("local", None)
    joins = f"joins the Ray cluster at {without_password(address)}"
    say("starts Ray on this machine" if address == "local" else joins)
    if address == "local":
        environment.set_defaults(RAY_TMPDIR=str(own_temp_folder()))
        ray_compat.enable_token_authentication()
    if (os.cpu_count() or 1) <= PRELOADING_CORES:  # preload while the driver prepares
        modules = "sweeps.engine.trial,ali.experiment,mlflow"
        environment.set_defaults(**{ray_compat.PRELOADED_MODULES: modules})
    ray_compat.start_processes_in_own_session()
    ray_compat.start_no_usage_reporter()
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RayError) as error:
        raise UserError(f"cannot join the Ray cluster at {address}: {first_line(error)}") from error
    except Exception as error:
        if not ray_compat.start_timed_out(error):
            raise
        raise UserError(
            "Ray did not start within half a minute, so this machine is too busy: try again later"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, terminate)  # Ray installs a handler of its own
    ray_compat.reuse_prestarted_workers()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0) for node in nodes]
    found = {**ray.cluster_resources(), NODE_CPU: max(cpus)}
    if by_gpus := [node.get("CPU", 0) for node in nodes if node.get("GPU")]:
        found |= {GPU_CPU: sum(by_gpus), GPU_NODE_CPU: max(by_gpus)}
    return max_cluster_resources(found)


def max_cluster_resources(now: dict[str, float]) -> dict[str, float]:
    """CPUs and GPUs of the cluster, including all workers that its autoscaler may add.

    Without an autoscaler, these are what it has `now`.
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
    if largest.get("GPU"):
        added |= {GPU_CPU: added["CPU"], GPU_NODE_CPU: added[NODE_CPU]}
    return {**now, **{key: max(now.get(key, 0), count) for key, count in added.items()}}


@dataclass(frozen=True)
class TrialResources:
    """What one trial gets, and how many trials run at a time."""

    cpus: int
    gpus: float
    threads: int
    concurrent: int


def allocate_resources(
    options: Options, resources: dict[str, float], on_a_gpu: int = 1
) -> TrialResources:
    """Divides a cluster's CPUs and GPUs among trials.

    Args:
        on_a_gpu: how many trials may share one (`gpus.trials_on_a_gpu`).

    Raises UserError if a trial asks for more than there is.
    """
    if resources.get("GPU") and options.gpus_per_trial != 0:  # a trial runs where GPUs are
        names = (("CPU", GPU_CPU), (NODE_CPU, GPU_NODE_CPU))
        resources = resources | {name: resources[by] for name, by in names if by in resources}
    cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    trial_gpus = options.gpus_per_trial
    if trial_gpus is None:
        trial_gpus = _share_of_gpus(options, cpus, gpus, on_a_gpu) if gpus else 0.0
    node = int(resources.get(NODE_CPU, cpus))  # a trial runs on one node
    least, most = options.cpus_per_trial or 1, options.max_concurrent
    if (trial_gpus > gpus or least > node) and environment.in_kuberay() and most:
        # Its autoscaler adds machines that Ray knows nothing of before.
        return TrialResources(least, trial_gpus, threads=least, concurrent=most)
    if trial_gpus > gpus or least > node:
        raise UserError(
            f"a trial asks for {least} CPUs and {trial_gpus:g} GPUs, but "
            f"there are {node} on a node and {gpus:g}: lower --cpus-per-trial or --gpus-per-trial"
        )
    by_gpu = _fit_on_gpus(gpus, trial_gpus) if trial_gpus else cpus
    concurrent = min(most or cpus, options.num_trials, by_gpu)
    trial_cpus = options.cpus_per_trial or min(node, max(1, cpus // concurrent))
    while (
        trial_cpus > 1 and not options.cpus_per_trial and _fit(cpus, node, trial_cpus) < concurrent
    ):
        trial_cpus -= 1
    at_once = max(1, min(concurrent, _fit(cpus, node, trial_cpus)))
    return TrialResources(trial_cpus, trial_gpus, threads=trial_cpus, concurrent=at_once)


def _share_of_gpus(options: Options, cpus: int, gpus: float, on_a_gpu: int) -> float:
    """A trial's part: with many GPUs a larger one than memory asks for.

    Trials that run at the same time learn nothing from one another; and Ray fills one GPU before it
    uses the next, so that with fewer trials than parts some would be left idle.
    """
    most = min(options.max_concurrent or cpus, cpus // (options.cpus_per_trial or 1))
    at_a_time = min(most, max(on_a_gpu, options.num_trials // 4), options.num_trials)
    most_on_one = int(max(1, min(on_a_gpu, at_a_time // gpus)))
    return 1 / 2 ** (most_on_one.bit_length() - 1)  # 1, 1/2, 1/4, …


def _fit(cpus: int, node: int, each: int) -> int:
    """How many trials of `each` CPUs run at a time on nodes like the largest one."""
    return cpus // node * (node // each) + cpus % node // each


def _fit_on_gpus(gpus: float, each: float) -> int:
    """The same of GPUs: a trial has whole ones, or a part of one."""
    whole = int(gpus / each + 1e-6)
    return whole if each >= 1 else min(whole, max(1, int(gpus)) * int(1 / each + 1e-6))
