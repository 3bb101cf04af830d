"""The report's page in a real browser: wide and narrow, dark, printed, without JavaScript."""

import shutil

import pytest

from sweeps.engine.reporting import page, sheet, static
from tests.sweeps.engine.reporting.sweep import Logged, sweep

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Debian's chromium is not installed"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    found, logged = sweep(), Logged()
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        page.html(found, logged, static.draw(found, logged), sheet.contact_sheet(found, logged))
    )
    return path.as_uri()


@pytest.fixture
def chromium(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{option}")
    options.add_argument(f"--user-data-dir={tmp_path}")
    found = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


def displayed(chromium, css):
    return [element.is_displayed() for element in chromium.find_elements("css selector", css)]


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_and_draws_its_figures(chromium, address, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    chromium.get(address)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = chromium.find_elements("css selector", ".interactive .main-svg, .interactive canvas")
    assert len(drawn) >= len(static.FIGURES) and not any(displayed(chromium, ".static"))
    background = "return getComputedStyle(document.body).backgroundColor"
    assert chromium.execute_script(background) == "rgb(20, 23, 27)"
    assert [log for log in chromium.get_log("browser") if log["level"] == "SEVERE"] == []
    asked = (
        "return performance.getEntriesByType('resource').filter(x => /^http/.test(x.name)).length"
    )
    assert chromium.execute_script(asked) == 0


def test_print_has_the_drawings_on_white(chromium, address):
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    chromium.get(address)
    assert displayed(chromium, ".static") == [True] * len(static.FIGURES)
    assert not any(displayed(chromium, ".interactive"))


def test_without_javascript_the_drawings_and_tables_are_there(chromium, address):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    chromium.get(address)
    assert displayed(chromium, ".static") == [True] * len(static.FIGURES)
    assert all(displayed(chromium, "#best table, noscript p"))
