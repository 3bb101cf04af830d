"""A training run in one value, saved and loaded exactly: networks, Adam, epoch, randomness."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ali.config import Config
from ali.errors import UserError
from ali.models.networks import ALI, build, compute_dtype
from ali.models.tables import printed

if TYPE_CHECKING:
    from ali.data import Images

FORMAT = 1
MANIFEST = "state.json"
PARTIAL = ".partial"  # a file that is being written
PIXEL_MEAN_IMAGES = 500
# A run may go on with these changed: they alter how long and how it is judged, not the training.
CHANGEABLE = frozenset(
    {"epochs", "labels", "balanced", "draws", "eval_every", "data_dir", "attribute"}
)


@dataclass
class State:
    """Everything that training changes.

    `generator` is the only source of randomness: data order, z, noise and dropout masks.
    `epoch` and `step` count what is done.
    """

    config: Config
    networks: ALI
    optimizer_d: torch.optim.Adam
    optimizer_g: torch.optim.Adam
    generator: torch.Generator
    epoch: int = 0
    step: int = 0

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @classmethod
    def create(cls, config: Config, images: Images, device: torch.device | str) -> State:
        """An untrained run, determined by `config` (its seed), the training images and the device.

        Images whose size is not the table's raise UserError.
        """
        maps, height, width = printed(config).image
        if images.x.shape[1:] != (height, width, maps):
            raise UserError(
                f"training images are {images.x.shape[1:]}; the networks for {config.data} take "
                f"{(height, width, maps)}"
            )
        seeder = torch.Generator().manual_seed(config.seed)
        networks = build(
            config,
            _pixel_mean(images.x, config.seed),
            seeder,
            compute_dtype(config.precision, torch.device(device)),
        )
        seed = int(torch.randint(2**63 - 1, (), generator=seeder))
        return _assemble(config, networks, torch.Generator(device).manual_seed(seed))

    def save(self, folder: Path | str) -> None:
        """Writes the checkpoint into `folder`, replacing the one there; see `_commit`.

        At any moment, kill -9 and power loss included, `folder` holds the last complete
        checkpoint. Raises UserError where the folder cannot be written or the disk is full; the
        old checkpoint is then untouched and nothing is left behind.
        """
        manifest = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "generator": {
                "device": self.device.type,
                "state": base64.b64encode(self.generator.get_state().numpy().tobytes()).decode(),
            },
        }
        tensors = {
            "weights": self.networks.state_dict(),
            "optimizer": _optimizer_tensors(self.networks, self.optimizer_d)
            | _optimizer_tensors(self.networks, self.optimizer_g),
        }
        _commit(Path(folder), manifest, tensors)

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str, config: Config | None = None
    ) -> State:
        """The state that was saved in `folder`, ready to go on training on `device`.

        `config` may change what does not alter training (CHANGEABLE), such as epochs. On the kind
        of device it was saved on, training continues bit for bit; on another kind, randomness
        starts anew from the seed and the step. Raises UserError where there is no checkpoint, it
        is damaged, or `config` describes another experiment.
        """
        folder = Path(folder)
        manifest, saved = _read_manifest(folder)
        config = saved if config is None else _continued(saved, config)
        networks = _networks(folder, manifest, config, torch.device(device))
        generator = torch.Generator(device)
        if manifest["generator"]["device"] == generator.device.type:
            words = bytearray(base64.b64decode(manifest["generator"]["state"]))
            generator.set_state(torch.frombuffer(words, dtype=torch.uint8))
        else:
            generator.manual_seed(config.seed + manifest["step"])
        state = _assemble(config, networks, generator)
        state.epoch, state.step = manifest["epoch"], manifest["step"]
        moments = _read_tensors(folder, manifest, "optimizer")
        for optimizer in (state.optimizer_d, state.optimizer_g):
            _restore_optimizer(networks, optimizer, moments, folder)
        return state


def load_networks(folder: Path | str, device: torch.device | str = "cpu") -> tuple[ALI, Config]:
    """The networks saved in `folder`, in evaluation mode, and their experiment; no optimiser.

    Raises UserError where there is no checkpoint or it is damaged.
    """
    manifest, config = _read_manifest(Path(folder))
    return _networks(Path(folder), manifest, config, torch.device(device)).eval(), config


def _assemble(config: Config, networks: ALI, generator: torch.Generator) -> State:
    networks.to(generator.device).train()
    optimizer_d = torch.optim.Adam(
        networks.discriminator.parameters(),
        lr=config.lr_d,
        betas=(config.beta1_d, config.beta2_d),
        eps=1e-8,
        fused=True,  # one pass over weights, gradients and moments
    )
    optimizer_g = torch.optim.Adam(
        [
            *(networks.encoder.parameters() if networks.encoder is not None else ()),
            *networks.decoder.parameters(),
        ],
        lr=config.lr_g,
        betas=(config.beta1_g, config.beta2_g),
        eps=1e-8,
        fused=True,
    )
    return State(config, networks, optimizer_d, optimizer_g, generator)


def _pixel_mean(x: np.ndarray, seed: int) -> Tensor:
    """Mean (3, H, W) in [0, 1] of 500 images of x, uint8 (N, H, W, 3), drawn at random."""
    count = min(PIXEL_MEAN_IMAGES, len(x))
    chosen = np.sort(np.random.default_rng(seed).choice(len(x), count, replace=False))
    return torch.from_numpy(x[chosen].mean(axis=0) / 255).permute(2, 0, 1).float()


def _continued(saved: Config, config: Config) -> Config:
    differing = [
        field.name
        for field in fields(Config)
        if getattr(saved, field.name) != getattr(config, field.name)
        and field.name not in CHANGEABLE
    ]
    if differing:
        shown = ", ".join(
            f"{name} {getattr(saved, name)!r} → {getattr(config, name)!r}" for name in differing
        )
        raise UserError(
            f"the checkpoint is of another experiment ({shown}): "
            "keep these settings to continue it, or start a new run"
        )
    return config


# Adam's moments, by the name of their weight ------------------------------------------------


def _names(networks: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in networks.named_parameters()}


def _optimizer_tensors(networks: ALI, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    names = _names(networks)
    return {
        f"{names[parameter]}.{key}": value
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }


def _restore_optimizer(
    networks: ALI, optimizer: torch.optim.Adam, tensors: dict[str, Tensor], folder: Path
) -> None:
    names = _names(networks)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = names[parameter] + "."
            entry: dict[str, Tensor] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(prefix + key)) is None:
                    continue
                if key == "step":
                    entry[key] = value.to(parameter.device)
                else:  # keeps the weight's memory layout, which fused Adam expects
                    entry[key] = torch.empty_like(parameter).copy_(value)
            if entry and len(entry) < 3:
                raise UserError(
                    f"checkpoint {folder} lacks optimiser tensors of {names[parameter]}"
                )
            if entry:
                optimizer.state[parameter] = entry


# Files --------------------------------------------------------------------------------------


def _commit(folder: Path, manifest: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> None:
    """Writes each group of tensors under a new name; replacing state.json then is the commit.

    state.json names the tensor files that belong to it, with their checksums, and os.replace is
    atomic: a reader finds either the old set or the new one. Names come from the content, so no
    file changes its content. Only after the commit are older files deleted.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest["files"] = {}
        for group, named in tensors.items():
            content = safetensors.torch.save(
                {name: t.cpu().contiguous() for name, t in named.items()}
            )
            digest = hashlib.sha256(content).hexdigest()
            name = f"{group}-{digest[:16]}.safetensors"
            manifest["files"][group] = {"name": name, "sha256": digest}
            if not (folder / name).exists():
                written.append(folder / name)
            _write(folder / name, content)
        _sync_folder(folder)
        _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise UserError(
            f"cannot save the checkpoint in {folder}: {error.strerror or error}; "
            "free space or choose another folder"
        ) from error
    _sync_folder(folder)
    kept = {entry["name"] for entry in manifest["files"].values()}
    for path in folder.iterdir():
        ours = path.suffix == ".safetensors" and path.name.startswith(("weights-", "optimizer-"))
        if (ours and path.name not in kept) or path.suffix == PARTIAL:
            path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Atomically: `path` has its old content or all of the new. On failure no trace is left."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(folder: Path) -> tuple[dict[str, Any], Config]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no checkpoint in {folder}: there is no {MANIFEST}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(
            f"checkpoint {path} is damaged (not JSON): restore it or train anew"
        ) from error
    required = {"format", "config", "epoch", "step", "generator", "files"}
    if not isinstance(manifest, dict) or not required <= manifest.keys():
        raise UserError(f"{path} is not a checkpoint of this program")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {manifest['format']!r}; this version reads {FORMAT}"
        )
    return manifest, Config.from_dict(manifest["config"])


def _read_tensors(folder: Path, manifest: dict[str, Any], group: str) -> dict[str, Tensor]:
    entry = manifest["files"].get(group, {"name": group, "sha256": ""})
    path = folder / entry["name"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"checkpoint {folder} lacks {path.name}: {error.strerror or error}"
        ) from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise UserError(
            f"checkpoint {folder} is damaged: {path.name} differs from its checksum; start anew"
        )
    return safetensors.torch.load(content)


def _networks(folder: Path, manifest: dict[str, Any], config: Config, device: torch.device) -> ALI:
    networks = build(config, dtype=compute_dtype(config.precision, device))
    try:
        networks.load_state_dict(_read_tensors(folder, manifest, "weights"))
    except RuntimeError as error:
        raise UserError(f"weights in {folder} do not fit their own configuration") from error
    return networks.to(device)
