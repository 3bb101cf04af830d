"""`python -m ali train`: one experiment without a sweep, into a folder from which it resumes."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ali.arguments import Group
from ali.catalog import KINDS, Model
from ali.cli import command, terminable
from ali.cli.common import check_at_least, set_threads, write_png
from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.files import append_line, atomic_write, make_folder
from ali.history import LOG
from ali.lock import LOCK, folder_lock
from ali.metrics import (
    D_LOSS,
    EPOCH,
    G_LOSS,
    IMAGES_PER_SECOND,
    LOSS,
    MODES_MISSED,
    SAMPLE_DISTANCE,
    VAL_ERROR,
)
from ali.output import console, lossy_output
from ali.settings import missing_file, read_settings

if TYPE_CHECKING:
    from ali.data import Dataset
    from ali.training.state import State

# Metrics of the line that is printed each epoch, if measured; metrics.jsonl has all of them
PROGRESS_METRICS = {
    D_LOSS: ".4f",
    G_LOSS: ".4f",
    LOSS: ".4f",
    VAL_ERROR: ".4f",
    MODES_MISSED: ".0f",
    SAMPLE_DISTANCE: ".4f",
}
CONFIG = "config.json"  # in the output folder
DATA = "data_fingerprint.txt"  # there, too


@dataclass(frozen=True)
class Train:
    """Train one experiment: a checkpoint and metrics each epoch, pictures, config.json."""

    GROUPS: ClassVar[tuple[Group, ...]] = (
        Group(
            "common",
            "--output-dir runs/one --data svhn --epochs 30",
            "output_dir data data_dir epochs width batch_size resume config image_every threads",
        ),
        Group(
            "data",
            "--output-dir runs/one --train-size 5000 --labels 100",
            "image_size attribute modes train_size labels balanced draws draw eval_every",
        ),
        Group(
            "network",
            "--output-dir runs/one --model gan --dropout-x 0.1",
            "model levels sigma precision slope_encoder slope_decoder slope_discriminator "
            "dropout_x dropout_z dropout_xz bn_x bn_z bn_xz weight_std",
        ),
        Group(
            "comparison",
            "--output-dir runs/sdgm --model sdgm --label-weight 0.5",
            "label_weight known_weight predict_z z_size components m1_epochs reconstruction_weight "
            "middle_weight dropout_fc",
        ),
        Group("optimiser", "--output-dir runs/one --lr-d 2e-4 --lr-g 2e-4"),
    )

    output_dir: Path
    """Folder for all files of the run; must be new or empty, unless --resume is given."""
    resume: bool = False
    """Resume the run in --output-dir from its last checkpoint, with its settings."""
    config: Path | None = None
    """Settings to start from: the config.json of a run, or a YAML or TOML file; options given here
    override them."""
    image_every: int = 5
    """Epochs between pictures of samples and reconstructions (the last epoch has them, too)."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""
    experiment: Config = field(default_factory=Config)

    @lossy_output()
    def run(self) -> None:
        """Trains. Ctrl-C and SIGTERM leave a folder from which the run resumes."""
        check_at_least(1, image_every=self.image_every)
        set_threads(self.threads)
        folder = self.output_dir
        if not self.resume:
            _refuse_used(folder)
        with terminable():
            try:
                _train(self, folder, self.experiment)
            except KeyboardInterrupt as stop:
                again = command("-m", "ali", "train", "--resume", "--output-dir", folder)
                begun = (folder / CONFIG).exists()
                stop.args = (f"resume with: {again}" if begun else "nothing was written",)
                raise

    def refuse_unused(self, defaults: Train) -> None:
        """Raises UserError for a setting without effect, unless `train_defaults` have it."""
        from ali.models.unused import refuse_unused, without_effect

        experiment = self.experiment
        unused = without_effect(experiment)
        if KINDS[experiment.model].classifies:  # a sweep has SVMs on raw pixels beside it
            unused["draws"] = f"with --model {experiment.model}"
        refuse_unused(experiment, unused, defaults.experiment)


def train_defaults(argv: Sequence[str] | None) -> Train | None:
    """The settings of the file that `train --config` or `train --resume` names, or the model's.

    They are the defaults with which the command line is parsed: what is given may fit only them.
    None for other commands, and where that parsing reports a mistake. Raises UserError, naming the
    line, if the file is mistaken.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("command", nargs="?")
    parser.add_argument("--config", type=_path)
    parser.add_argument("--output-dir", "--output_dir", type=_path)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction)
    parser.add_argument("--model", choices=KINDS, default=Config.model)
    try:
        given = parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        return None
    if given.command != "train" or given.output_dir is None:
        return None
    source = given.output_dir / CONFIG if given.resume else given.config
    if given.resume and not source.exists():
        raise UserError(f"there is no run in {given.output_dir} to resume: leave --resume out")
    if given.resume and given.config:
        raise UserError(
            "--resume goes on with the settings of its run: leave --config out, and give what "
            "changes, such as --epochs, as options"
        )
    experiment = _read(source, given.model) if source else Config.of_model(given.model)
    return Train(output_dir=given.output_dir, experiment=experiment)


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _read(file: Path, model: Model) -> Config:
    """What a file's settings make of the defaults of its model, or of `model` if it names none.

    Raises UserError, naming the line.
    """
    try:
        settings = read_settings(file)
    except FileNotFoundError:
        raise missing_file(file) from None
    settings.check(Config)
    model = settings.values.get("model", model)
    with settings.naming_lines():
        return Config.from_dict(Config.of_model(model).to_dict() | settings.values)


def _refuse_used(folder: Path) -> None:
    """Raises UserError if a new run would write over something."""
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {LOCK}):
        raise UserError(f"{folder} is in use: choose another --output-dir, or add --resume")


def _train(options: Train, folder: Path, config: Config) -> None:
    from ali import data, experiment
    from ali.training.checkpoint import MANIFEST
    from ali.training.state import State
    from ali.training.step import device

    if config.data_dir is not None:  # so that what is written is found from any folder
        config = config.replace(data_dir=config.data_dir.resolve())
    dataset = data.load(config)
    for note in dataset.notes:
        print(note, flush=True)
    checkpoint = folder / "checkpoint"

    def has_checkpoint() -> bool:  # a run that was stopped in its first epoch has none
        return options.resume and (checkpoint / MANIFEST).exists()

    state = None if has_checkpoint() else experiment.new_state(config, dataset)
    with folder_lock(make_folder(folder), f"the training in {folder}"):
        if not options.resume:
            _refuse_used(folder)
        if state is None or has_checkpoint():
            state = State.load(checkpoint, device(), config)
        _refuse_other_data(folder / DATA, dataset.fingerprint, state.epoch)
        with atomic_write(folder / CONFIG) as path:
            content = json.dumps(config.to_dict(), indent=1)
            path.write_text(content + "\n", encoding="utf-8")
        _cut_log(folder / LOG, state.epoch)
        if state.epoch >= config.epochs:
            print(f"all {state.epoch} epochs are done: ask for more with --epochs")
        _train_epochs(options, folder, config, dataset, state)


def _train_epochs(
    options: Train, folder: Path, config: Config, dataset: Dataset, state: State
) -> None:
    from ali import experiment
    from ali.figures.grids import epoch_pictures

    checkpoint = folder / "checkpoint"
    with _progress(state.epoch, config.epochs) as show:
        try:
            for _, metrics in experiment.run(config, dataset, state):
                append_line(folder / LOG, json.dumps(metrics))
                if state.epoch % options.image_every == 0 or state.epoch == config.epochs:
                    for name, picture in epoch_pictures(state.networks, dataset, config).items():
                        write_png(folder / f"{name}-{state.epoch:04d}.png", picture)
                state.save(checkpoint)
                show(metrics)
        except NonFiniteError as error:
            kept = f". {checkpoint} is from the epoch before" if checkpoint.exists() else ""
            rates = " and ".join(f"--lr-{who}" for who in KINDS[config.model].adam)
            raise SystemExit(
                f"stopped: training diverged ({error}); try a smaller {rates}{kept}"
            ) from error


def _refuse_other_data(path: Path, fingerprint: str, epoch: int) -> None:
    """Raises UserError if the epochs so far had other data; else saves the fingerprint."""
    before = fingerprint
    if path.exists() and epoch:
        before = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"\S+", before):
        raise UserError(f"{path} is damaged: delete it, if the data is still that of the run")
    if before != fingerprint:
        raise UserError(
            f"the data is not that of the run so far ({path}: {before}, now {fingerprint}): put "
            "the files back as they were, give their --data-dir, or choose another --output-dir"
        )
    with atomic_write(path) as partial:
        partial.write_text(fingerprint + "\n", encoding="utf-8")


def _cut_log(path: Path, epoch: int) -> None:
    """Drops what a killed run logged after its last checkpoint, and lines that are damaged."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)[EPOCH] <= epoch:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last one may be half-written
                print(f"{path}, line {number}: damaged, and left out", flush=True)
    with atomic_write(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


def format_result(metrics: dict[str, float], epochs: int) -> str:
    """The line printed for an epoch."""
    line = f"epoch {metrics[EPOCH]}/{epochs}"
    for name, spec in PROGRESS_METRICS.items():
        if name in metrics:
            line += f"  {name} {metrics[name]:{spec}}"
    return line + f"  {metrics[IMAGES_PER_SECOND]:.0f} images/s"


@contextmanager
def _progress(done: int, epochs: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that shows an epoch's metrics: a line each, and on a terminal a bar below."""
    import rich.progress

    text = console()
    bar = rich.progress.Progress(console=text, disable=not text.is_terminal, transient=True)
    with bar:
        task = bar.add_task("epochs", total=epochs, completed=done)

        def show(metrics: dict[str, float]) -> None:
            text.print(format_result(metrics, epochs), soft_wrap=True)
            bar.update(task, completed=metrics[EPOCH])

        yield show
