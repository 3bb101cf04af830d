"""`python -m ali`: one experiment without a sweep, and what a trained one can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from ali.cli import main, parse_args, terminable
from ali.config import Config, DataName, Precision
from ali.errors import NonFiniteError, UserError
from ali.evaluation import table1
from ali.files import atomic_write, make_folder
from ali.metrics import (
    D_LOSS,
    EPOCH,
    G_LOSS,
    IMAGES_PER_SECOND,
    MODES_MISSED,
    SAMPLE_DISTANCE,
    VAL_ERROR,
)

if TYPE_CHECKING:
    from ali.data import Dataset
    from ali.models.networks import ALI
    from ali.training.state import State

PROG = "python -m ali"
# What the line of an epoch tells, where it was measured; metrics.jsonl has everything
TOLD = {
    D_LOSS: ".4f",
    G_LOSS: ".4f",
    VAL_ERROR: ".4f",
    MODES_MISSED: ".0f",
    SAMPLE_DISTANCE: ".4f",
}


@dataclass(frozen=True)
class Train:
    """Train one experiment: a checkpoint each epoch, metrics.jsonl, config.json and pictures."""

    output_dir: Path
    """Folder for all that the run writes; a new or empty one, but for --resume."""
    resume: bool = False
    """Go on with the run in --output-dir from its last checkpoint, with its settings."""
    config: Path | None = None
    """Settings to start from, the config.json of a run; options given here override them."""
    image_every: int = 5
    """Epochs between pictures of samples and reconstructions (the last epoch has them, too)."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""
    experiment: Config = field(default_factory=Config)


@dataclass(frozen=True)
class _Trained:
    checkpoint: Path
    """Folder of a checkpoint, or of a run of `train`."""
    output: Path
    """File to write."""
    precision: Precision | None = None
    """fp32, bf16 or auto; default: what the run was trained in."""
    threads: int | None = None
    """CPU threads; default: as many as there are cores."""


@dataclass(frozen=True)
class Sample(_Trained):
    """Draw a PNG grid of samples x̃ = G_x(z), z from the prior."""

    count: int = 100
    """Samples."""
    seed: int = 0
    """Seed of z."""


@dataclass(frozen=True)
class _Pictures(_Trained):
    data: DataName | None = None
    """Data set whose validation images are shown; default: the one trained on."""
    data_dir: Path | None = None
    """Folder of its files; default: the one trained from."""
    seed: int = 0
    """Seed of ẑ."""


@dataclass(frozen=True)
class Reconstruct(_Pictures):
    """Draw a PNG grid of validation images (odd columns) and reconstructions (even columns)."""

    count: int = 50
    """Images reconstructed."""


@dataclass(frozen=True)
class Interpolate(_Pictures):
    """Draw a PNG grid of interpolations, a pair of validation images a row."""

    rows: int = 8
    """Pairs of images."""
    steps: int = 10
    """Decoded points of a row, both ends included."""


@dataclass(frozen=True)
class Figure(_Pictures):
    """Draw a figure of the paper, as it is arranged there: a PNG."""

    number: tyro.conf.Positional[Literal[2, 3, 4, 5, 6, 7]] = tyro.MISSING
    """2 CIFAR-10, 3 SVHN, 4 CelebA, 5 Tiny ImageNet: samples and reconstructions; 6: interpolations
    between validation images; 7: the mixture."""
    gan: Path | None = None
    """Of figure 7: checkpoint or run of a GAN (train --data mixture --model gan); without it, its
    panel is left out."""


@dataclass(frozen=True)
class Encode(_Trained):
    """Encode RGB images into an .npz: mu (N, z), and file names where there are any.

    z is 64 for networks of CIFAR-10, 256 for all others.
    """

    input: Path = tyro.MISSING
    """Images of the size trained on, 32×32 or 64×64: .npz (uint8, NHWC or NCHW), SVHN's .mat (X),
    or a folder of image files."""
    features: bool = False
    """Also write features (N, D), those of the L2-SVM of §4.4; at width 1, D is 5376 for SVHN's
    networks, 5184 for CIFAR-10's, 48128 for CelebA's and 4608 for Tiny ImageNet's."""


Commands = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Interpolate, tyro.conf.subcommand("interpolate")]
    | Annotated[Figure, tyro.conf.subcommand("figure")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[table1.Table1, tyro.conf.subcommand("table1")]
)


def run(argv: list[str] | None = None) -> None:
    """Parses the arguments (None: the process's) and does what they ask."""
    asked = parse_args(Commands, argv, prog=PROG)
    for name in ("threads", "image_every", "count", "rows", "steps"):
        value = getattr(asked, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if isinstance(asked, _Trained):
        suffix = ".npz" if isinstance(asked, Encode) else ".png"
        if asked.output.suffix != suffix:
            raise UserError(f"--output must end in {suffix}, not {asked.output.name!r}")
    if asked.threads is not None:
        import torch

        torch.set_num_threads(asked.threads)
    if isinstance(asked, Train):
        train(_with_settings(asked, argv))
    elif isinstance(asked, Encode):
        encode(asked)
    elif isinstance(asked, Figure):
        figure(asked)
    elif isinstance(asked, table1.Table1):
        table1.run(asked)
    else:
        draw(asked)


# train


def _with_settings(asked: Train, argv: list[str] | None) -> Train:
    """The options once more, on top of the settings of --config or of the run that is resumed."""
    if asked.resume and not (asked.output_dir / "config.json").exists():
        raise UserError(f"there is no run in {asked.output_dir} to resume: leave --resume out")
    source = asked.output_dir / "config.json" if asked.resume else asked.config
    if source is None:
        return asked
    try:
        settings = json.loads(source.read_text())
    except OSError as error:
        raise UserError(f"cannot read {source}: {(error.strerror or '').lower()}") from error
    except ValueError as error:
        raise UserError(f"{source} is not JSON: give the config.json of a run") from error
    if not isinstance(settings, dict):
        raise UserError(f"{source} holds no settings: give the config.json of a run")
    default = replace(asked, experiment=Config.from_dict(settings))
    return parse_args(Commands, argv, default=default, prog=PROG)


def train(options: Train) -> None:
    """Trains into options.output_dir; see Train. Ctrl-C and SIGTERM leave it ready to resume."""
    folder, config = options.output_dir, options.experiment
    if not options.resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use: choose another --output-dir, or go on with --resume")
    with terminable():
        try:
            _train(options, folder, config)
        except KeyboardInterrupt as stop:
            how = f"go on with: {PROG} train --resume --output-dir {folder}"
            stop.args = (how if (folder / "config.json").exists() else "nothing was written",)
            raise


def _train(options: Train, folder: Path, config: Config) -> None:
    from ali import data, experiment
    from ali.training.state import State
    from ali.training.step import device

    dataset = data.load(config)
    for note in dataset.notes:
        print(note, flush=True)
    if (folder / "checkpoint" / "state.json").exists():
        state = State.load(folder / "checkpoint", device(), config)
    else:  # a new run, or one that was stopped in its first epoch
        state = State.create(config, dataset.train, device())
        make_folder(folder)
    with atomic_write(folder / "config.json") as path:
        path.write_text(json.dumps(config.to_dict(), indent=1) + "\n")
    _cut_log(folder / "metrics.jsonl", state.epoch)
    if state.epoch >= config.epochs:
        print(f"{state.epoch} epochs are done already: ask for more with --epochs")
    with _progress(state.epoch, config.epochs) as show:
        try:
            for _, metrics in experiment.run(config, dataset, state):
                with open(folder / "metrics.jsonl", "a") as log:
                    log.write(json.dumps(metrics) + "\n")
                if state.epoch % options.image_every == 0 or state.epoch == config.epochs:
                    _draw_epoch(state, dataset, folder)
                state.save(folder / "checkpoint")
                show(metrics)
        except NonFiniteError as error:
            raise SystemExit(
                f"stopped: training diverged ({error}); try a smaller --lr-d and --lr-g. "
                f"{folder}/checkpoint is from before"
            ) from error


def _cut_log(path: Path, epoch: int) -> None:
    """Drops what a killed run logged after its last checkpoint, a half-written line included."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)[EPOCH] <= epoch:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    with atomic_write(path) as partial:
        partial.write_text("".join(kept))


def _draw_epoch(state: State, dataset: Dataset, folder: Path) -> None:
    from ali.figures.grids import epoch_pictures

    for name, picture in epoch_pictures(state.networks, dataset, state.config).items():
        _write_png(folder / f"{name}-{state.epoch:04d}.png", picture)


@contextmanager
def _progress(done: int, epochs: int) -> Iterator[Any]:
    """A function that shows an epoch's metrics: a line each, and on a terminal a bar below."""
    import rich.console
    import rich.progress

    console = rich.console.Console()
    bar = rich.progress.Progress(console=console, disable=not console.is_terminal, transient=True)
    with bar:
        task = bar.add_task("epochs", total=epochs, completed=done)

        def show(metrics: dict[str, float]) -> None:
            told = f"epoch {metrics[EPOCH]}/{epochs}"
            for name, form in TOLD.items():
                if name in metrics:
                    told += f"  {name} {metrics[name]:{form}}"
            told += f"  {metrics[IMAGES_PER_SECOND]:.0f} images/s"
            console.print(told, highlight=False, soft_wrap=True)
            bar.update(task, completed=metrics[EPOCH])

        yield show


# sample, reconstruct, interpolate, figure, encode


def _load(options: _Trained) -> tuple[ALI, Config]:
    from ali.models.precision import compute_dtype
    from ali.training.checkpoint import find_checkpoint
    from ali.training.state import load_networks
    from ali.training.step import device

    networks, config = load_networks(find_checkpoint(options.checkpoint), device())
    if options.precision is not None and config.data != "mixture":  # points are always fp32
        dtype = compute_dtype(options.precision, device())
        for part in (networks.encoder, networks.decoder):
            if part is not None:
                part.dtype = dtype
    return networks, config


def _load_for_images(options: _Trained) -> tuple[ALI, Config]:
    networks, config = _load(options)
    if config.data == "mixture":
        raise UserError(
            f"points of the mixture are no images: {PROG} figure 7 draws samples, reconstructions "
            "and encodings"
        )
    return networks, config


def draw(options: Sample | Reconstruct | Interpolate) -> None:
    """Writes the grid that is asked for."""
    from ali.figures import grids

    networks, config = _load_for_images(options)
    if isinstance(options, Sample):
        picture = grids.samples(networks, options.count, options.seed)
    else:
        x = _validation_images(options, networks, config)
        if isinstance(options, Reconstruct):
            picture = grids.reconstructions(networks, x[: options.count], options.seed)
        else:
            pairs = x[: 2 * options.rows]
            picture = grids.interpolations(
                networks, pairs, options.rows, options.steps, options.seed
            )
    _write_png(options.output, picture)


def figure(options: Figure) -> None:
    """Writes the figure that is asked for."""
    from ali.figures import paper

    networks, config = _load(options)
    paper.check(options.number, config.data)
    if options.gan is not None and options.number != 7:
        raise UserError(f"figure {options.number} shows no GAN: leave --gan out")
    if options.number == 7:
        _write_png(options.output, _mixture(options, networks, config))
        return
    data = options.data or config.data
    paper.check(options.number, data)
    x = _validation_images(options, networks, config)
    if options.number == 6:
        picture = paper.interpolations(networks, x, data, options.seed)
    else:
        picture = paper.samples_and_reconstructions(options.number, networks, x, data, options.seed)
    _write_png(options.output, picture)


def _mixture(options: Figure, networks: ALI, config: Config) -> np.ndarray:
    """Fig. 7. Raises UserError where --checkpoint is no ALI, or --gan no GAN on its mixture."""
    from ali.figures.mixture import mixture_panels

    if options.data is not None or options.data_dir is not None:
        raise UserError("figure 7 draws its own points: leave --data and --data-dir out")
    if config.model != "ali":
        raise UserError("figure 7 takes an ALI as --checkpoint and the GAN as --gan")
    if options.gan is None:
        return mixture_panels(networks, config, seed=options.seed)
    gan, other = _load(replace(options, checkpoint=options.gan))
    if (other.model, other.data, other.modes) != ("gan", "mixture", config.modes):
        raise UserError(
            f"--gan {options.gan} is of --model {other.model} --data {other.data} --modes "
            f"{other.modes}: it must be of --model gan --data mixture --modes {config.modes}"
        )
    return mixture_panels(networks, config, gan, options.seed)


def _validation_images(options: _Pictures, networks: ALI, config: Config) -> np.ndarray:
    """Images uint8 (N, H, W, 3), of the data set that is asked for, to show to the encoder.

    Raises UserError for a GAN, and for images of another size than the networks take.
    """
    from ali import data

    networks.require_encoder()
    _, height, width = networks.table.image
    name = options.data or config.data
    if name != config.data or options.data_dir is not None:
        config = config.replace(
            data=name,
            data_dir=options.data_dir,
            image_size=height if name == "folder" else 32,  # whose only use is there
            attribute=None,
            train_size=None,
        )
    # what training asked of the data's size and labels does not matter here
    unlabelled = config.replace(batch_size=2, labels=1, balanced=False, attribute=None)
    x = data.load(unlabelled).valid.x
    if x.shape[1:3] != (height, width):
        raise UserError(
            f"{config.data} has images of {x.shape[1]}×{x.shape[2]}, but the checkpoint takes "
            f"{height}×{width}: choose another --data"
        )
    return x


def _write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    with atomic_write(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def encode(options: Encode) -> None:
    """Writes mu, and features and names where there are any, to options.output."""
    from ali.data.image_files import read_images
    from ali.evaluation import protocol
    from ali.models.inference import mu

    networks, _ = _load_for_images(options)
    networks.require_encoder()
    x, names = read_images(options.input, networks.table.image[1])
    found = {"mu": mu(networks, x)}
    if options.features:
        found["features"] = protocol.features(networks, x)
    if names is not None:
        found["names"] = np.array(names)
    with atomic_write(options.output) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **found)


if __name__ == "__main__":
    main(run)
