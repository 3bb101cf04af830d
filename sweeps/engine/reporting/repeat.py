"""Commands that compute each number of a report again."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ali.cli import command
from ali.config import Config
from ali.errors import UserError
from ali.metrics import COMPILED_LAYERS, DEVICE
from sweeps.engine.journal import SCRIPT
from sweeps.engine.options import OPTIONS
from sweeps.engine.reporting.findings import Findings
from sweeps.engine.results import TrialResult
from sweeps.engine.scripts import here, script_command


def commands(found: Findings) -> list[tuple[str, str]]:
    """What is computed, and by which command."""
    options = found.options
    shown = [
        ("these tables", script_command("report.py", *options.arguments())),
        ("this page", script_command("report.py", *options.arguments(), "--html", "report.html")),
        ("the state of a running sweep", script_command("status.py", *options.arguments())),
    ]
    if script := found.attributes.get(SCRIPT):
        own = here(options.folder / OPTIONS)  # the script's defaults may differ from `Options`'
        again = script_command(script, "--config", own, "--name", f"{options.name}-again")
        shown.append(("the whole sweep, under another name", again))
    if not found.of_ali:
        return shown
    if found.complete:
        best = found.complete[0]
        with contextlib.suppress(UserError):  # of a version that had other settings
            shown.append((f"trial {best.trial_id} alone", trial_command(found, best)))
    shown.append(("the test error of the best", script_command("best.py", *options.arguments())))
    return shown


def trial_command(found: Findings, trial: TrialResult) -> str:
    """Trains a configuration with the seed that it had. Raises UserError if it is not valid."""
    config = Config.from_dict(trial.config)
    defaults = Config.of_model(config.model).to_dict() | {"model": Config.model}
    changed = {k: v for k, v in config.to_dict().items() if v != defaults[k]}
    run = found.by_id.get(trial.trial_id)
    tags = run.data.tags if run else {}
    threads = run.data.params.get("threads") or tags.get("threads") if run else None
    more = ["--threads", threads] if threads else []
    folder = f"runs/{found.options.name}-{trial.trial_id}-again"
    line = command("-m", "ali", "train", "--output-dir", folder, *more, *_arguments(changed))
    one_thread = threads == "1" and tags.get(DEVICE) == "cpu"
    # Compiling would change the last digits.
    return f"ALI_CC= {line}" if one_thread and tags.get(COMPILED_LAYERS) == "no" else line


def _arguments(changed: dict[str, Any]) -> list[str]:
    """As tyro takes them: lists as several words, switches as --x or --no-x."""
    words = []
    for name, value in changed.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            words += [f"--{option}", *map(str, value)]
        elif value is not None:
            words += [f"--{option}", value if isinstance(value, str) else json.dumps(value)]
    return words
