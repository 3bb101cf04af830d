"""The report as one file of HTML, and its figures."""

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import optuna
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from sweeps.engine.endings import RETRIES, EndState
from sweeps.engine.journal import EXPERIMENT, SCRIPT
from sweeps.engine.objective import MAXIMIZE
from sweeps.engine.options import Options
from sweeps.engine.reporting import (
    findings,
    interactive,
    page,
    repeat,
    series,
    sheet,
    static,
    tables,
)
from tests.sweeps.engine.reporting.sweep import REASON, Logged, run, sweep, trial

pytestmark = pytest.mark.versions

FOUND, LOGGED = sweep(), Logged()


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        self.text += "" if self._inside else data


@pytest.fixture(scope="module")
def written():
    return page.html(FOUND, LOGGED, static.draw(FOUND, LOGGED), sheet.contact_sheet(FOUND, LOGGED))


def test_the_page_is_one_file_with_the_verdict_first(written):
    read = Elements(written)
    addresses = [
        attrs[key] for _, attrs in read.elements for key in ("src", "href") if key in attrs
    ]
    inside = [address for address in addresses if address.startswith("data:image/")]
    others = [address for address in addresses if not address.startswith(("data:", "#"))]
    assert others == [] and len(inside) == 5, "best and paper's point, of each kind, and the sheet"
    text = " ".join(read.text.split())
    verdict = findings.verdict(FOUND)
    places = [text.index(sentence) for sentence in (*verdict, "Best trials", "Time and cost")]
    assert places == sorted(places)
    assert "--html report.html" in text and "options.yaml --name shown-again" in text
    assert written.count("Plotly.react") > 0 and len(written.encode()) < 8 * 2**20


def test_the_text_of_a_user_is_text_on_the_page(written):
    assert REASON not in written and REASON in Elements(written).text
    specs = re.findall(r'<script type="application/json".*?>(.*?)</script>', written, re.S)
    assert len(specs) == len(static.FIGURES) and all(json.loads(spec)["data"] for spec in specs)


def test_every_figure_is_drawn_both_ways():
    assert list(static.FIGURES) == list(interactive.FIGURES) == list(page.CAPTIONS)
    for name, figure in static.draw(FOUND, LOGGED).items():
        assert interactive.FIGURES[name](FOUND, LOGGED) is not None, name
        assert static.svg(figure).startswith("<svg") and static.png(figure)[:4] == b"\x89PNG"
    empty = findings.Findings(Options(name="new"), [], [], FOUND.parent)
    assert static.draw(empty, LOGGED) == {}
    assert all(make(empty, LOGGED) is None for make in interactive.FIGURES.values())
    assert "No trial has reached its full budget" in page.html(empty, LOGGED, {}, None)


def test_curves_say_how_trials_ended():
    known = series.groups(series.curves(FOUND))
    counts = {end: len(group) for end, group in known.items()}
    assert counts == {
        "completed": 12, series.AGAIN: 1, "stopped early": 1, "diverged": 1, "failed": 1,
    }  # fmt: skip
    assert len({(style.symbol, style.dash) for style in series.STYLES.values()}) == len(
        series.STYLES
    )
    assert series.best_so_far(FOUND)[-1] == (11, pytest.approx(0.3))


def test_learning_rates_are_on_a_log_axis_and_what_a_trial_lacks_is_below_it():
    axes = {axis.name: axis for axis in series.parallel(FOUND).axes}
    assert axes["lr_d"].log and not axes["dropout_x"].log
    middle = axes["lr_d"].positions[3]  # 10^-3.5, of 10^-5 to 10^-2
    assert middle == pytest.approx(0.5)
    assert axes["lr_g"].positions[0] == series.ABSENT < min(axes["lr_g"].positions[1::2])


def test_trials_take_the_first_free_slot():
    bars = series.slot_bars(FOUND, LOGGED)
    assert {bar.slot for bar in bars} == {0, 1} and bars[0].start == 0
    assert series.time_unit(200) == ("minutes", 60) and series.time_unit(20) == ("seconds", 1)


def test_one_value_far_off_does_not_flatten_the_others():
    low, high = series.value_range(FOUND)
    assert low < 0.3 and 0.9 < high < 2


def maximized():
    """The same sweep with the negative objective, to maximize."""
    found = sweep()
    for one in found.frozen:
        one.user_attrs[MAXIMIZE] = True
        one.intermediate_values = {e: -v for e, v in one.intermediate_values.items()}
        if one.values:
            one.value = -one.value
    found.parent.data.tags["direction"] = "maximize"
    found.parent.data.metrics.clear()
    return found


def test_of_a_maximized_objective_the_best_is_shown_as_the_best():
    found = maximized()
    assert found.complete[0].trial_id == "00000"
    far = found.frozen[13].intermediate_values
    far[2] = -1e6  # diverged
    low, high = series.value_range(found)
    assert high > -0.3 > -0.9 > low > -5, "the best is within, what diverged is not"
    for one in (found, FOUND):
        lines = [
            line for line in static.parallel(one, LOGGED).axes[0].lines if len(line.get_xdata()) > 2
        ]
        colours = [to_hex(line.get_color()) for line in (lines[0], lines[-1])]
        assert colours == ["#9aa5b1", "#d55e00"], "the worst first and grey, the best on top"
        assert lines[-1].get_linewidth() == 2.5
    assert interactive.parallel(found, LOGGED).data[0].line.reversescale
    assert "higher is better" in page.html(found, LOGGED, static.draw(found, LOGGED), None)


def test_numeric_choices_are_in_their_order():
    kind = optuna.distributions.CategoricalDistribution([50, 100, 200])
    trials = [
        optuna.trial.create_trial(value=1.0, params={"n": n}, distributions={"n": kind})
        for n in (200, 50, 100)
    ]
    axis = series._axis("n", trials)
    assert axis.labels == ("50", "100", "200") and axis.positions == (1.0, 0.0, 0.5)


def test_a_retried_trial_counts_once():
    """The retry goes on with all that its first try has done, and so do its totals."""
    found = sweep()
    before, state = tables.cost_table(found).rows, page.state(found)
    again = trial(16, EndState.COMPLETED, 0.5, **{RETRIES: 14})
    found.frozen.append(again)
    found.runs.append(run(again))
    del found.__dict__["by_id"], found.__dict__["trials"]
    assert tables.cost_table(found).rows == before
    assert page.state(found) == state


def test_of_an_experiment_of_ones_own_nothing_is_offered_that_trains_alis():
    found = replace(sweep(), attributes={SCRIPT: "toy.py", EXPERIMENT: "Toy"})
    lines = [line for _, line in (*repeat.commands(found), *found.next_commands)]
    assert not [line for line in lines if "best.py" in line or "ali train" in line]
    assert [line for line in lines if "toy.py" in line]


def test_the_contact_sheet_has_the_best_and_the_papers_point():
    assert sheet.shown_trials(FOUND)[0].trial_id == FOUND.complete[0].trial_id
    drawn = sheet.contact_sheet(FOUND, LOGGED)
    assert drawn.width == sheet.LABEL + 2 * (sheet.CELL + sheet.GAP)
    small = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    assert set(map(tuple, np.array(sheet.fitted(small, 8)).reshape(-1, 3))) == set(
        map(tuple, np.array(small).reshape(-1, 3))
    ), "enlarged without blur"
    assert sheet.spread(list(range(1, 101)), 6) == [1, 21, 41, 60, 80, 100]


def test_commands_repeat_the_sweep_and_its_best_trial():
    lines = {what: shlex.split(line) for what, line in repeat.commands(FOUND)}
    again = lines["the whole sweep, under another name"]
    assert again[2:] == ["--config", "runs/shown/options.yaml", "--name", "shown-again"]
    best = FOUND.complete[0]
    alone = lines[f"trial {best.trial_id} alone"]
    train = alone[alone.index("train") :]
    assert train[3:5] == ["--threads", "2"] and "--epochs" in train

    from ali.cli import parse_args
    from ali.cli.train import Train

    assert parse_args(Train, train[1:]).experiment.to_dict() == best.config


def test_a_trial_whose_layers_were_not_compiled_is_repeated_without_a_compiler():
    found = sweep()
    best = found.complete[0]
    data = found.by_id[best.trial_id].data
    data.params = {}
    data.tags |= {"threads": "1", "device": "cpu", "compiled_layers": "yes"}
    assert "ALI_CC" not in repeat.trial_command(found, best)
    data.tags["compiled_layers"] = "no"
    assert repeat.trial_command(found, best).startswith("ALI_CC= ")
