"""Plays several machines on this one, and runs a sweep over them with Ray's own commands.

    make testbed                        three hosts, `ray up`, `ray submit`, `ray exec`, `ray down`
    make testbed ARGS=--kill-host       the same, and a host is switched off in the middle

A host is a set of Linux namespaces: its own network address, processes, /tmp and home; its system
is this machine's, read-only; it has an sshd and nothing else running. A cable (veth) leads from
each host to a switch (a bridge in a namespace of its own), so no packet passes this machine's
network. One more host, the desk, runs the commands that a user would type. All hosts are children
of this process and are gone when it ends, however it ends. Needs root, iproute2, openssh-server,
rsync and postgresql.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from ali.cli import main, parse_args, terminable
from ali.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
HOST = Path(__file__).with_name("host.sh")
SVHN_CROPS = PROJECT.parent / "shared" / "data" / "svhn"
CLUSTER = "cluster/on_prem.yaml"
SHARED = "/srv/ali"  # on every host
NETWORK = "10.77.0"  # exists in the hosts' namespaces alone
DESK = "desk"
COMMANDS = ("ip", "unshare", "nsenter", "setpriv", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")
# What ends with this process's parent thread, killed by the kernel: no host outlives a kill -9.
TIED = ("setpriv", "--pdeathsig", "KILL")


def missing() -> str | None:
    """Why this machine cannot play hosts, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need Linux and root"
    if lacking := [name for name in COMMANDS if shutil.which(name) is None]:
        return f"there is no {', '.join(lacking)}: apt-get install iproute2 openssh-server rsync"
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return "there is no PostgreSQL: apt-get install postgresql"
    probe = ["unshare", "--net", "--mount", "--pid", "--fork", "--uts", "true"]
    if subprocess.run(probe, capture_output=True).returncode:
        return "the kernel refuses namespaces here"
    return None


class Host:
    """A running host; `address` is its address on the testbed's network."""

    def __init__(self, name: str, address: str, folder: Path, shared: Path) -> None:
        self.name, self.address, self.folder = name, address, folder
        (folder / "home").mkdir(parents=True, exist_ok=True)  # a host that starts anew has its disk
        self._log = (folder / "host.log").open("w")
        command = ["bash", HOST, folder, name, sys.base_prefix, sys.prefix, PROJECT, shared]
        spaces = ("--net", "--mount", "--pid", "--fork", "--uts", "--kill-child")
        self._process = subprocess.Popen(
            [*TIED, "unshare", *spaces, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def init(self) -> int:
        """Process 1 of the host, as this machine numbers it."""
        task = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return int(_wait(lambda: task.read_text().split(), self.name)[0])

    def plug(self, switch: int) -> None:
        """Connects the host to the switch, given by a process in its network namespace."""
        cable, init = f"to-{self.name}", str(self.init)
        _ip(
            "link",
            "add",
            cable,
            "netns",
            str(switch),
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            init,
        )
        _ip("link", "set", cable, "master", "switch", "up", at=switch)
        _ip("link", "set", "lo", "up", at=self.init)
        _ip("addr", "add", f"{self.address}/24", "dev", "eth0", at=self.init)
        _ip("link", "set", "eth0", "up", at=self.init)
        # Leads nowhere, but a program that asks which address leads out learns the host's.
        _ip("route", "add", "default", "dev", "eth0", at=self.init)

    def command(self, command: str) -> list[str]:
        """The command line that runs a shell command on the host, from its project folder."""
        enter = ["nsenter", "-t", str(self.init), "-n", "-m", "-p", "-u", "chroot"]
        path = f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        shell = ["env", "-i", "HOME=/root", "USER=root", "TERM=dumb", f"PATH={path}", "bash", "-c"]
        return [*enter, str(self.folder / "root"), *shell, f"cd; cd ali-sweeps; {command}"]

    def kill(self) -> None:
        """Switches the host off: its processes and its network end at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._log.close()


class Testbed:
    """`hosts` hosts, of which the first is the head, and the desk; use it as a context manager."""

    def __init__(self, hosts: int, data: Path | None = None) -> None:
        if why := missing():
            raise UserError(f"no testbed on this machine: {why}")
        self._names = ["head", *(f"worker-{n}" for n in range(1, hosts))]
        self._data = data
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Testbed:
        self.folder = Path(tempfile.mkdtemp(prefix="ali-testbed-"))
        self.folder.chmod(0o755)  # PostgreSQL's user passes through
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.kill()
        self._switch.kill()
        self._switch.wait()
        shutil.rmtree(self.folder)

    def _start(self) -> None:
        if self._data:
            shutil.copytree(self._data, self.shared / "data" / "svhn")
        self._switch = subprocess.Popen(
            [*TIED, "unshare", "--net", "sleep", "infinity"], start_new_session=True
        )
        switch = self._switch.pid
        outside = os.readlink("/proc/self/ns/net")
        inside = Path(f"/proc/{switch}/ns/net")
        _wait(lambda: os.readlink(inside) != outside, "the switch")
        _ip("link", "add", "switch", "type", "bridge", at=switch)
        _ip("link", "set", "switch", "up", at=switch)
        key = self.folder / "key"
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
        for number, name in enumerate([DESK, *self._names], 9):
            host = Host(name, f"{NETWORK}.{number}", self.folder / name, self.shared)
            self.hosts[name] = host
            _fill_home(host.folder / "home", key if name == DESK else None, key.with_suffix(".pub"))
            host.plug(switch)
        home = self.hosts[DESK].folder / "home"
        leave_out = shutil.ignore_patterns(".*", "build", "runs", "__pycache__", "*.egg-info")
        shutil.copytree(PROJECT, home / "ali-sweeps", ignore=leave_out)
        self._edit(home / "ali-sweeps" / CLUSTER)
        for name in self._names:
            self.wait_for_ssh(name)

    def _edit(self, cluster: Path) -> None:
        """Changes in the cluster file what it marks CHANGE."""
        config = yaml.safe_load(cluster.read_text())
        head, *workers = (self.hosts[name].address for name in self._names)
        config["provider"].update(head_ip=head, worker_ips=workers)
        config["auth"]["ssh_user"] = "root"
        for role in ("head", "worker"):  # a small machine each: they share this one's cores
            *before, start = config[f"{role}_start_ray_commands"]
            small = "--num-cpus=1 --object-store-memory=100000000"
            config[f"{role}_start_ray_commands"] = [*before, f"{start} {small}"]
        cluster.write_text(yaml.safe_dump(config, sort_keys=False))

    def wait_for_ssh(self, name: str) -> None:
        """Waits until a host answers the desk by ssh."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        command = f"ssh {options} -o ConnectTimeout=2 {self.hosts[name].address} true"

        def answers() -> bool:
            return subprocess.run(self.hosts[DESK].command(command)).returncode == 0

        _wait(answers, f"sshd of {name}")

    def run(self, command: str, on_line: Callable[[str], None] | None = None) -> str:
        """Runs a shell command at the desk and prints it with its output, which is returned.

        Args:
            on_line: called with each line of the output as it comes.

        Raises RuntimeError if the command fails.
        """
        print(f"\n$ {command}", flush=True)
        process = subprocess.Popen(
            self.hosts[DESK].command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        lines = []
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                line = _plain(line)
                print(line, end="", flush=True)
                lines.append(line)
                if on_line:
                    on_line(line)
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode} of: {command}")
        return "".join(lines)

    def processes(self, name: str, pattern: str) -> list[str]:
        """The processes of a host whose command line matches."""
        command = self.hosts[name].command(f"pgrep -af '{pattern}'")
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def _fill_home(home: Path, key: Path | None, public: Path) -> None:
    """Writes what ssh, sshd, pip and uv read on a host; the desk also has the `key`."""
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700)
    if key:
        shutil.copy(key, ssh / "id_ed25519")
    shutil.copy(public, ssh / "authorized_keys")
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "host_key")])
    config = ("HostKey /root/.ssh/host_key", "PasswordAuthentication no", "PidFile none")
    (ssh / "sshd_config").write_text("\n".join(config) + "\n")
    (home / ".bashrc").touch()
    if not key:
        own = home / ".ali-sweeps"
        own.mkdir()
        (own / "venv").symlink_to(sys.prefix)
        # No host has a way to a package index: what is to be installed must be there.
        settings = {
            "uv/uv.toml": "no-index = true\n[pip]\nno-build-isolation = true\n",
            "pip/pip.conf": "[install]\nno-index = true\n",
        }
        for name, text in settings.items():
            file = home / ".config" / name
            file.parent.mkdir(parents=True)
            file.write_text(text)


def _ip(*arguments: str, at: int | None = None) -> None:
    inside = ["nsenter", "-t", str(at), "-n"] if at else []
    _run([*inside, "ip", *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait(ready: Callable[[], object], what: str, seconds: float = 30) -> list[str]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if found := ready():
                return found if isinstance(found, list) else []
        time.sleep(0.1)
    raise RuntimeError(f"{what}: not ready after {seconds:.0f} s")


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line)


@dataclass(frozen=True)
class Options:
    """A sweep over several hosts, all of them on this machine."""

    hosts: int = 3
    """Hosts, the head among them; each has one core."""
    num_trials: int = 9
    """Trials of the sweep."""
    epochs: int = 4
    """Epochs of a trial."""
    train_size: int = 600
    """Images that a trial trains on."""
    data_dir: Path | None = SVHN_CROPS if SVHN_CROPS.is_dir() else None
    """Folder with SVHN's .mat files; without one the sweep is over the embedded house numbers."""
    kill_host: bool = False
    """Switch the last host off while a trial runs on it."""


class _Killer:
    """Reads the sweep's output; once a trial has ended and another trains on a host, kills that."""

    def __init__(self, bed: Testbed, name: str) -> None:
        self._bed, self._name, self._ended, self.done = bed, name, False, False

    def __call__(self, line: str) -> None:
        self._ended |= " ended]" in line
        if self.done or not self._ended or " epoch " not in line:
            return
        if training := self._bed.processes(self._name, "^ray::.*train"):
            self._bed.hosts[self._name].kill()
            self.done = True
            print(f"--- {self._name} is switched off; it was running {training[0]}", flush=True)


def testbed(options: Options) -> int:
    if options.hosts < 2:
        raise UserError(f"--hosts must be at least 2, not {options.hosts}")
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise UserError(f"--data-dir {options.data_dir} is not a folder")
    data = "svhn" if options.data_dir else "house-numbers"
    sweep = (
        f"--name testbed --data {data} --train-size {options.train_size} --width 0.125 "
        f"--batch-size 50 --epochs {options.epochs} --num-trials {options.num_trials} --draws 1 "
        "--race 0"
    )
    audit = f"python ali-sweeps/tests/audit.py testbed {options.num_trials}"
    with terminable(), Testbed(options.hosts, options.data_dir) as bed:
        bed.run("(umask 077; ray get-auth-token --generate > /dev/null); ls -l ~/.ray/auth_token")
        bed.run(f"ray up -y --log-style=pretty --log-color=false {CLUSTER}")
        nodes = f"python ali-sweeps/cluster/nodes.py --wait {options.hosts}"
        bed.run(f"ray exec {CLUSTER} '{nodes}'")
        killer = _Killer(bed, f"worker-{options.hosts - 1}") if options.kill_host else None
        bed.run(f"ray submit {CLUSTER} sweeps/svhn.py {sweep}", killer)
        if killer and not killer.done:
            raise RuntimeError("the sweep ended before a host was killed: give it more trials")
        bed.run(f"ray exec {CLUSTER} '{audit}'")
        bed.run(f"ray down -y --log-style=pretty --log-color=false {CLUSTER}")
    return 0


if __name__ == "__main__":
    main(lambda: testbed(parse_args(Options)))
