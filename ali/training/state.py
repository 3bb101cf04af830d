"""All that training changes, saved and loaded exactly: networks, Adam, randomness, epoch."""

from __future__ import annotations

import base64
import inspect
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ali.catalog import KINDS
from ali.config import Config, Precision
from ali.errors import UserError
from ali.models import registry
from ali.models.base import Networks
from ali.models.precision import compute_dtype, lacks_bf16
from ali.models.tables import paper_table
from ali.training import checkpoint
from ali.training.checkpoint import Manifest

if TYPE_CHECKING:
    from ali.data import Images, LabelledBatches
    from ali.training.step_graph import StepGraph

log = logging.getLogger(__name__)

# What a resume may change: the length of a run and its evaluation, nothing that alters training.
# See `resumable_changes` for models that are trained with labels.
RESUMABLE_CHANGES = frozenset(
    {"epochs", "labels", "balanced", "draws", "draw", "eval_every", "data_dir"}
)


@dataclass
class State:
    """Everything that training changes.

    `generator` is the only source of randomness: data order, z, noise and dropout masks.
    `epoch` and `step` count those done. There is an optimiser for each of `networks.weights()`.
    `labelled` are the images whose labels a model that classifies is trained with; they are not
    saved, since data and configuration determine them. `graph` is the training step as this process
    has captured it, on CUDA.
    """

    config: Config
    networks: Networks
    optimizers: tuple[torch.optim.Adam, ...]
    generator: torch.Generator
    epoch: int = 0
    step: int = 0
    labelled: LabelledBatches | None = field(default=None, repr=False)
    graph: StepGraph | None = field(default=None, repr=False)

    @property
    def optimizer_d(self) -> torch.optim.Adam:
        """The discriminator's optimiser."""
        return self.optimizers[self.networks.kind.adam.index("d")]

    @property
    def optimizer_g(self) -> torch.optim.Adam:
        """The optimiser of encoder and decoder."""
        return self.optimizers[self.networks.kind.adam.index("g")]

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @classmethod
    def create(
        cls, config: Config, images: Images, device: torch.device | str, classes: int = 0
    ) -> State:
        """An untrained run, determined by `config` (its seed), the training images and the device.

        `classes`: their number, for a model that classifies. Images whose size is not the table's
        raise UserError.
        """
        maps, height, width = paper_table(config).image
        if images.x.shape[1:] != (height, width, maps):
            raise UserError(
                f"training images are {images.x.shape[1:]}; the networks for {config.data} take "
                f"{(height, width, maps)}"
            )
        seeder = torch.Generator().manual_seed(config.seed)
        dtype = compute_dtype(config.precision, torch.device(device))
        networks = registry.create(config, images.x, classes, seeder, dtype)
        seed = int(torch.randint(2**63 - 1, (), generator=seeder))
        return _assemble(config, networks, torch.Generator(device).manual_seed(seed))

    def save(self, folder: Path | str) -> None:
        """Writes the checkpoint into `folder`, replacing the one there; see `checkpoint.write`.

        At any moment, kill -9 and power loss included, `folder` holds the last complete
        checkpoint. Raises UserError if the folder cannot be written or the disk is full; the
        old checkpoint is then untouched and nothing is left behind.
        """
        words = base64.b64encode(self.generator.get_state().numpy().tobytes()).decode()
        generator = {"device": self.device.type, "state": words}
        manifest = Manifest(self.config, self.epoch, self.step, generator)
        moments: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            moments |= _optimizer_tensors(self.networks, optimizer)
        tensors = {checkpoint.WEIGHTS: self.networks.state_dict(), checkpoint.OPTIMIZER: moments}
        checkpoint.write(Path(folder), manifest, tensors)

    @classmethod
    def load(
        cls, folder: Path | str, device: torch.device | str, config: Config | None = None
    ) -> State:
        """The state saved in `folder`, ready to continue training on `device`.

        `config` may differ in RESUMABLE_CHANGES, such as epochs. On the kind of device it was
        saved on, training continues bit for bit; on another kind, randomness starts anew from the
        seed and the step. Raises UserError if there is no checkpoint, it is damaged, `config`
        describes another experiment, or it trains in bf16 and the GPU has none.
        """
        folder = Path(folder)
        groups = checkpoint.WEIGHTS, checkpoint.OPTIMIZER
        manifest, (weights, moments) = checkpoint.read(folder, *groups)
        config = manifest.config if config is None else _resumed_config(manifest.config, config)
        networks = _networks(folder, weights, config, torch.device(device))
        generator = torch.Generator(device)
        if manifest.generator["device"] == generator.device.type:
            words = bytearray(base64.b64decode(manifest.generator["state"]))
            generator.set_state(torch.frombuffer(words, dtype=torch.uint8))
        else:
            generator.manual_seed(config.seed + manifest.step)
        state = _assemble(config, networks, generator)
        state.epoch, state.step = manifest.epoch, manifest.step
        for optimizer in state.optimizers:
            _restore_optimizer(networks, optimizer, moments, folder)
        return state


def load_networks(
    folder: Path | str,
    device: torch.device | str = "cpu",
    precision: Precision | None = None,
) -> tuple[Networks, Manifest]:
    """The networks saved in `folder`, in evaluation mode, and their manifest.

    `precision`: default the run's own, but fp32, with a note in the log, on a GPU without bf16:
    weights are fp32. Raises UserError if there is no checkpoint, it is damaged, or the GPU lacks
    the bf16 that is asked for.
    """
    manifest, (weights,) = checkpoint.read(folder, checkpoint.WEIGHTS)
    config, device = manifest.config, torch.device(device)
    if lacks_bf16(precision or config.precision, device):
        if precision is not None:
            raise UserError("this GPU has no bf16 arithmetic: use --precision fp32")
        log.warning("note: %s was trained in bf16, which this GPU lacks: used in fp32", folder)
        precision = "fp32"
    used = config if precision is None else config.replace(precision=precision)
    return _networks(Path(folder), weights, used, device).eval(), manifest


class Adam(torch.optim.Adam):
    """torch's Adam without the wrappers that exclude its methods from torch.compile.

    The wrappers import torch.compile's machinery when they are first called: three seconds of
    processor time at the start of every trial.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def _assemble(config: Config, networks: Networks, generator: torch.Generator) -> State:
    networks.to(generator.device).train()
    optimizers = tuple(
        Adam(
            weights,
            lr=getattr(config, f"lr_{who}"),
            betas=(getattr(config, f"beta1_{who}"), getattr(config, f"beta2_{who}")),
            eps=1e-8,
            fused=True,  # one pass over weights, gradients and moments
        )
        for who, weights in zip(networks.kind.adam, networks.weights(), strict=True)
    )
    return State(config, networks, optimizers, generator)


def resumable_changes(config: Config) -> frozenset[str]:
    """The fields that a resume of such a run may change."""
    trained_with = {"labels", "balanced", "draw", "attribute"}
    return RESUMABLE_CHANGES - (trained_with if KINDS[config.model].classifies else set())


def _resumed_config(saved: Config, config: Config) -> Config:
    may_change = resumable_changes(saved)
    differing = [
        one.name
        for one in fields(Config)
        if getattr(saved, one.name) != getattr(config, one.name) and one.name not in may_change
    ]
    if differing:
        shown = ", ".join(
            f"{name} {getattr(saved, name)!r} → {getattr(config, name)!r}" for name in differing
        )
        raise UserError(
            f"the checkpoint has other settings ({shown}): keep them to resume it, or start a new "
            "run"
        )
    return config


# Adam's moments, by the name of their weight ------------------------------------------------


def _names(networks: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in networks.named_parameters()}


def _optimizer_tensors(networks: Networks, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    names = _names(networks)
    return {
        f"{names[parameter]}.{key}": value
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }


def _restore_optimizer(
    networks: Networks, optimizer: torch.optim.Adam, tensors: dict[str, Tensor], folder: Path
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


def _networks(
    folder: Path, saved: dict[str, Tensor], config: Config, device: torch.device
) -> Networks:
    try:
        networks = registry.empty(config, saved, compute_dtype(config.precision, device))
        networks.load_state_dict(saved)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"weights in {folder} do not fit their own configuration") from error
    return networks.to(device)
