"""Makes the pictures of a sweep in docs/: MLflow's UI, report, dashboard in Chromium; a terminal.

    python docs/screenshots.py                                                   of `make sweep`'s
    python docs/screenshots.py --output-dir runs --name laptop --only ui report    some of them

Needs Debian's chromium and chromium-driver, and the extra `test` (selenium, optuna-dashboard).
terminal.svg is of a sweep of its own, of a minute on two idle cores. Each picture is a function
below with the decorator `picture`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1400, 900
PATIENCE = 120  # seconds for a page, or a server, on a busy machine
CHARTS = "[data-testid=experiment-view-compare-runs-chart-area]"
PICTURES: dict[str, Callable[[Page, Path], None]] = {}


@contextlib.contextmanager
def browser(width: int = WIDTH, height: int = HEIGHT) -> Iterator[Any]:
    """Chromium without a window, and with an empty profile."""
    from selenium import webdriver

    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        raise SystemExit("this takes Debian's packages chromium and chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{option}")
        options.add_argument(f"--user-data-dir={profile}")
        options.add_argument(f"--window-size={width},{height}")
        chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield chromium
        finally:
            chromium.quit()


@contextlib.contextmanager
def serving(script: str, *arguments: object) -> Iterator[list[str]]:
    """Within, a script of sweeps/ serves; gives the lines that it has printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, str(ROOT / "sweeps" / script), *map(str, arguments), "--port", port]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, text=True, start_new_session=True, **quiet)
    try:
        assert server.stdout is not None
        lines = []
        for line in iter(server.stdout.readline, ""):
            lines.append(line.strip())
            if line.startswith(("serving", "open")):
                break
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}", timeout=5):
                break
            time.sleep(0.2)
        yield lines
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def served(output_dir: Path, name: str) -> Iterator[dict[str, str]]:
    """Within, MLflow's UI is served; gives the printed links of a sweep, by what they open."""
    with serving("ui.py", "--name", name, "--output-dir", output_dir) as lines:
        words = [line.rpartition(" ") for line in lines if "://" in line]
        yield {what.strip(): link for what, _, link in words}


@dataclass
class Page:
    """A page in the browser, and how it is looked at."""

    chromium: Any
    links: dict[str, str]  # that open a sweep in MLflow's UI, by what they open
    name: str  # of the sweep
    output_dir: Path = Path("runs")

    @property
    def sweep(self) -> list[str]:
        """The arguments by which a script finds it."""
        return ["--name", self.name, "--output-dir", str(self.output_dir)]

    def resize(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, what: str) -> None:
        """Opens one of the links, as if for the first time."""
        self.resize()
        self.chromium.get("about:blank")
        self.chromium.get(self.links[what])

    def wait(self, css: str, text: str = "") -> Any:
        """The first element that fits and holds the text, once it is there."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # replaced while we look at it
                for element in self.chromium.find_elements("css selector", css):
                    if element.is_displayed() and text in element.text:
                        return element
            time.sleep(0.2)
        raise TimeoutError(f"no {css!r} with {text!r} on the page")

    def click(self, css: str, text: str = "") -> None:
        self.wait(css, text).click()

    def tidy(self) -> None:
        """Closes what MLflow shows to a new user beside the page: its assistant, a notice."""
        for name in ("Close", "close"):
            for button in self.chromium.find_elements("css selector", f"[aria-label={name}]"):
                with contextlib.suppress(Exception):  # it was behind another one
                    button.click()

    def show(self, what: str, css: str, text: str = "") -> None:
        """Opens one of the links, and waits until it is drawn, with nothing beside it."""
        self.open(what)
        self.wait(css, text)
        self.settle()
        self.tidy()
        self.settle()

    def settle(self, seconds: float = 3.0) -> None:
        """Waits for what is drawn without an element to wait for."""
        time.sleep(seconds)

    def save(self, path: Path) -> None:
        self.chromium.save_screenshot(str(path))


def picture(file: str) -> Callable[..., Callable[[Page, Path], None]]:
    """Has the function make a file of docs/."""

    def known(function: Callable[[Page, Path], None]) -> Callable[[Page, Path], None]:
        PICTURES[file] = function
        return function

    return known


@picture("ui.png")
def ui(page: Page, path: Path) -> None:
    """What the printed link opens: the trials, the best first."""
    page.show("all trials", ".ag-center-cols-container [col-id]", "0.")
    page.save(path)


@picture("compare.png")
def compare(page: Page, path: Path) -> None:
    """Another link: pictures of the best two trials side by side, by epoch."""
    page.show("the best two", f"{CHARTS} img")
    page.save(path)


@picture("front-page.png")
def front_page(page: Page, path: Path) -> None:
    """The sweep's run, its description opened."""
    page.show("front page", "strong", ".")
    for more in page.chromium.find_elements("xpath", "//*[text()='Show more']")[:1]:
        more.click()
    page.settle()
    page.save(path)


@picture("report.png")
def report(page: Page, path: Path) -> None:
    """The page of `report.py --html`."""
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder, "report.html")
        command = [sys.executable, str(ROOT / "sweeps" / "report.py"), *page.sweep]
        subprocess.run([*command, "--html", str(html)], check=True, stdout=subprocess.DEVNULL)
        page.resize(height=1600)
        page.chromium.get(html.as_uri())
        page.settle()
        page.save(path)


@picture("dashboard.png")
def dashboard(page: Page, path: Path) -> None:
    """Optuna's dashboard."""
    with serving("dashboard.py", *page.sweep) as lines:
        page.resize()
        page.chromium.get(lines[-1].split()[1])
        page.settle(10)
        page.save(path)


@picture("terminal.svg")
def terminal(page: Page, path: Path, width: int = 110, height: int = 24) -> None:
    """The terminal of `sweeps/mixture.py` when three of its eight trials have ended."""
    from rich.console import Console
    from rich.text import Text

    sys.path.insert(0, str(ROOT))
    from tests.terminal import Terminal

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "sweeps" / "mixture.py"), "--num-trials", "8"]
        command += ["--output-dir", folder]
        shown = Terminal(lambda: os.execv(command[0], command), width, height)
        shown.wait_for("3 of 8 trials ended", "·  4/9  ", seconds=600)
        screen = "\n".join(shown.coloured).rstrip()
        for _ in range(2):
            os.kill(shown.pid, signal.SIGINT)
        shown.end()
    drawn = Console(record=True, width=width, file=io.StringIO(), legacy_windows=False)
    drawn.print(Text.from_ansi(screen), soft_wrap=True)
    drawn.print()  # whatever the font, the last line is not cut
    svg = drawn.export_svg(title="python sweeps/mixture.py --num-trials 8")
    path.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S))  # of another server


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="laptop", help="of the sweep")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="of all sweeps")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="folder of the pictures")
    stems = {Path(file).stem: file for file in PICTURES}
    parser.add_argument("--only", nargs="*", choices=stems, help="default: all")
    options = parser.parse_args()
    with served(options.output_dir, options.name) as links, browser() as chromium:
        page = Page(chromium, links, options.name, options.output_dir)
        for stem in options.only or stems:
            path = options.to / stems[stem]
            PICTURES[stems[stem]](page, path)
            print(path, flush=True)


if __name__ == "__main__":
    main()
