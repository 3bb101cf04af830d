"""Hosts of the testbed with one Ray cluster, and a toy sweep whose driver runs on the head."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from tests.audit import Findings
from tests.faults.sweep import PATIENCE, SweepUnderTest
from tests.testbed.testbed import DESK, SHARED, Host, Testbed

RAY = "--num-cpus=1 --object-store-memory=100000000"  # of a host: they share this machine's cores
ENVIRONMENT = "touch ~/.ali-sweeps/env; . ~/.ali-sweeps/env; export OMP_NUM_THREADS=1"


class Hosts(Testbed):
    """A head and workers in one Ray cluster, and MLflow over PostgreSQL on the head.

    What `ray up` does by ssh is done here by a shell on each host, with the same scripts.
    """

    def __enter__(self) -> Hosts:
        super().__enter__()
        try:
            self._install()
            self.start_cluster()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _install(self) -> None:
        token = secrets.token_hex(32)
        for name in self._names:
            home = self.hosts[name].folder / "home"
            shutil.copytree(self.hosts[DESK].folder / "home" / "ali-sweeps", home / "ali-sweeps")
            (home / ".ray").mkdir()
            (home / ".ray" / "auth_token").write_text(token)
        nodes = [self._popen(name, f"bash cluster/node.sh {SHARED}") for name in self._names]
        codes = [node.wait() for node in nodes]
        if any(codes):
            logs = [self.hosts[name].folder / "shell.log" for name in self._names]
            raise RuntimeError("\n".join(log.read_text()[-1000:] for log in logs))

    def start_cluster(self) -> None:
        """MLflow and Ray on the head, Ray on the others."""
        self.run_on("head", f"bash cluster/mlflow.sh {SHARED}")
        self.run_on("head", f"ray stop --force; ray start --head --port=6379 {RAY}")
        for name in self._names[1:]:
            self.start_worker(name)
        self.wait_for_all_nodes()

    def start_worker(self, name: str) -> None:
        """Starts Ray on a worker, anew if it ran."""
        head = self.hosts["head"].address
        self.run_on(name, f"ray stop --force; ray start --address={head}:6379 {RAY}")

    def wait_for_all_nodes(self) -> None:
        wait = f"--wait {len(self._names)} --seconds {PATIENCE}"
        self.run_on("head", f"python cluster/nodes.py {wait}")

    def restart_host(self, name: str) -> None:
        """Switches a host off and on: it comes back with its disk and its address."""
        old = self.hosts[name]
        old.kill()
        gone = ["nsenter", "-t", str(self._switch.pid), "-n", "ip", "link", "show", f"to-{name}"]
        while subprocess.run(gone, capture_output=True).returncode == 0:
            time.sleep(0.1)  # the kernel removes the cable some time after the host
        self.hosts[name] = Host(name, old.address, old.folder, self.shared)
        self.hosts[name].plug(self._switch.pid)
        self.wait_for_ssh(name)

    def set_cable(self, name: str, state: str) -> None:
        """Pulls a host's cable out of the switch (`down`), or puts it back (`up`)."""
        at = ["nsenter", "-t", str(self._switch.pid), "-n"]
        subprocess.run([*at, "ip", "link", "set", f"to-{name}", state], check=True)

    def run_on(self, name: str, command: str) -> str:
        """Runs a shell command on a host; returns its output."""
        log = self.hosts[name].folder / "shell.log"
        before = log.stat().st_size if log.exists() else 0
        code = self._popen(name, command).wait(timeout=PATIENCE)
        output = log.read_text()[before:]
        if code:
            raise RuntimeError(f"{name}: exit code {code} of {command}\n{output[-2000:]}")
        return output

    def _popen(self, name: str, command: str) -> subprocess.Popen:
        # to a file: what a command leaves running would hold a pipe open
        with (self.hosts[name].folder / "shell.log").open("a") as log:
            return subprocess.Popen(
                self.hosts[name].command(f"{ENVIRONMENT}; {command}"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_process(self, name: str, pattern: str) -> None:
        """kill -9 of a host's processes whose command line matches.

        Write the pattern as `[m]lflow`, so that it does not match the shell that runs pkill.
        """
        self.run_on(name, f"pkill -9 -f '{pattern}'")


@dataclass
class SweepOnHosts(SweepUnderTest):
    """A sweep whose driver runs on the head; `folder` is on the storage that the hosts share."""

    hosts: Hosts | None = None

    def start(self, *options: str, out: Any = subprocess.PIPE) -> subprocess.Popen:
        assert self.hosts is not None
        there = f"{SHARED}/{self.folder.name}"
        variables = " ".join(f"{key}='{value}'" for key, value in self.env.items())
        command = (
            f"{ENVIRONMENT}; {variables} TOY_LOG={there}/toy.log exec python "
            f"tests/integration/toy_sweep.py --name {self.name} --output-dir {there}/runs "
        )
        return subprocess.Popen(
            self.hosts.hosts["head"].command(command + " ".join(options)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )

    def kill_everything(self) -> None:
        assert self.hosts is not None
        self.hosts.kill_process("head", "[t]oy_sweep.py")

    def examine(self) -> Findings:
        assert self.hosts is not None
        folder = f"{SHARED}/{self.folder.name}"
        audit = f"python tests/audit.py {self.name} {self.trials} --toy {folder} --json"
        return Findings(**json.loads(self.hosts.run_on("head", audit).splitlines()[-1]))
