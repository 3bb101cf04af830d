"""The paper's architecture tables (appendix A), row by row, and how a Config changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ali.config import Config
from ali.errors import UserError

CONV, TCONV = "convolution", "transposed convolution"  # both "valid": padding 0
LEAKY, MAXOUT, LINEAR, SIGMOID = "leaky ReLU", "maxout", "linear", "sigmoid"
HIDDEN = (LEAKY, MAXOUT)
Y, N = True, False
# Biases are not in the tables; they follow the authors' code (IshmaelBelghazi/ALI, 5f2de51).
NONE, MAP, PIXEL = "none", "one per feature map", "one per pixel and map (untied)"


class Row(NamedTuple):
    """One layer: dropout on its input, then the operation, bias, batch norm, nonlinearity.

    `maps` is counted before maxout, as in Table 2: the next row gets maps / pieces.
    """

    operation: str
    kernel: int
    stride: int
    maps: int
    bn: bool
    dropout: float
    nonlinearity: str
    bias: str


Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """The five networks of one table.

    The encoder's last row holds [μ, log σ], 2·z maps; with `noise` it is deterministic instead,
    takes that many normal numbers as further input maps, and ends in z maps.
    """

    image: tuple[int, int, int]  # channels, height, width
    z: int
    slope: float  # of every leaky ReLU
    encoder: Rows
    decoder: Rows
    d_x: Rows
    d_z: Rows
    d_xz: Rows  # its input is D(x) and D(z), concatenated
    pieces: int = 2  # of maxout
    noise: int = 0
    weight_std: float = 0.01  # "Isotropic gaussian (μ = 0, σ = 0.01), Constant(0)"


# fmt: off
TABLE2 = Table(  # CIFAR-10
    image=(3, 32, 32),
    z=64,
    slope=0.1,
    #       Operation  Kernel  Strides  Maps  BN?  Dropout  Nonlinearity  Bias
    encoder=(
        Row(CONV,      5,      1,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      2,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       512,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       512,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       128,  N,   0.0,     LINEAR,       MAP),
    ),
    decoder=(
        Row(TCONV,     4,      1,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      1,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     5,      1,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,         3,  N,   0.0,     SIGMOID,      PIXEL),
    ),
    d_x=(
        Row(CONV,      5,      1,        32,  N,   0.2,     MAXOUT,       PIXEL),
        Row(CONV,      4,      2,        64,  N,   0.5,     MAXOUT,       PIXEL),
        Row(CONV,      4,      1,       128,  N,   0.5,     MAXOUT,       PIXEL),
        Row(CONV,      4,      2,       256,  N,   0.5,     MAXOUT,       PIXEL),
        Row(CONV,      4,      1,       512,  N,   0.5,     MAXOUT,       PIXEL),
    ),
    d_z=(
        Row(CONV,      1,      1,       512,  N,   0.2,     MAXOUT,       NONE),
        Row(CONV,      1,      1,       512,  N,   0.5,     MAXOUT,       NONE),
    ),
    d_xz=(  # printed input 1024: that is before maxout; these rows take 256 + 256
        Row(CONV,      1,      1,      1024,  N,   0.5,     MAXOUT,       MAP),
        Row(CONV,      1,      1,      1024,  N,   0.5,     MAXOUT,       MAP),
        Row(CONV,      1,      1,         1,  N,   0.5,     SIGMOID,      MAP),  # we keep the logit
    ),
)
TABLE3 = Table(  # SVHN. Consistent as printed: 512 encoder outputs are μ and log σ of a 256-d z.
    image=(3, 32, 32),
    z=256,
    slope=0.01,
    #       Operation  Kernel  Strides  Maps  BN?  Dropout  Nonlinearity  Bias
    encoder=(
        Row(CONV,      5,      1,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      2,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       512,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       512,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       512,  N,   0.0,     LINEAR,       MAP),
    ),
    decoder=(
        Row(TCONV,     4,      1,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      1,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     5,      1,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,        32,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,         3,  N,   0.0,     SIGMOID,      PIXEL),
    ),
    d_x=(
        Row(CONV,      5,      1,        32,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      4,      2,        64,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      1,       128,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      2,       256,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      1,       512,  Y,   0.2,     LEAKY,        NONE),
    ),
    d_z=(
        Row(CONV,      1,      1,       512,  N,   0.2,     LEAKY,        NONE),
        Row(CONV,      1,      1,       512,  N,   0.2,     LEAKY,        NONE),
    ),
    d_xz=(
        Row(CONV,      1,      1,      1024,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,      1024,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,         1,  N,   0.2,     SIGMOID,      MAP),
    ),
)
TABLE4 = Table(  # CelebA
    image=(3, 64, 64),
    z=256,  # printed 512 as the decoder's and D(z)'s input: those are the encoder's μ and log σ
    slope=0.02,
    #       Operation  Kernel  Strides  Maps  BN?  Dropout  Nonlinearity  Bias
    encoder=(
        Row(CONV,      2,      1,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      7,      2,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      5,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      7,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       512,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       512,  N,   0.0,     LINEAR,       MAP),
    ),
    decoder=(
        Row(TCONV,     4,      1,       512,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     7,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     5,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     7,      2,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     2,      1,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,         3,  N,   0.0,     SIGMOID,      PIXEL),
    ),
    d_x=(  # printed: batch norm on the first row too, dropout 0.0; the code: as here
        Row(CONV,      2,      1,        64,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      7,      2,       128,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      5,      2,       256,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      7,      2,       256,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      1,       512,  Y,   0.2,     LEAKY,        NONE),
    ),
    d_z=(
        Row(CONV,      1,      1,      1024,  N,   0.2,     LEAKY,        NONE),
        Row(CONV,      1,      1,      1024,  N,   0.2,     LEAKY,        NONE),
    ),
    d_xz=(  # printed input 1024: D(x) gives 512 and D(z) 1024, so 1536
        Row(CONV,      1,      1,      2048,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,      2048,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,         1,  N,   0.2,     SIGMOID,      MAP),
    ),
)
TABLE5 = Table(  # Tiny ImageNet. Shapes consistent as printed.
    image=(3, 64, 64),
    z=256,
    slope=0.01,
    #       Operation  Kernel  Strides  Maps  BN?  Dropout  Nonlinearity  Bias
    encoder=(
        Row(CONV,      4,      2,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      2,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      2,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      4,      1,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,      2048,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,      2048,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       512,  N,   0.0,     LINEAR,       MAP),
    ),
    decoder=(
        Row(CONV,      1,      1,      2048,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      1,       256,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      1,       128,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      1,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(TCONV,     4,      2,        64,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,         3,  N,   0.0,     SIGMOID,      PIXEL),
    ),
    d_x=(
        Row(CONV,      4,      2,        64,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      4,      1,        64,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      2,       128,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      1,       128,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      2,       256,  Y,   0.2,     LEAKY,        NONE),
        Row(CONV,      4,      1,       256,  Y,   0.2,     LEAKY,        NONE),
    ),
    d_z=(
        Row(CONV,      1,      1,      2048,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,      2048,  N,   0.2,     LEAKY,        MAP),
    ),
    d_xz=(
        Row(CONV,      1,      1,      4096,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,      4096,  N,   0.2,     LEAKY,        MAP),
        Row(CONV,      1,      1,         1,  N,   0.2,     SIGMOID,      MAP),
    ),
)
MIXTURE = Table(  # Fig. 7: points of the plane, as images of one pixel; no table in the paper
    image=(2, 1, 1),
    z=2,
    slope=0.0,  # ReLU
    noise=2,
    pieces=5,
    weight_std=0.02,
    #       Operation  Kernel  Strides  Maps  BN?  Dropout  Nonlinearity  Bias
    encoder=(
        Row(CONV,      1,      1,       200,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       200,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,         2,  N,   0.0,     LINEAR,       MAP),
    ),
    decoder=(
        Row(CONV,      1,      1,       200,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,       200,  Y,   0.0,     LEAKY,        NONE),
        Row(CONV,      1,      1,         2,  N,   0.0,     LINEAR,       MAP),
    ),
    d_x=(),
    d_z=(),
    d_xz=(  # 800 counted before maxout, as in Table 2
        Row(CONV,      1,      1,       800,  N,   0.2,     MAXOUT,       MAP),
        Row(CONV,      1,      1,       800,  N,   0.5,     MAXOUT,       MAP),
        Row(CONV,      1,      1,         1,  N,   0.5,     SIGMOID,      MAP),
    ),
)
# fmt: on
_OF_DATA = {
    "house-numbers": TABLE3,
    "svhn": TABLE3,
    "cifar10": TABLE2,
    "celeba": TABLE4,
    "tiny-imagenet": TABLE5,
    "mixture": MIXTURE,
}
_OF_SIZE = {32: TABLE3, 64: TABLE5}  # of a data set that the paper does not have


def paper_table(config: Config) -> Table:
    """The table of the configuration's data set, unchanged."""
    return _OF_DATA.get(config.data) or _OF_SIZE[config.image_size]


def apply_config(config: Config) -> Table:
    """The paper's table with the configuration's width, dropout, batch norm and initial weights.

    Its slopes are not applied here.

    Width multiplies the hidden rows' maps. The outputs (μ and log σ, pixels, logit) keep the
    paper's size, and so does z: every width has the same prior, and the SVM's μ the same length. A
    row that gains batch norm loses its bias, one that loses it gets a bias per map (the authors'
    rule for D(x)). Raises UserError if bn_x does not have one value per row of D(x).
    """
    table = paper_table(config)
    if config.bn_x is not None and len(config.bn_x) != len(table.d_x):
        raise UserError(
            f"--bn-x has {len(config.bn_x)} values: D(x) on {config.data} has "
            f"{len(table.d_x)} convolutions"
        )
    bn_x = [row.bn for row in table.d_x] if config.bn_x is None else config.bn_x
    bn_xz = [config.bn_xz] * (len(table.d_xz) - 1) + [False]

    def discriminator(rows: Rows, bn: Sequence[bool], dropout: float | None) -> Rows:
        changed = (
            row if row.bn == on else row._replace(bn=on, bias=NONE if on else MAP)
            for row, on in zip(rows, bn, strict=True)
        )
        if dropout is not None:
            changed = (row._replace(dropout=dropout) for row in changed)
        return _widened(tuple(changed), config.width, table.pieces)

    return replace(
        table,
        weight_std=table.weight_std if config.weight_std is None else config.weight_std,
        encoder=_widened(table.encoder, config.width, table.pieces),
        decoder=_widened(table.decoder, config.width, table.pieces),
        d_x=discriminator(table.d_x, bn_x, config.dropout_x),
        d_z=discriminator(table.d_z, [config.bn_z] * len(table.d_z), config.dropout_z),
        d_xz=discriminator(table.d_xz, bn_xz, config.dropout_xz),
    )


def out_size(row: Row, size: int) -> int:
    """Height (= width) in pixels of the row's output for an input of `size` pixels; no padding."""
    if row.operation == CONV:
        return (size - row.kernel) // row.stride + 1
    return (size - 1) * row.stride + row.kernel


def out_maps(row: Row, pieces: int) -> int:
    """Feature maps that the next row gets."""
    return row.maps // pieces if row.nonlinearity == MAXOUT else row.maps


def rows_with_inputs(table: Table, levels: int = 1) -> dict[str, list[tuple[Row, int, int]]]:
    """The rows of each network, each with the maps and the pixels a side of its input.

    `levels`: stochastic layers; the networks of those above the first are not among them.
    """
    maps, size, _ = table.image
    found: dict[str, list[tuple[Row, int, int]]] = {}

    def outputs(name: str, maps: int, size: int) -> int:
        found[name] = []
        for row in getattr(table, name):
            found[name].append((row, maps, size))
            maps, size = out_maps(row, table.pieces), out_size(row, size)
        return maps

    outputs("encoder", maps + table.noise, size)
    outputs("decoder", levels * table.z, 1)
    outputs("d_xz", outputs("d_x", maps, size) + outputs("d_z", levels * table.z, 1), 1)
    return found


def _widened(rows: Rows, width: float, pieces: int) -> Rows:
    def maps(row: Row) -> int:
        if row.nonlinearity == MAXOUT:
            return max(1, round(row.maps * width / pieces)) * pieces
        return max(1, round(row.maps * width)) if row.nonlinearity == LEAKY else row.maps

    return tuple(row._replace(maps=maps(row)) for row in rows)
