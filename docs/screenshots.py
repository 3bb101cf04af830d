"""Makes the screenshots in docs/: a sweep in MLflow's UI, seen in Chromium.

    python docs/screenshots.py --output-dir runs --name laptop                all of them
    python docs/screenshots.py --output-dir runs --name laptop --only ui      one

Needs Debian's chromium and chromium-driver, and `pip install selenium` (the extra `test`). Each
picture is a function below, whose name is that of the file, docs/NAME.png; to add one, add a
function with the decorator `picture`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
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
PATIENCE = 60  # seconds for a page, or the server, on a busy machine
CHARTS = "[data-testid=experiment-view-compare-runs-chart-area]"
PICTURES: dict[str, Callable[[Page], None]] = {}


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
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            yield chromium
        finally:
            chromium.quit()


@contextlib.contextmanager
def served(output_dir: Path, name: str) -> Iterator[dict[str, str]]:
    """Within, `sweeps/ui.py` serves; gives the links that it printed, by what they open."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, str(ROOT / "sweeps" / "ui.py"), "--name", name, "--port", port]
    command += ["--output-dir", str(output_dir)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            links = {}
            for line in iter(server.stdout.readline, ""):
                if line.startswith("serving"):
                    break
                what, _, link = line.strip().rpartition(" ")
                links[what.strip()] = link
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(0.2)
            yield links
        finally:
            server.terminate()


@dataclass
class Page:
    """A page in the browser, and how it is looked at."""

    chromium: Any
    links: dict[str, str]
    sweep: str

    def open(self, what: str) -> None:
        """Opens one of the links, as if for the first time."""
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

    def settle(self, seconds: float = 2.0) -> None:
        """Waits for what is drawn without an element to wait for."""
        time.sleep(seconds)

    def save(self, path: Path) -> None:
        self.chromium.save_screenshot(str(path))


def picture(function: Callable[[Page], None]) -> Callable[[Page], None]:
    """Makes a screenshot of what the function shows."""
    PICTURES[function.__name__] = function
    return function


@picture
def ui(page: Page) -> None:
    """What the printed link opens: the trials, the best first."""
    page.open("all trials")
    page.wait(".ag-center-cols-container [col-id]", "0.")
    page.settle()


@picture
def charts(page: Page) -> None:
    """One click further: pictures of all trials, and how the objective depends on the search."""
    ui(page)
    page.click("label:has(input[value=CHART])")
    page.wait(f"{CHARTS} img")
    page.chromium.execute_script("arguments[0].scrollTo(0, 950)", page.wait(CHARTS))
    page.settle(4)


@picture
def compare(page: Page) -> None:
    """The other link: pictures of the best two trials side by side, by epoch."""
    page.open("the best two")
    page.wait(f"{CHARTS} img")
    page.settle(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", default="laptop", help="of the sweep")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="of all sweeps")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", help="folder of the pictures")
    parser.add_argument("--only", nargs="*", choices=PICTURES, help="default: all")
    options = parser.parse_args()
    with served(options.output_dir, options.name) as links, browser() as chromium:
        for name in options.only or PICTURES:
            PICTURES[name](page := Page(chromium, links, options.name))
            page.save(options.to / f"{name}.png")
            print(options.to / f"{name}.png")


if __name__ == "__main__":
    main()
