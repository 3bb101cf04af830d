"""Makes the screenshots in docs/: report, front page in MLflow, Optuna's dashboard, in Chromium.

    python docs/report_screenshots.py --output-dir runs --name laptop                  all of them
    python docs/report_screenshots.py --output-dir runs --name laptop --only report    one

Needs Debian's chromium and chromium-driver, and `pip install selenium`. Each picture is a function
below, whose name is that of the file, docs/NAME.png.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from screenshots import browser

from sweeps import Location
from sweeps.engine.options import saved_options
from sweeps.engine.tracking import connect, experiment_of, require_sweep

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1400, 1000
PATIENCE = 120  # seconds for a server on a busy machine
DRAWN = 3.0  # seconds for what is drawn without an element to wait for


@contextlib.contextmanager
def serving(*command: object) -> Iterator[str]:
    """Within, a server runs whose command ends with --port; gives its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = [sys.executable, *map(str, command), "--port", str(port)]
    server = subprocess.Popen(words, start_new_session=True, **quiet)
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}", timeout=5):
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def report(chromium: Any, sweep: Location) -> None:
    """The page of `report.py --html`."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        command = [sys.executable, str(ROOT / "sweeps" / "report.py"), *arguments(sweep)]
        subprocess.run([*command, "--html", str(page)], check=True, stdout=subprocess.DEVNULL)
        chromium.get(page.as_uri())
        time.sleep(DRAWN)


def report_figures(chromium: Any, sweep: Location) -> None:
    """The same page, its figures."""
    report(chromium, sweep)
    chromium.execute_script("document.querySelector('#figures').scrollIntoView()")
    time.sleep(DRAWN)


def front_page(chromium: Any, sweep: Location) -> None:
    """The sweep's run in MLflow, its description opened."""
    options = saved_options(sweep)
    client = connect(options.uri, existing=True)
    experiment = experiment_of(client, options.name)
    run = require_sweep(client, experiment, options.name).info.run_id
    with serving("-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", options.uri) as at:
        path = f"#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
        chromium.get(f"{at}/{path}")
        time.sleep(3 * DRAWN)
        for element in chromium.find_elements("xpath", "//*[text()='Show more']")[:1]:
            element.click()
        time.sleep(DRAWN)


def dashboard(chromium: Any, sweep: Location) -> None:
    """Optuna's dashboard."""
    with serving(ROOT / "sweeps" / "dashboard.py", *arguments(sweep)) as address:
        chromium.get(f"{address}/dashboard/studies/0")
        time.sleep(3 * DRAWN)


PICTURES: dict[str, Callable[[Any, Location], None]] = {
    "report": report,
    "report-figures": report_figures,
    "front-page": front_page,
    "dashboard": dashboard,
}


def arguments(sweep: Location) -> list[str]:
    return ["--name", sweep.name, "--output-dir", str(sweep.output_dir)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="laptop", help="of the sweep")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="of all sweeps")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="folder of the pictures")
    parser.add_argument("--only", nargs="*", choices=PICTURES, help="default: all")
    options = parser.parse_args()
    sweep = Location(name=options.name, output_dir=options.output_dir)
    for name in options.only or PICTURES:
        with browser(WIDTH, HEIGHT) as chromium:
            PICTURES[name](chromium, sweep)
            chromium.save_screenshot(str(options.to / f"{name}.png"))
            print(options.to / f"{name}.png")


if __name__ == "__main__":
    main()
