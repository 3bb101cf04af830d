"""The commands that a sweep prints run when pasted into a fresh shell, without the environment."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.integration.harness import answers
from tests.paths import SWEEPS

TINY = ["--data", "house-numbers", "--width", "0.1", "--train-size", "200", "--batch-size", "50"]
TINY += ["--labels", "20", "--draws", "1", "--epochs", "2", "--num-trials", "3"]
TINY += ["--max-concurrent", "1"]


def fresh_shell(command, folder, **more):
    """Starts a command in a shell that knows nothing of this process's environment."""
    keep = {k: os.environ[k] for k in ("HOME", "ALI_CACHE") if k in os.environ}
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **keep}
    if "PYTHONPATH" in os.environ:  # where the tests run on another copy than the installed one
        env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=folder, env=env, start_new_session=True, **pipes, **more
    )


def finished(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("a folder's place")  # a space and a quote


@pytest.fixture(scope="module")
def stopped(folder):
    """What a sweep printed that Ctrl-C ended after its first trial."""
    command = [sys.executable, str(SWEEPS / "svhn.py"), "--name", "first try", *TINY]
    process = fresh_shell(f"exec {shlex.join(command)}", folder)
    said = []
    for line in process.stdout:
        said.append(line)
        if " ended]" in line:
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130, "".join(said)
    return "".join(said)


@pytest.fixture(scope="module")
def report(folder, stopped):
    """What the resumed sweep printed: the command is the one that was printed."""
    (command,) = re.findall(r"stopped; resume with: (.*)", stopped)
    return finished(fresh_shell(command, folder))


@pytest.mark.slow
def test_resume_after_ctrl_c(report):
    assert "resumes" in report or "ended before" in report
    assert "[3/3 ended]" in report


@pytest.mark.slow
def test_train_the_best(folder, report):
    # A doubt may follow the label, and the command is then on a line of its own.
    (command,) = re.findall(r"train the best.*?(?: {2,}|\n +)(.*)", report)
    out = finished(fresh_shell(f"{command} --svms 2", folder))
    assert "registered as model ali-first try" in out


@pytest.mark.slow
def test_compare_the_runs(folder, report):
    (command,) = re.findall(r"compare the runs +(.*)", report)
    port = 5000 + os.getpid() % 1000
    process = fresh_shell(f"exec {command} --port {port}", folder)
    try:
        log = folder / "ui.log"
        log.write_text(f"{command} does not answer")
        answers(f"http://127.0.0.1:{port}/health", log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)
