"""Faults of a cluster: raylets, networks, whole hosts, the tracking server."""

from __future__ import annotations

import time

from tests.faults.hosts import SHARED, SweepOnHosts
from tests.faults.sweep import PATIENCE, Fault


def kill_raylets(sweep: SweepOnHosts) -> None:
    assert sweep.hosts is not None
    sweep.start_driver()
    for per_trial, host in ((0.3, "worker-1"), (0.8, "worker-2")):
        sweep.wait_for_epochs(per_trial)
        sweep.hosts.kill_process(host, "[r]aylet/raylet")
        time.sleep(10)
        sweep.hosts.start_worker(host)
    sweep.wait_for_end()


def cut_network(sweep: SweepOnHosts) -> None:
    assert sweep.hosts is not None
    sweep.start_driver()
    sweep.wait_for_epochs(0.3)
    sweep.hosts.set_cable("worker-1", "down")
    time.sleep(60)
    sweep.hosts.set_cable("worker-1", "up")
    sweep.wait_for_end()
    sweep.hosts.start_worker("worker-1")


def lose_host(sweep: SweepOnHosts) -> None:
    assert sweep.hosts is not None
    sweep.start_driver()
    sweep.wait_for_epochs(0.3)
    sweep.hosts.hosts["worker-2"].kill()
    sweep.wait_for_end()
    sweep.hosts.restart_host("worker-2")
    sweep.hosts.start_worker("worker-2")


def preempt_spot_host(sweep: SweepOnHosts) -> None:
    assert sweep.hosts is not None
    sweep.start_driver()
    sweep.wait_for_epochs(0.3)
    notice = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot"
    head = sweep.hosts.hosts["head"].address
    sweep.hosts.run_on(
        "worker-2",
        f"ray drain-node --address {head}:6379 {notice} --deadline-remaining-seconds 30",
    )
    time.sleep(30)
    sweep.hosts.hosts["worker-2"].kill()
    sweep.wait_for_end()
    sweep.hosts.restart_host("worker-2")
    sweep.hosts.start_worker("worker-2")


def restart_head(sweep: SweepOnHosts) -> None:
    assert sweep.hosts is not None
    sweep.start_driver()
    sweep.wait_for_epochs(0.5)
    sweep.hosts.restart_host("head")
    sweep.process.wait(timeout=PATIENCE)
    sweep.hosts.start_cluster()
    sweep.start_driver()
    sweep.wait_for_end()


def stop_mlflow(sweep: SweepOnHosts) -> None:
    assert sweep.hosts is not None
    sweep.start_driver()
    sweep.wait_for_epochs(0.3)
    sweep.hosts.kill_process("head", "[m]lflow[ .]server")
    stop = f"/usr/lib/postgresql/*/bin/pg_ctl -D {SHARED}/mlflow/database -m immediate stop"
    sweep.hosts.run_on("head", f"cd /; runuser -u postgres -- {stop}")
    time.sleep(120)
    sweep.hosts.run_on("head", f"bash cluster/mlflow.sh {SHARED}")
    sweep.wait_for_end()


FAULTS = {
    2: Fault("raylets of 2 hosts killed", kill_raylets, on_hosts=True, seconds=1),
    3: Fault("a host's network cut for 60 s", cut_network, on_hosts=True, seconds=3),
    4: Fault("a host gone for good", lose_host, on_hosts=True, seconds=1),
    5: Fault("spot notice, gone 30 s later", preempt_spot_host, on_hosts=True, seconds=2),
    7: Fault("head restarted, resumed", restart_head, on_hosts=True, seconds=1),
    8: Fault("MLflow and its database away for 120 s", stop_mlflow, on_hosts=True, seconds=3),
}
