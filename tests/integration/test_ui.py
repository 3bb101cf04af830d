"""MLflow's UI in a real browser: what the printed links open, in an empty profile."""

import shutil

import numpy as np
import optuna
import pytest

from sweeps.engine import tracking
from sweeps.engine.endings import Ending, EndState
from sweeps.engine.front_page import description
from sweeps.engine.options import Options
from sweeps.engine.reporting import find
from sweeps.engine.tracking.schema import NOTE
from sweeps.engine.tracking.view import save_view

pytest.importorskip("selenium", reason="selenium is not installed")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("Debian's chromium and chromium-driver are not here", allow_module_level=True)

from docs.screenshots import CHARTS, Page, browser, served

pytestmark = [pytest.mark.long, pytest.mark.versions]

SEARCHED = ("lr_d", "dropout_x")
ENDS = {
    "00000": (EndState.COMPLETED, [0.75, 0.5]),
    "00001": (EndState.STOPPED_EARLY, [0.625]),
    "00002": (EndState.COMPLETED, [0.5, 0.25]),
    "00003": (EndState.DIVERGED, []),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory, database):
    """The browser, and a sweep of four trials in MLflow's UI."""
    folder = tmp_path_factory.mktemp("ui")
    shutil.copy(database, folder)
    uri = tracking.default_uri(folder)
    client = tracking.connect(uri)
    experiment = tracking.experiment_id(client, folder)
    name = "a b"  # no name that a tag may have
    parent = tracking.start_sweep(client, experiment, name, "val_error", {})
    to = tracking.TrackingContext(uri, experiment, name, parent, "val_error", SEARCHED)
    save_view(client, experiment, name, "val_error", SEARCHED, 2)
    for number, (trial, (state, values)) in enumerate(ENDS.items()):
        config = {"lr_d": 10.0**-number, "dropout_x": number / 10, "seed": number, "epochs": 2}
        tracking.open_trial(client, to, trial, config)
        run = tracking.TrialRun(to, trial, {})
        for epoch, value in enumerate(values, start=1):
            picture = np.full((300, 300, 3), 40 * number + epoch, np.uint8)
            run.epoch({"epoch": epoch, "val_error": value}, {"samples": picture})
        run.queue.close()
        tracking.end_trial(client, to, trial, Ending(state, "so"), config=config)
    tracking.set_best_trials(client, to, ["00002", "00000"])
    tracking.end_run(client, parent, Ending(EndState.COMPLETED, "all trials ended"))
    options = Options(name=name, output_dir=folder)
    found = find(options, optuna.create_study(), client, experiment)
    client.set_tag(parent, NOTE, description(found, to, []))
    with served(folder, name) as links, browser() as chromium:
        yield Page(chromium, links, name)


def column(page, name):
    page.wait(f'.ag-center-cols-container [col-id="{name}"]')
    rows = page.chromium.find_elements("css selector", ".ag-center-cols-container .ag-row")
    rows.sort(key=lambda row: int(row.get_attribute("row-index")))
    return [row.find_element("css selector", f'[col-id="{name}"]').text for row in rows]


def test_the_link_opens_the_trials_best_first_without_a_click(page):
    page.open("all trials")
    page.wait(".ag-center-cols-container [col-id]", "0.25")
    assert column(page, "metrics.`val_error`") == ["0.25", "0.5", "0.625", "-", "-"]
    ends = column(page, "tags.`end_state`")
    assert ends[:3] == ["completed", "completed", "stopped early"] and "diverged" in ends
    assert column(page, "params.`lr_d`")[:3] == ["0.01", "1.0", "0.1"]


def test_the_other_link_shows_the_best_two_side_by_side_as_large_as_they_are(page):
    page.open("the best two")
    page.wait(f"{CHARTS} img")
    page.wait(CHARTS, "a b-00000")
    page.settle(3)
    images = page.chromium.find_elements("css selector", f"{CHARTS} img")
    widths = [int(image.get_property("naturalWidth")) for image in images]
    assert len(widths) == 2 and min(widths) >= 300, "log_image makes them 256 wide"
    assert "a b-00001" not in page.wait(CHARTS).text
    left, right = (image.location for image in images)
    assert left["y"] == right["y"] and left["x"] != right["x"]
    shown = page.wait(CHARTS).text
    assert shown.index("a b-00002") < shown.index("a b-00000"), "the best one first"


def test_two_clicks_lead_from_the_trials_to_the_pictures_of_the_best_two(page):
    page.open("all trials")
    page.wait(".ag-center-cols-container [col-id]", "0.25")
    rows = page.chromium.find_elements("css selector", ".ag-pinned-left-cols-container a")
    next(row for row in rows if row.text == "a b").click()
    page.click("a", "pictures of the best two")
    page.chromium.switch_to.window(page.chromium.window_handles[-1])
    page.wait(f"{CHARTS} img")
    page.wait(CHARTS, "a b-00000")
    if len(page.chromium.window_handles) > 1:  # MLflow opens links of a description in a new tab
        page.chromium.close()
        page.chromium.switch_to.window(page.chromium.window_handles[0])
