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

from ali.cli import main, make_folder, parse_args, terminable, writing
from ali.config import D_LOSS, EPOCH, G_LOSS, IMAGES_PER_SECOND, VAL_ERROR, Config, Precision
from ali.errors import NonFiniteError, UserError

if TYPE_CHECKING:
    from ali.data import Dataset
    from ali.networks import ALI
    from ali.state import State

PROG = "python -m ali"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


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
    """Draw a PNG grid of samples x̃ = G_x(z), z ~ N(0, I)."""

    count: int = 100
    """Samples."""
    seed: int = 0
    """Seed of z."""


@dataclass(frozen=True)
class _Pictures(_Trained):
    data: Literal["house-numbers", "svhn"] | None = None
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
class Encode(_Trained):
    """Encode 32×32 RGB images into an .npz: mu (N, 256), and file names where there are any."""

    input: Path = tyro.MISSING
    """Images: .npz (uint8, NHWC or NCHW), SVHN's .mat (X), or a folder of image files."""
    features: bool = False
    """Also write features (N, 5376), those of the L2-SVM of §4.4."""


Commands = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Interpolate, tyro.conf.subcommand("interpolate")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
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
    from ali.state import State
    from ali.train import device

    dataset = data.load(config)
    for note in dataset.notes:
        print(note, flush=True)
    if (folder / "checkpoint" / "state.json").exists():
        state = State.load(folder / "checkpoint", device(), config)
    else:  # a new run, or one that was stopped in its first epoch
        state = State.create(config, dataset.train, device())
        make_folder(folder)
    with writing(folder / "config.json") as path:
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
    with writing(path) as partial:
        partial.write_text("".join(kept))


def _draw_epoch(state: State, dataset: Dataset, folder: Path) -> None:
    from ali import evaluate

    _write_png(folder / f"samples-{state.epoch:04d}.png", evaluate.samples(state.networks))
    shown = evaluate.reconstructions(state.networks, dataset.valid.x[:50])
    _write_png(folder / f"reconstructions-{state.epoch:04d}.png", shown)


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
            told += f"  d_loss {metrics[D_LOSS]:.4f}  g_loss {metrics[G_LOSS]:.4f}"
            if VAL_ERROR in metrics:
                told += f"  val_error {metrics[VAL_ERROR]:.4f}"
            told += f"  {metrics[IMAGES_PER_SECOND]:.0f} images/s"
            console.print(told, highlight=False, soft_wrap=True)
            bar.update(task, completed=metrics[EPOCH])

        yield show


# sample, reconstruct, interpolate, encode


def _load(options: _Trained) -> tuple[ALI, Config]:
    from ali.networks import compute_dtype
    from ali.state import load_networks
    from ali.train import device

    folder = options.checkpoint
    if not (folder / "state.json").exists() and (folder / "checkpoint").is_dir():
        folder = folder / "checkpoint"
    networks, config = load_networks(folder, device())
    if options.precision is not None:
        dtype = compute_dtype(options.precision, device())
        for part in (networks.encoder, networks.decoder):
            if part is not None:
                part.dtype = dtype
    return networks, config


def draw(options: Sample | Reconstruct | Interpolate) -> None:
    """Writes the picture that is asked for."""
    from ali import data, evaluate

    networks, config = _load(options)
    if isinstance(options, Sample):
        picture = evaluate.samples(networks, options.count, options.seed)
    else:
        if options.data is not None:
            config = config.replace(data=options.data, data_dir=options.data_dir, train_size=None)
        elif options.data_dir is not None:
            config = config.replace(data_dir=options.data_dir)
        x = data.load(config).valid.x
        if isinstance(options, Reconstruct):
            picture = evaluate.reconstructions(networks, x[: options.count], options.seed)
        else:
            pairs = x[: 2 * options.rows]
            picture = evaluate.interpolations(
                networks, pairs, options.rows, options.steps, options.seed
            )
    _write_png(options.output, picture)


def _write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    with writing(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def encode(options: Encode) -> None:
    """Writes mu, and features and names where there are any, to options.output."""
    from ali import evaluate

    x, names = read_images(options.input)
    networks, _ = _load(options)
    found = {"mu": evaluate.mu(networks, x)}
    if options.features:
        found["features"] = evaluate.features(networks, x)
    if names is not None:
        found["names"] = np.array(names)
    with writing(options.output) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **found)


def read_images(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Images uint8 (N, 32, 32, 3) of an .npz, a .mat or a folder, and a folder's file names.

    Raises UserError where there are none, they are damaged, or of another size or type.
    """
    if not path.exists():
        raise UserError(f"--input {path} does not exist")
    if path.is_dir():
        return _read_folder(path)
    try:
        if path.suffix == ".npz":
            x = _read_npz(path)
        elif path.suffix == ".mat":
            import scipy.io

            x = scipy.io.loadmat(path, variable_names=["X"])["X"].transpose(3, 2, 0, 1)
        else:
            raise UserError(f"--input {path} must be an .npz, a .mat or a folder of images")
    except UserError:
        raise
    except Exception as error:  # the readers raise all sorts on a damaged file
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read images from {path} ({reason}): is it damaged?") from error
    if x.dtype != np.uint8 or x.ndim != 4 or len(x) == 0:
        raise UserError(f"{path} holds {x.dtype} {x.shape}: images must be uint8, one at least")
    if x.shape[1:] == (3, 32, 32):
        x = x.transpose(0, 2, 3, 1)
    if x.shape[1:] != (32, 32, 3):
        raise UserError(f"images in {path} are {x.shape[1:]}: they must be 32×32 RGB, resize them")
    return np.ascontiguousarray(x), None


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        names = [n for n in ("x", "images", "X") if n in arrays.files] or arrays.files
        if len(names) != 1:
            shown = ", ".join(arrays.files)
            raise UserError(f"{path} holds {shown}: name the images x, or store them alone")
        return arrays[names[0]]


def _read_folder(path: Path) -> tuple[np.ndarray, list[str]]:
    from PIL import Image

    files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"--input {path} has no image files ({', '.join(sorted(IMAGE_SUFFIXES))})")
    x = np.empty((len(files), 32, 32, 3), np.uint8)
    for i, file in enumerate(files):
        try:
            with Image.open(file) as image:
                if image.size != (32, 32):
                    size = "×".join(map(str, image.size))
                    raise UserError(f"{file} is {size}: images must be 32×32, resize them")
                x[i] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise UserError(f"{file} is no readable image: repair or remove it") from error
    return x, [file.name for file in files]


if __name__ == "__main__":
    main(run)
