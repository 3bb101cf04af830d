"""What `make` installs with: progress without a terminal, and no half-installed state."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment to install into, and the variables by which pip finds two packages alone."""
    folder = tmp_path_factory.mktemp("install")
    command = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages"]
    subprocess.run([*command, folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this Python has no pip beside its virtual environments")
    for name in ("one_of_ours", "two_of_ours"):
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            needs = "Requires-Dist: two-of-ours\n" if name.startswith("one") else ""
            about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"
            wheel.writestr(f"{info}/METADATA", about)
            tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            wheel.writestr(f"{info}/WHEEL", tag)
            files = (f"{name}/__init__.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD")
            wheel.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in files))
    only = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PYTHONPATH": ""}
    return python, {**os.environ, **only}


def install(environment, *arguments):
    python, env = environment
    return subprocess.run(
        [python, ROOT / "install.py", *arguments], env=env, capture_output=True, text=True
    )


def test_it_says_what_it_does_and_leaves_nothing_incomplete(environment):
    python, _ = environment
    done = install(environment, "one-of-ours")
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert told[0].startswith("installing one-of-ours into ") and told[-1].endswith("done")
    assert not any("\r" in line or "\x1b" in line for line in told), "this is no terminal"
    (site,) = python.parents[1].glob("lib/*/site-packages")
    (site / "one_of_ours" / "__init__.py").unlink()  # as interrupted installs leave packages
    (site / "two_of_ours-1.0.dist-info" / "RECORD").unlink()
    done = install(environment, "one-of-ours")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "incomplete, from an earlier install: one_of_ours==1.0, two_of_ours==1.0" in done.stdout
    assert (site / "one_of_ours" / "__init__.py").exists()
    assert (site / "two_of_ours-1.0.dist-info" / "RECORD").exists()


def test_a_failure_is_one(environment):
    done = install(environment, "no-package-of-ours")
    assert done.returncode == 1
    assert "No matching distribution found" in done.stderr and "run make again" in done.stderr
