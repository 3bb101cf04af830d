"""What a user may ask of a sweep: where it lives, its options, and how a resume changes them."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ali import environment
from ali.config import MAX_SEED, Common, Config
from ali.errors import UserError
from ali.files import atomic_write, refuse_address
from ali.output import without_password
from ali.settings import missing_file, read_settings, to_yaml
from sweeps.engine.objective import Direction, Objective
from sweeps.engine.option_groups import LOCATION_GROUPS, OPTION_GROUPS
from sweeps.engine.scripts import here, running_command
from sweeps.engine.storage import Storage
from sweeps.engine.tracking.client import OUTAGE_SECONDS, default_uri

NOT_IN_NAMES = "'`:\\"  # MLflow's registry refuses names with ":", its queries the others
SEEDS = 10**12  # from a sweep's own upwards: of its trials and full trainings
MAX_NAME = 200  # bytes; longer ones, with what we add, exceed what MLflow's tables hold
JOURNAL, OPTIONS = "optuna.journal", "options.yaml"  # files in a sweep's folder
BEST_OPTIONS = "best.yaml"  # there, too: options of the full training
DEFAULT_FOLDER = Path("runs")
OLD_OPTIONS = "sweep.json"  # of a sweep that an earlier version has started


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a sweep and its runs are: the options that all commands on a sweep share."""

    GROUPS: ClassVar = LOCATION_GROUPS

    name: str
    """Name of the sweep: its folder in --output-dir, and the tag of its runs in MLflow."""
    output_dir: Path = field(default_factory=environment.output_dir)
    """Folder of all sweeps: journal, checkpoints, Tune's state; default: $ALI_OUTPUT_DIR, or
    runs."""
    storage_path: str | None = field(default_factory=environment.storage_path)
    """Bucket for checkpoints, Tune's state, copies of journal, options and log (s3://bucket/runs,
    gs://…); default: $ALI_STORAGE_PATH, or --output-dir."""
    tracking_uri: str | None = None
    """MLflow server; default: the one that the sweep was started with, else $MLFLOW_TRACKING_URI,
    else the file mlflow.db in --output-dir."""

    def __post_init__(self) -> None:
        name = self.name
        plain = name.strip() == Path(name).name == name and name.isprintable()
        if not plain or name in ("", ".."):
            raise UserError(f"--name must be a plain file name, not {name!r}")
        if found := [character for character in NOT_IN_NAMES if character in name]:
            raise UserError(f"--name must not contain {found[0]}, which MLflow refuses: {name!r}")
        if name.startswith(("-", "mlflow.db")) or name == "artifacts":
            raise UserError(f"--name {name!r} has another meaning: choose another")
        if len(os.fsencode(name)) > MAX_NAME:
            raise UserError(f"--name is longer than {MAX_NAME} bytes: {name[:20]}…")
        refuse_address(self.output_dir, "--output-dir", "a bucket is named by --storage-path")
        if self.tracking_uri and without_password(self.tracking_uri) != self.tracking_uri:
            raise UserError(
                "--tracking-uri must not hold a password, which would be logged: "
                "set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.output_dir.resolve() / self.name

    @property
    def storage(self) -> Storage:
        """Where the sweep's checkpoints are. Raises UserError for an invalid address."""
        return Storage.at(self.storage_path or self.output_dir, self.name)

    def check_storage(self) -> None:
        """Raises UserError if nothing can be written where the checkpoints are to be."""
        self.storage.check("--storage-path" if self.storage_path else "--output-dir")

    def with_saved_storage(self) -> Self:
        """The same, with the bucket that the sweep was started with where none is given."""
        bucket = self.storage_path or read_options(self.folder).get("storage_path")
        return replace(self, storage_path=bucket)

    @property
    def uri(self) -> str:
        """The MLflow address, by the same rule in every command."""
        return self._own_uri or environment.tracking_uri() or default_uri(self.output_dir)

    @property
    def _own_uri(self) -> str | None:
        """The one that is given, or the sweep was started with; that of the environment may move
        with a cluster's head."""
        return self.tracking_uri or read_options(self.folder).get("tracking_uri")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    def absolute(self) -> Self:
        """The same, with paths that do not depend on the working folder."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        changes: dict[str, Any] = {k: v.resolve() for k, v in given.items() if isinstance(v, Path)}
        storage, uri = self.storage_path, self.tracking_uri
        if storage and "://" not in storage:
            changes["storage_path"] = str(Path(storage).resolve())
        if uri and uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///")).resolve()
            changes["tracking_uri"] = f"sqlite:///{path}"
        return replace(self, **changes)

    def write(self, file: Path, *about: str) -> None:
        """Writes them to a file that --config reads, all or nothing; `about`: its first lines."""
        plain, text = self.absolute().to_dict(), "".join(f"# {line}\n" for line in about)
        for group in self.GROUPS:
            known = {name: plain[name] for name in group.names.split() if name not in OF_A_START}
            text += f"\n# {group.title} options\n{to_yaml(known)}"
        with atomic_write(file) as path:
            path.write_text(text, encoding="utf-8")

    def arguments(self) -> list[str]:
        """The command-line arguments by which another command finds this sweep."""
        shown = ["--name", self.name]  # and what a shell without our environment would miss
        if self.output_dir != DEFAULT_FOLDER:
            shown += ["--output-dir", str(self.output_dir)]
        if self.storage_path:
            shown += ["--storage-path", self.storage_path]
        if self.tracking_uri:
            shown += ["--tracking-uri", self.tracking_uri]
        return shown


@dataclass(frozen=True, kw_only=True)
class Options(Common, Location):
    """Options of a sweep."""

    GROUPS: ClassVar = OPTION_GROUPS

    resume: bool = False
    """Resume the sweep of this name; its other options are remembered."""
    auto_resume: bool = False
    """Resume the sweep if it has begun, else start it: for jobs that a scheduler starts again."""
    num_trials: int = 50
    """Trials in total (a resume may raise it)."""
    bn_with_z: bool = False
    """Also try batch norm in D(z) and D(x, z), which the paper calls unstable."""
    vary_weight_std: bool = False
    """Also search the initial weights' standard deviation, from the table's to ten times that."""
    vary_batch_size: bool = False
    """Also search the batch size: half, once and twice --batch-size."""
    space: Path | None = None
    """Your own search space, a TOML, YAML or JSON file (docs/space.md): other ranges, choices,
    fixed values, further dimensions."""
    objective: str | None = None
    """Metric to compare trials by, or arithmetic of several: "val_error + 0.1 * sample_distance";
    default: the data set's, val_error with labels."""
    direction: Direction | None = None
    """minimize or maximize the --objective; default: what is better for a known metric, else
    minimize."""
    warm_start: str | None = None
    """Earlier sweep in --output-dir whose five best configurations are tried first, in this sweep's
    space; its data, width and budget may differ."""
    grace_epochs: int | None = None
    """Epochs before a trial may be stopped; default: a tenth of --epochs."""
    reduction_factor: float = 2.0
    """A trial is stopped if it is unlikely to end among the best 1/N of the completed ones (2: the
    better half); none is stopped before ten have completed."""
    race: int = 0
    """After every N new configurations, train the most promising one again with a fresh seed, each
    at most --confirm-seeds times; 0: never."""
    confirm: int = 0
    """At the end, train this many of the best configurations again with fresh seeds, and the
    paper's as a control; 0: none."""
    confirm_seeds: int = 4
    """Most fresh seeds per configuration, for --race and --confirm; at least 2."""
    sampler: SamplerName = "forest"
    """Sampler of new configurations: forest (regression trees fitted to the runs so far), or tpe
    (Optuna's)."""
    startup_trials: int = 10
    """Trials drawn at random before the sampler models its observations."""
    image_every: int | None = None
    """Epochs between pictures in MLflow; default: a tenth of --epochs."""
    max_concurrent: int | None = None
    """Trials at a time; default: as many as the resources allow."""
    cpus_per_trial: int | None = None
    """CPU cores (and threads) of a trial; default: an equal part of the cores."""
    gpus_per_trial: float | None = None
    """GPUs of a trial, may be a fraction; default: 1/4, 1/2 or 1 if there are GPUs, by the
    memory that a trial takes, and so that not too many run at a time."""
    max_failures: int = 3
    """Maximum restarts of a trial after its worker is lost, without a new epoch in between."""
    hang_seconds: float = 21600.0
    """Seconds without a result after which a trial's worker is killed and counts as lost: longer
    than any epoch with its evaluation and checkpoint."""
    keep: int = 3
    """Best trials whose last checkpoint is kept; those of other ended trials are deleted."""
    outage_seconds: float = OUTAGE_SECONDS
    """How long trials keep unsent log records, and the driver waits, while the MLflow server or the
    bucket is unavailable, in seconds."""
    front_page: bool = True
    """Keep the sweep's run in MLflow up to date: its result in words, figures, the report."""
    seed: int = 0
    """Seed of the search; trial n trains with seed + n."""

    def __post_init__(self) -> None:
        super().__post_init__()
        minimum = {
            "num_trials": 1,
            "max_concurrent": 1,
            "cpus_per_trial": 1,
            "grace_epochs": 1,
            "image_every": 1,
            "startup_trials": 1,
            "race": 0,
            "confirm": 0,
            "confirm_seeds": 2,
            "max_failures": 0,
            "keep": 1,
            "seed": 0,
            "gpus_per_trial": 0,
            "outage_seconds": 0,
            "hang_seconds": 1,
        }
        for name, least in minimum.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                option = "--" + name.replace("_", "-")
                raise UserError(f"{option} must be at least {least}, not {value}")
        if self.seed > (most := MAX_SEED - SEEDS):  # before a trial's would be refused
            raise UserError(f"--seed must be at most {most}, not {self.seed}")
        if (gpus := self.gpus_per_trial or 0) > 1 and not float(gpus).is_integer():
            raise UserError(f"--gpus-per-trial {gpus:g}: Ray takes whole GPUs above 1")
        if not self.reduction_factor > 1:
            raise UserError(f"--reduction-factor must be above 1, not {self.reduction_factor}")
        if self.objective is not None:
            Objective.parse(self.objective)
        elif self.direction:
            raise UserError("--direction is that of an --objective: name one, or leave it out")

    def config(self) -> Config:
        """What all trials of the sweep have in common."""
        common = {f.name: getattr(self, f.name) for f in fields(Common)}
        data_dir = self.data_dir
        if data_dir is None and (root := environment.data_dir()):
            refuse_address(root, "ALI_DATA_DIR", "set it to a folder that all nodes have")
            folder = root / self.data  # where a cluster keeps its data sets
            data_dir = folder if folder.is_dir() else None
        if data_dir is not None:  # trials, and best.py, run in folders of their own
            common["data_dir"] = data_dir.resolve()
        return Config(**common, seed=self.seed)

    def save(self) -> None:
        """Writes them to the sweep's folder, where a resume and --config find them, all or nothing.

        A resume from another working folder means the same places. Raises UserError if it fails.
        """
        file = self.folder / OPTIONS
        again = running_command("--config", here(file), "--name", "again")
        what = f"The options of sweep {self.name}; a resume reads them. To repeat it:"
        replace(self, tracking_uri=self._own_uri).write(file, what, again)
        with contextlib.suppress(OSError):  # no longer read
            (self.folder / OLD_OPTIONS).unlink(missing_ok=True)

    def automatic(self) -> Options:
        """The same, resuming if that is asked for and the sweep has begun."""
        if self.resume or not self.auto_resume:
            return self
        begun = (self.folder / JOURNAL).exists() or self.storage.has(JOURNAL)
        return replace(self, resume=begun)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Options:
        """Inverse of `to_dict`."""
        return cls(**_with_paths(plain))


OF_A_START = ("resume", "auto_resume")  # options of one start, not of the sweep
# What a resume may change; anything else would make its trials incomparable.
SamplerName = Literal["forest", "tpe"]
RESUME_MAY_CHANGE = frozenset(
    {*OF_A_START, "num_trials", "max_concurrent", "cpus_per_trial", "gpus_per_trial", "data_dir"}
    | {"max_failures", "keep", "tracking_uri", "outage_seconds", "output_dir", "image_every"}
    | {"hang_seconds", "storage_path", "race", "confirm", "confirm_seeds", "front_page"}
    | {"sampler"}
    | {"space"}  # the journal has what is in it: traces.begun_space
)


def options_file(folder: Path) -> Path:
    """Where the options of a sweep are, or will be."""
    old, new = folder / OLD_OPTIONS, folder / OPTIONS
    return old if old.exists() and not new.exists() else new


def read_options(folder: Path) -> dict[str, Any]:
    """The options saved in a sweep's folder, as plain JSON types; empty if there are none.

    Raises UserError, naming the line, if they are damaged or another sweep's.
    """
    try:
        plain = _read(Options, options_file(folder), folder.name)
    except FileNotFoundError:
        return {}
    except UserError as error:
        way_on = "restore the file from a copy, or start a sweep with another --name"
        raise UserError(f"{error}; {way_on}") from error
    return plain | _moved(plain, folder.parent.resolve())


def read_config(kind: type[Location], file: Path) -> dict[str, Any]:
    """The values of options in a file that a user gives (--config).

    Paths in a file that a sweep has written follow its folder if that was moved. Raises UserError,
    naming the line, if they are not options of `kind`.
    """
    folder = file.absolute().parent
    try:
        plain = _read(kind, file)
    except FileNotFoundError:
        raise missing_file(file) from None
    own = {options_file(folder), folder / BEST_OPTIONS}
    if file.absolute() in own and plain.get("name") == folder.name:
        plain |= _moved(plain, folder.parent.resolve()) | {"output_dir": str(folder.parent)}
        for name in OF_A_START:
            plain.pop(name, None)
    return _with_paths(plain)


def _read(kind: type[Location], file: Path, name: str | None = None) -> dict[str, Any]:
    """The options in a file; `name`: the sweep they must belong to."""
    found = read_settings(file)
    found.check(kind)
    plain: dict[str, Any] = found.values
    if name is not None and plain.get("name") != name:
        found.refuse("name", f"is {plain.get('name')!r}, and that of the folder is another")
    with found.naming_lines():
        made = kind(**{"name": "any", **_with_paths(plain)})
        if isinstance(made, Options):
            made.config()
    return plain


def _moved(plain: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    """The saved options that may be paths, updated to the present output folder."""
    before = re.compile(f"^(sqlite:///|file://)?{re.escape(str(plain.get('output_dir')))}(?=/|$)")
    if not str(plain.get("output_dir")).startswith("/"):  # of an earlier version
        return {}
    places = {key: plain.get(key) for key in ("tracking_uri", "storage_path", "data_dir")}

    def now(found: re.Match[str]) -> str:
        return (found[1] or "") + str(output_dir)

    return {key: before.sub(now, where) for key, where in places.items() if where}


def _with_paths(plain: dict[str, Any]) -> dict[str, Any]:
    names = ("data_dir", "output_dir", "space")
    places = {name: Path(plain[name]) for name in names if plain.get(name)}
    return {**plain, **places}
