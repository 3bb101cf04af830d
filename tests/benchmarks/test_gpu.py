"""`make gpu`: the whole command on a CPU, small; its ways to take a step; what fails or hangs."""

import importlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest
import torch

from ali.config import Config
from ali.errors import UserError
from ali.models import narrow
from ali.training import step as training
from benchmarks import gpu, gpu_sections
from benchmarks.gpu_page import Report, SectionResult
from benchmarks.gpu_rows import Outcome, Row, Run, attempt, goal, skipped
from benchmarks.gpu_runs import rows_of_tests
from benchmarks.gpu_sections import SECTIONS, Section
from benchmarks.gpu_step import WARM_UP, WAYS, batch, compiled, difference
from benchmarks.gpu_trials import Trial, _side_by_side
from benchmarks.step import train_state
from tests.paths import ROOT

SMALL = Config(data="svhn", width=0.0625, batch_size=8, precision="fp32")
STOPS = """
import os, sys, time
from ali.files import append_line
from benchmarks.gpu_rows import Row, Run
run = Run.from_json(sys.argv[2])
append_line(run.work / f"{sys.argv[1]}.rows", Row("first", 1.0).line())
"""


def of_run(folder: Path, **changes) -> Run:
    return Run(**{"device": "cpu", "small": True, "seconds": 60.0, "work": folder} | changes,
               output=folder)  # fmt: skip


# Ways to take a step -------------------------------------------------------------------------


def test_a_compiled_step_trains_as_the_plain_one_on_the_same_random_numbers(monkeypatch):
    """Without torch.compile, which takes minutes: what it is given is run."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    x = batch(SMALL, torch.device("cpu"))
    one, other = (train_state(SMALL, x.device) for _ in range(2))
    with narrow.left_out(), training.repeatable():
        take_step = compiled(other, x)
        found = [[float(loss) for loss in take_step(x)] for _ in range(2)]
        wanted = [[float(loss) for loss in training.train_step(one, x)] for _ in range(3)]
    assert found == [pytest.approx(losses, rel=1e-5) for losses in wanted[1:]]
    assert (one.step, one.generator.get_state().tolist()) == (
        other.step,
        other.generator.get_state().tolist(),
    )
    assert difference(one, other) < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cuda_graph_trains_the_same_bits(precision):
    config = SMALL.replace(precision=precision)
    x = batch(config, torch.device("cuda"))
    one, other = (train_state(config, x.device) for _ in range(2))
    with training.repeatable():
        replay = WAYS["ours, CUDA graph"](other, x)
        for _ in range(3):
            replay()
        for _ in range(WARM_UP + 3):
            training.train_step(one, x)
    assert one.step == other.step and difference(one, other) == 0


@pytest.mark.long
def test_trials_train_side_by_side_and_one_that_ends_is_a_row(tmp_path):
    trials = [Trial("cpu"), Trial("cpu")]
    run = of_run(tmp_path, peak=1.0)
    one, two = _side_by_side(run, "small", (SMALL, "ours"), trials, (1, 2))
    assert (one.what, two.what) == ("1 at a time, small", "2 at a time, small")
    assert min(one.value, two.value, one.share, two.share) > 0
    trials[1].end()
    one, two = _side_by_side(run, "small", (SMALL, "ours"), trials, (1, 2))
    trials[0].end()
    assert one.value > 0
    assert (two.outcome, two.note) == (Outcome.FAILED, "its process ended")


# Rows, and what ends badly -------------------------------------------------------------------


def test_a_row_survives_its_file_and_says_what_it_is():
    rows = [
        Row("step", 12345.6, "images/s", share=0.0123, note="a note", details={"a": [1]}),
        goal("waits", met=False, value=2.0, note="at the end 3"),
        goal("resumed", met=True),
        skipped("graphs"),
    ]
    assert [Row.read(row.line()) for row in rows] == rows
    shown = [(row.figure, row.peak_share, row.remark) for row in rows]
    assert shown == [
        ("12,346 images/s", "1.23%", "a note"),
        ("2", "", "not met: at the end 3"),
        ("met", "", ""),
        ("skipped", "", "needs CUDA"),
    ]


def test_what_fails_is_a_row_and_the_others_are_kept():
    def measure():
        yield Row("first", 1.0)
        raise RuntimeError("out of memory\nand a long trace")

    first, failed = attempt("second", measure)
    assert first == Row("first", 1.0)
    assert (failed.what, failed.outcome) == ("second", Outcome.FAILED)
    assert failed.note == "RuntimeError: out of memory"
    (missing,) = attempt("a sweep", lambda: [importlib.import_module("no_such_package.part")])
    assert missing == skipped("a sweep", "needs the package no_such_package")


def test_a_section_whose_module_is_missing_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(SECTIONS, "gone", Section("", "no_such_module", 1))
    (row,) = gpu_sections.rows("gone", of_run(tmp_path))
    assert row.outcome is Outcome.FAILED and "no_such_module" in row.note


@pytest.mark.parametrize(
    ("then", "outcome", "note"),
    [
        ("time.sleep(600)", Outcome.STOPPED, "its 0 s were over"),
        ("os.abort()", Outcome.FAILED, "signal 6"),
        ("sys.exit('no driver')", Outcome.FAILED, "exit code 1: no driver"),
    ],
)
def test_a_section_that_hangs_or_crashes_keeps_its_rows(tmp_path, monkeypatch, then, outcome, note):
    script = tmp_path / "section.py"
    script.write_text(STOPS + then)
    popen = subprocess.Popen

    def other(arguments, **kept):
        return popen([sys.executable, str(script), *arguments[3:]], **kept)

    monkeypatch.setattr(gpu.subprocess, "Popen", other)
    monkeypatch.setattr(gpu, "PAST", 3.0 if outcome is Outcome.STOPPED else 60.0)
    start = time.monotonic()
    result = gpu.run_section("step", of_run(tmp_path, seconds=0.0), tmp_path / "gpu.log")
    assert time.monotonic() - start < 60
    assert result.rows[0] == Row("first", 1.0)
    assert (result.rows[-1].outcome, len(result.rows)) == (outcome, 2)
    assert result.rows[-1].note.startswith(note)


def test_tests_are_counted_and_those_that_fail_named():
    report = ElementTree.fromstring(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'>"
        "<failure message='AssertionError: 3 waits&#10;more'/></testcase>"
        "<testcase name='c'><skipped/></testcase></testsuite></testsuites>"
    )
    counted, failed = rows_of_tests(report)
    assert (counted.value, counted.outcome) == (1, Outcome.NOT_MET)
    assert (failed.what, failed.note) == ("b", "AssertionError: 3 waits")


# The command ---------------------------------------------------------------------------------


def test_sections_are_the_options_and_have_their_functions():
    assert set(get_args(gpu.Name)) == set(SECTIONS)
    for name, section in SECTIONS.items():
        source = (ROOT / "benchmarks" / f"{section.module}.py").read_text()
        assert f"def {name}(run: Run) -> Iterator[Row]:" in source


def test_what_a_user_gets_wrong_is_one_line(tmp_path):
    (tmp_path / "kept").write_text("kept")
    for options, said in (
        ({"minutes": 0}, "--minutes must be above 0, not 0"),
        ({"peers": (tmp_path / "none",)}, "--peers: there is no folder"),
        ({"output_dir": tmp_path}, "is in use"),
    ):
        with pytest.raises(UserError, match=said):
            gpu.run(gpu.Options(**{"device": "cpu"} | options))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no GPU"):
            gpu.run(gpu.Options(device="cuda", output_dir=tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_page_says_what_is_no_figure_of_a_gpu_and_escapes(tmp_path):
    rows = [Row("matrix product, bfloat16", 0.5, "TFLOP/s", details={"device": "A <b> CPU"})]
    rows += [Row("ours", 100.0, "images/s", share=0.25), skipped("CUDA graphs")]
    report = Report(tmp_path, "2026-01-01T00:00:00", "command", "cpu", small=True)
    report.sections.append(SectionResult("peak", "the device", 1.0, rows))
    report.write()
    page = (tmp_path / "gpu.html").read_text()
    assert "no figure of a GPU" in page and "A &lt;b&gt; CPU" in page and "25.00%" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    plain = json.loads((tmp_path / "gpu.json").read_text())
    assert (plain["peak_tflops_bf16"], plain["sections"][0]["rows"][2]["note"]) == (
        0.5,
        "needs CUDA",
    )
    assert "no figure of a GPU" in report.table() and "needs CUDA" in report.table()


@pytest.mark.long
@pytest.mark.integration
def test_the_whole_command_works_on_a_cpu(tmp_path):
    output = tmp_path / "gpu"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--output-dir", output]
    command += ["--minutes", "30"]  # limits are for a machine with nothing else to do
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((output / "gpu.json").read_text())
    rows = {one["name"]: one["rows"] for one in found["sections"]}
    assert list(rows) == list(SECTIONS) and all(rows.values())
    outcomes = {row["outcome"] for section in rows.values() for row in section}
    assert outcomes == {"measured", "met", "skipped"}
    assert found["peak_tflops_bf16"] > 0 and found["device"] == "cpu" and found["small"]
    shares = [row["share"] for name in ("step", "trials", "training") for row in rows[name]]
    assert sum(share is not None and share > 0 for share in shares) >= 7
    for name in ("samples", "reconstructions", "interpolations", "val_error"):
        assert (output / f"{name}.png").stat().st_size > 0
    assert (output / "gpu.html").read_text().count("data:image/png;base64,") == 4
    assert "no figure of a GPU" in done.stdout


def test_what_needs_cuda_says_so_without_a_process(tmp_path):
    result = gpu.run_section("waits", of_run(tmp_path), tmp_path / "gpu.log")
    assert [(row.outcome, row.note) for row in result.rows] == [(Outcome.SKIPPED, "needs CUDA")]
    assert not list(tmp_path.iterdir())


def test_chosen_sections_share_the_time_and_have_the_peak(tmp_path, monkeypatch):
    told: list[tuple[str, Run]] = []

    def section(name, run, _):
        told.append((name, run))
        rows = [Row("matrix product, bfloat16", 0.5, "TFLOP/s")] if name == "peak" else []
        return SectionResult(name, "", 1.0, rows)

    monkeypatch.setattr(gpu, "run_section", section)
    options = gpu.Options(only=("training", "step"), minutes=1, device="cpu")
    assert gpu.run(replace(options, output_dir=tmp_path / "gpu")) == 0
    assert [(name, run.peak) for name, run in told] == [
        ("peak", None),
        ("step", 0.5),
        ("training", 0.5),
    ]
    peak, step, training = (SECTIONS[name].weight for name in ("peak", "step", "training"))
    rest = step + training
    assert [run.seconds for _, run in told] == [
        pytest.approx(part, abs=2) for part in (60 * peak / (peak + rest), 60 * step / rest, 60)
    ]
