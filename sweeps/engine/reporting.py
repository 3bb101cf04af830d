"""What a sweep found: best trials, what mattered, what ended early and why, and what it cost.

python sweeps/report.py --name NAME
"""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ali.errors import UserError
from ali.metrics import EPOCH, NEAR_MODES, SAMPLE_DISTANCE, SAMPLE_DIVERSITY
from sweeps.engine import tracking
from sweeps.engine.driver import JOURNAL, OPTIONS, Options, output_folder

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEST_SHOWN = 10
COLUMNS = {  # heading: parameters shown under it
    "lr D/EG": ("lr_d", "lr_g"),
    "β₁ D/EG": ("beta1_d", "beta1_g"),
    "1−β₂ D/EG": ("beta2_d", "beta2_g"),
    "dropout x/z/xz": ("dropout_x", "dropout_z", "dropout_xz"),
    "slope E/G/D": ("slope_encoder", "slope_decoder", "slope_discriminator"),
    "bn D(x)": ("bn_x",),
}
QUALITY = {  # metric shown beside the objective: heading
    SAMPLE_DISTANCE: "distance",
    SAMPLE_DIVERSITY: "diversity",
    NEAR_MODES: "near modes",
}
WIDTH = 118  # characters of a printed report
COLLAPSED = 0.2  # sample_diversity below which samples are all but alike


def report(options: Options, study: optuna.Study, client: MlflowClient, experiment: str) -> str:
    """The report of a sweep as text: tables at most 118 columns wide, then the next commands."""
    runs = {
        run.data.tags[tracking.TRIAL]: run
        for run in tracking.find_runs(
            client, experiment, sweep=options.name, kind=tracking.KIND_TRIAL
        )
    }
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None)
    if parent := tracking.find_sweep(client, experiment, options.name):
        objective = tracking.objective_of(parent)
        done = [r for r in runs.values() if r.data.tags.get(tracking.END) == tracking.COMPLETED]
        done.sort(key=tracking.rank)
        console.print(_best(options, done[:BEST_SHOWN], objective))
        for line in _notes(parent, done[:BEST_SHOWN]):
            console.print(line, highlight=False)
    console.print(_ends(runs))
    console.print(_importance(study))
    console.print(_cost(runs))
    if parent and tracking.SLOT_USE in parent.data.metrics:
        use = parent.data.metrics[tracking.SLOT_USE]
        seconds = parent.data.metrics[tracking.DRIVER_SECONDS]
        console.print(f"slots were in use {use:.0%} of {seconds:.0f} s\n", highlight=False)
    uri = "" if options.uri == tracking.default_uri(output_folder()) else f" URI={options.uri}"
    console.print("Next:")
    console.print(f"  look at the runs      make ui{uri}", highlight=False)
    console.print(
        f"  train the best        python sweeps/best.py {options.where()}", soft_wrap=True
    )
    return out.getvalue()


def collapsed(run: Run) -> bool:
    """Whether the samples of a trial were all but alike at the end, whatever its objective."""
    return run.data.metrics.get(SAMPLE_DIVERSITY, math.inf) < COLLAPSED


def _best(options: Options, best: list[Run], objective: str) -> Table:
    table = Table(
        title=f"Best trials of {options.name} at their full budget of {options.epochs} epochs",
        caption="–: not searched, or as the paper's table has it",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # every column whole within the console's width
        pad_edge=False,
    )
    logged = {key for run in best for key in run.data.metrics}
    quality = [key for key in QUALITY if key in logged and key != objective]
    for heading in ("trial", objective, *(QUALITY[key] for key in quality), *COLUMNS):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in best:
        metrics, params = run.data.metrics, run.data.params
        values = [f"{metrics.get(objective, math.nan):.4f}"]
        values += [f"{metrics.get(key, math.nan):.2f}" for key in quality]
        cells = [
            "/".join(_short(name, params.get(name, "None")) for name in names)
            for names in COLUMNS.values()
        ]
        table.add_row(run.data.tags[tracking.TRIAL], *values, *cells)
    return table


def _short(name: str, text: str) -> str:
    if text == "None":
        return "–"
    if name == "bn_x":
        return "".join("01"[on == "True"] for on in text.split(","))
    value = float(text)
    if name.startswith("lr"):
        return f"{value:.1e}".replace("e-0", "e-")
    if name.startswith("beta2"):
        return f"{1 - value:.0e}".replace("e-0", "e-")
    return f"{value:.2f}".lstrip("0") or "0"


def _notes(parent: Run, best: list[Run]) -> Iterator[str]:
    """Lines that say how far the best trials' objective is to be believed."""
    if alike := [run.data.tags[tracking.TRIAL] for run in best if collapsed(run)]:
        yield f"samples have collapsed ({SAMPLE_DIVERSITY} below {COLLAPSED}) in {', '.join(alike)}"
    known = parent.data.metrics
    if tracking.UNTRAINED_BN_ERROR in known:
        yield (
            f"without training, the same SVMs: {known[tracking.RAW_PIXEL_ERROR]:.4f} on raw "
            f"pixels, {known[tracking.UNTRAINED_ERROR]:.4f} on an untrained encoder, "
            f"{known[tracking.UNTRAINED_BN_ERROR]:.4f} once its batch norm has seen the data\n"
        )


def _ends(runs: dict[str, Run]) -> Table:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        groups[run.data.tags.get(tracking.END) or run.info.status.lower()].append(run)
    table = Table(title="How trials ended", title_justify="left")
    for heading in ("end", "trials", "epochs", "why (the first three)"):
        table.add_column(heading)
    for end, group in sorted(groups.items()):
        group.sort(key=lambda run: run.data.tags[tracking.TRIAL])
        epochs = [int(run.data.metrics.get(EPOCH, 0)) for run in group]
        why = [
            f"{run.data.tags[tracking.TRIAL]}: {run.data.tags.get(tracking.REASON, '')}"
            for run in group[:3]
        ]
        span = f"{min(epochs)}–{max(epochs)}" if min(epochs) < max(epochs) else f"{epochs[0]}"
        table.add_row(end, str(len(group)), span, "\n".join(why))
    return table


def _importance(study: optuna.Study) -> Table | str:
    """Importance by PED-ANOVA (arXiv 2304.10255) over completed and stopped trials alike."""
    import optuna

    # A trial that was stopped counts with the value it was stopped at: it was among the worst.
    flat = optuna.create_study()
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name in ("COMPLETE", "PRUNED") and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
            flat.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=value
                )
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(flat)
    except (ValueError, RuntimeError):
        found = {}
    found = {name: weight for name, weight in found.items() if weight > 0}
    if len(flat.trials) < 4 or not found:
        return f"Importance: too few trials to tell ({len(flat.trials)}).\n"
    table = Table(title=f"Importance, from {len(flat.trials)} trials", title_justify="left")
    table.add_column("hyperparameter")
    table.add_column("share", justify="right")
    table.add_column("")
    for name, weight in list(found.items())[:8]:
        table.add_row(name, f"{weight:.0%}", "█" * max(1, round(40 * weight)))
    return table


def _cost(runs: dict[str, Run]) -> Table:
    table = Table(title="Time and cost", title_justify="left")
    for heading in ("trials", "epochs", "training s", "evaluation s", "s/trial", "core-hours"):
        table.add_column(heading, justify="right")
    histories = [run.data.metrics for run in runs.values()]
    train = sum(m.get("total_train_seconds", 0.0) for m in histories)
    judge = sum(m.get("total_eval_seconds", 0.0) for m in histories)
    epochs = sum(int(m.get(EPOCH, 0)) for m in histories)
    cores = [
        (m.get("total_train_seconds", 0.0) + m.get("total_eval_seconds", 0.0))
        * float(run.data.params.get("threads", 1))
        for m, run in zip(histories, runs.values(), strict=True)
    ]
    table.add_row(
        str(len(runs)),
        str(epochs),
        f"{train:.0f}",
        f"{judge:.0f}",
        f"{(train + judge) / max(1, len(runs)):.1f}",
        f"{sum(cores) / 3600:.2f}",
    )
    return table


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    name: str
    """Name of the sweep."""
    output_dir: Path = field(default_factory=output_folder)
    """Folder of all sweeps."""
    tracking_uri: str | None = None
    """MLflow server; default: the one that the sweep logged to."""


def load(name: str, output_dir: Path, tracking_uri: str | None) -> Options:
    """The options that a sweep was started with. Raises UserError where there is no such sweep."""
    import json

    file = output_dir / name / OPTIONS
    if not file.exists():
        there = sorted(p.parent.name for p in output_dir.glob(f"*/{OPTIONS}"))
        raise UserError(
            f"there is no sweep {name!r} in {output_dir}: there is {', '.join(there) or 'none'}"
        )
    saved: dict[str, Any] = {**json.loads(file.read_text()), "output_dir": output_dir}
    if tracking_uri:
        saved["tracking_uri"] = tracking_uri
    return Options.from_dict(saved)


def show_report(asked: ReportOptions) -> None:
    """Prints the report of a sweep."""
    from sweeps.engine.search import read

    options = load(asked.name, asked.output_dir, asked.tracking_uri)
    client = tracking.connect(options.uri)
    experiment = tracking.experiment_id(client, options.output_dir)
    study = read(options.folder / JOURNAL, options.name)
    print(report(options, study, client, experiment), end="")
