"""Shows the machines of the cluster that this one belongs to: `ray exec FILE.yaml 'python …'`.

python ali-sweeps/cluster/nodes.py             what is there
python ali-sweeps/cluster/nodes.py --wait 3    waits until there are 3
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import ray

from ali.cli import main, parse_args
from ali.errors import UserError
from sweeps.engine.cluster import find_cluster
from sweeps.engine.ray_compat import unreachable


@dataclass(frozen=True)
class NodesOptions:
    """The machines of a running Ray cluster."""

    wait: int = 0
    """Machines to wait for; 0: shows those that there are."""
    seconds: float = 600
    """How long to wait for them."""


def nodes(options: NodesOptions) -> None:
    until = time.monotonic() + options.seconds
    if (found := find_cluster()) is None:
        raise UserError("no Ray of yours runs on this machine: `ray up` starts it")
    while why := unreachable(found[0]):  # it may be starting
        if time.monotonic() > until or not options.wait:
            raise UserError(f"the Ray cluster at {found[0]} does not answer: {why}")
        time.sleep(1)
    ray.init(address=found[0], log_to_driver=False, logging_level=logging.ERROR)
    while len(alive := [node for node in ray.nodes() if node["Alive"]]) < options.wait:
        if time.monotonic() > until:
            raise UserError(
                f"{len(alive)} of {options.wait} machines after {options.seconds:.0f} s"
            )
        time.sleep(1)
    print(f"{'host':24}{'address':16}{'CPUs':>5}{'GPUs':>5}")
    for node in sorted(alive, key=lambda node: node["NodeManagerAddress"]):
        has = node["Resources"]
        print(
            f"{node['NodeManagerHostname']:24}{node['NodeManagerAddress']:16}"
            f"{has.get('CPU', 0):5.0f}{has.get('GPU', 0):5.0f}"
        )


if __name__ == "__main__":
    main(lambda: nodes(parse_args(NodesOptions)))
