"""How many images a second a training step takes in, ours beside plain torch.

    python benchmarks/step.py [--data svhn] [--device cpu] [--threads 2] [--batch-size 100]
                              [--width 1.0] [--peer FOLDER …]

Plain is the same one-forward Algorithm 1 in nn.Conv2d, nn.BatchNorm2d, nn.Dropout and LeakyReLU,
channels-last, in fp32 and, where the hardware has it, under bf16 autocast. --data takes the
networks of another table. --peer adds a public code that lies in FOLDER (benchmarks/peers.py says
which). The variants take turns, a few steps each, so that a busy machine slows all of them; medians
over the turns. With one thread there is also ours without the compiled layers of narrow networks
(ali/models/narrow.py), and all times are processor time. "of peak" is the share of what a large
matrix product reaches in that type on the same threads, measured in the same turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from ali.cli import main
from ali.cli.common import check_at_least
from ali.config import Config, DataName
from ali.data import Images
from ali.models import narrow
from ali.models.base import Networks
from ali.models.chain import Chain
from ali.models.networks import ALI
from ali.models.precision import compute_dtype
from ali.models.tables import (
    CONV,
    LEAKY,
    LINEAR,
    MAP,
    MAXOUT,
    PIXEL,
    out_size,
    paper_table,
    rows_with_inputs,
)
from ali.training import step as training
from ali.training.losses import losses
from ali.training.state import State


class PixelBias(nn.Module):
    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.clone())

    def forward(self, h: Tensor) -> Tensor:
        return h + self.bias


class Maxout(nn.Module):
    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (-1, self.pieces)).amax(dim=2)


class Plain(nn.Module):
    """The networks of `networks`, weights copied, in torch's own modules (parameters in order)."""

    def __init__(self, networks: ALI) -> None:
        super().__init__()
        self.table = networks.table
        self.encoder = _plain(networks.require_encoder().layers)
        self.decoder = _plain(networks.decoder.layers)
        self.d_x = _plain(networks.discriminator.x)
        self.d_z = _plain(networks.discriminator.z)
        self.d_xz = _plain(networks.discriminator.xz)

    def sample(self, x: Tensor) -> Tensor:
        if self.table.noise:
            noise = torch.randn(len(x), self.table.noise, *x.shape[2:], device=x.device)
            return self.encoder(torch.cat([x, noise], dim=1)).float()
        mu, log_sigma = self.encode(x)
        return mu + log_sigma.exp() * torch.randn_like(mu)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_sigma = self.encoder(x).float().chunk(2, dim=1)  # (B, z, 1, 1)
        return mu, log_sigma

    def decode(self, z: Tensor) -> Tensor:
        out = self.decoder(z).float()
        return out if self.table.decoder[-1].nonlinearity == LINEAR else out.sigmoid()

    def discriminate(self, x: Tensor, z: Tensor) -> Tensor:
        return self.d_xz(torch.cat([self.d_x(x), self.d_z(z)], dim=1)).flatten()

    def discriminator_parameters(self) -> list[nn.Parameter]:
        return [w for net in (self.d_x, self.d_z, self.d_xz) for w in net.parameters()]

    def generator_parameters(self) -> list[nn.Parameter]:
        return [w for net in (self.encoder, self.decoder) for w in net.parameters()]


def _plain(chain: Chain) -> nn.Sequential:
    modules: list[nn.Module] = []
    for layer in chain.rows:
        row, weight = layer.row, layer.weight
        if row.dropout:
            modules.append(nn.Dropout(row.dropout))
        convolution = nn.Conv2d if row.operation == CONV else nn.ConvTranspose2d
        in_maps = weight.shape[1] if row.operation == CONV else weight.shape[0]
        op = convolution(in_maps, row.maps, row.kernel, row.stride, bias=row.bias == MAP)
        with torch.no_grad():
            op.weight.copy_(weight)
            if op.bias is not None and layer.bias is not None:
                op.bias.copy_(layer.bias)
        modules.append(op)
        if layer.bias is not None and row.bias == PIXEL:
            modules.append(PixelBias(layer.bias.detach()))
        if row.bn:
            norm = nn.BatchNorm2d(row.maps, eps=1e-4, momentum=0.05)
            with torch.no_grad():
                norm.weight.copy_(layer.gamma)
                norm.bias.copy_(layer.beta)
            modules.append(norm)
        if row.nonlinearity == LEAKY:
            modules.append(nn.LeakyReLU(chain.slope, inplace=True))
        elif row.nonlinearity == MAXOUT:
            modules.append(Maxout(chain.pieces))
    return nn.Sequential(*modules)


def plain_step(config: Config, x: Tensor, autocast: bool) -> Callable[[], None]:
    """A function that takes one plain training step on x (M, 3, H, W)."""
    networks = train_state(config, x.device).networks
    assert isinstance(networks, ALI)
    net = Plain(networks).to(x.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    theta_d, theta_g = net.discriminator_parameters(), net.generator_parameters()
    adam_d = torch.optim.Adam(theta_d, 1e-4, betas=(0.5, 0.999))
    adam_g = torch.optim.Adam(theta_g, 1e-4, betas=(0.5, 0.999))
    size = (len(x), networks.table.z, 1, 1)

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            z_hat = net.sample(x)
            z = torch.randn(size, device=x.device)
            logits = net.discriminate(torch.cat([x, net.decode(z)]), torch.cat([z_hat, z]))
        loss_d, loss_g = losses(*logits.chunk(2))
        gradients_d = torch.autograd.grad(loss_d, theta_d, retain_graph=True)
        gradients_g = torch.autograd.grad(loss_g, theta_g)
        for weight, gradient in zip(theta_d + theta_g, gradients_d + gradients_g, strict=True):
            weight.grad = gradient
        adam_d.step()
        adam_g.step()

    return step


def our_step(config: Config, x: Tensor, compiled: bool = True) -> Callable[[], None]:
    state = train_state(config, x.device)

    def step() -> None:
        with contextlib.nullcontext() if compiled else narrow.left_out():
            training.train_step(state, x)

    return step


def train_state(config: Config, device: torch.device) -> State:
    maps, height, width = paper_table(config).image
    made = np.random.default_rng(0).integers(0, 256, (500, height, width, maps), np.uint8)
    return State.create(config, Images(made, None), device)


def gflop_an_image(networks: Networks) -> float:
    """10⁹ operations (multiply and add counted) of one step's convolutions, for one x."""
    assert isinstance(networks, ALI)
    macs: dict[str, list[int]] = {}  # of one forward pass for one input, by network and row
    for name, rows in rows_with_inputs(networks.table).items():
        macs[name] = [
            (out_size(row, size) if row.operation == CONV else size) ** 2
            * (row.kernel**2 * maps * row.maps)
            for row, maps, size in rows
        ]
    whole = sum(sum(macs[name]) for name in ("d_x", "d_z", "d_xz"))
    inputs = sum(macs["d_x"][:1] + macs["d_z"][:1])
    # forward, weights', data gradients; D has two inputs an image, and for L_g a second data pass,
    # which reaches one half of its inputs
    total = sum(3 * sum(macs[name]) - macs[name][0] for name in ("encoder", "decoder"))
    total += 2 * 4 * whole - 2 * 2 * inputs + inputs
    return 2 * total / 1e9


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    n = 8192 if device.type == "cuda" else 1536
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / seconds_a_step(lambda: a @ a, 2, device) / 1e9


def seconds_a_step(step: Callable[[], object], count: int, device: torch.device) -> float:
    one = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one else time.perf_counter  # which other processes lengthen
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / count


def command() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="svhn", choices=get_args(DataName), help="whose table")
    parser.add_argument("--peer", type=Path, nargs="*", default=[], help="folders of public codes")
    parser.add_argument("--device", default=str(training.device()), help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--batch-size", type=int, default=100, help="images a step")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of the feature maps")
    parser.add_argument("--turns", type=int, default=7, help="times each variant is measured")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    options = parser.parse_args()
    check_at_least(1, threads=options.threads, turns=options.turns, steps=options.steps)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = Config(data=options.data, width=options.width, batch_size=options.batch_size)
    x = torch.rand(options.batch_size, *paper_table(config).image, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    if device.type == "cpu":
        training.keep_freed_memory()

    fp32, bf16 = torch.float32, torch.bfloat16
    variants = {
        "plain, fp32": (fp32, plain_step(config, x, autocast=False)),
        "ours, fp32": (fp32, our_step(config.replace(precision="fp32"), x)),
    }
    if compute_dtype("auto", device) == bf16:
        variants["plain, bf16 autocast"] = (bf16, plain_step(config, x, autocast=True))
        variants["ours, bf16"] = (bf16, our_step(config.replace(precision="bf16"), x))
    if device.type == "cpu" and options.threads == 1:
        for name in [name for name in variants if name.startswith("ours")]:
            dtype, precision = variants[name][0], name.rpartition(" ")[2]
            step = our_step(config.replace(precision=precision), x, compiled=False)
            variants[f"{name}, not compiled"] = (dtype, step)
    for folder in options.peer:
        import peers  # beside this file

        variants[folder.resolve().name] = (fp32, peers.load(folder, options.batch_size, device))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks: dict[torch.dtype, list[float]] = {dtype: [] for dtype, _ in variants.values()}
    for _, step in variants.values():
        seconds_a_step(step, 2, device)  # warm up
    for _ in range(options.turns):
        for dtype, found in peaks.items():
            found.append(peak_gflops(device, dtype))
        for name, (_, step) in variants.items():
            seconds[name].append(seconds_a_step(step, options.steps, device))

    gflop = gflop_an_image(train_state(config, device).networks)
    print(
        f"{device}, {options.threads} threads, batch {len(x)}, width {options.width:g}: "
        f"{gflop:.3f} GFLOP an image; "
        + ", ".join(f"{t} peak {statistics.median(p):.0f} GFLOP/s" for t, p in peaks.items())
    )
    base = statistics.median(seconds["plain, fp32"])
    print(f"{'':24} {'ms a step':>10} {'images/s':>10} {'× plain fp32':>13} {'of peak':>8}")
    for name, (dtype, _) in variants.items():
        median = statistics.median(seconds[name])
        rate = options.batch_size / median
        share = rate * gflop / statistics.median(peaks[dtype])
        print(f"{name:24} {median * 1e3:10.1f} {rate:10.1f} {base / median:13.2f} {share:8.1%}")


if __name__ == "__main__":
    main(command)
