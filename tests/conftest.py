"""Fixtures that several modules of tests share."""

import fcntl
import functools
import http.server
import importlib
import os
import signal
import subprocess
import sys
import threading

import pytest

# Under nohup, and in the background of a script, these are ignored, in all that tests start, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Under `python -O` pytest alone keeps asserts: in these, as in the tests themselves.
pytest.register_assert_rewrite("tests.audit", "tests.integration.harness", "tests.ali.cli.commands")


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A web server on this machine; gives the folder it serves and its address."""
    (tmp_path / "host").mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=tmp_path / "host")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "host", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own: (folder, function that sets its size in KiB)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True).returncode

    if mount("size=1200k"):
        pytest.skip("mounting a small file system asks for root")
    yield folder, lambda size: mount(f"remount,size={size}k")
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def foreign_link():
    """Makes a symbolic link as another user would."""
    if os.geteuid() != 0:
        pytest.skip("links of another user ask for root")

    def make(path, target):
        path.symlink_to(target)
        os.chown(path, 1234, 1234, follow_symlinks=False)

    return make


@pytest.fixture(autouse=True)
def as_it_was():
    """Undoes what a test did to the whole process: torch's threads, which decide how sums round."""
    torch = sys.modules.get("torch")
    threads = torch and torch.get_num_threads()
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads or 1)


@pytest.fixture(autouse=True, scope="module")
def no_ray_stays():
    """Ends the Ray that a script started which was refused in this process."""
    yield
    if ray := sys.modules.get("ray"):
        ray.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""


def pytest_collection_modifyitems(items):
    """Marks what crosses processes, by its folder; skips what needs a GPU where there is none."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not importlib.import_module("torch").cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture
def without_locks(monkeypatch):
    """Sets the number of the error that `flock` ends with."""

    def fail(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return fail
