"""The paper's architecture tables (appendix A), row by row, and how a Config changes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from ali.config import Config

CONV, TCONV = "convolution", "transposed convolution"  # both "valid": padding 0
LEAKY, LINEAR, SIGMOID = "leaky ReLU", "linear", "sigmoid"
Y, N = True, False
# Biases are not in the tables; they follow the authors' code (IshmaelBelghazi/ALI, 5f2de51).
NONE, MAP, PIXEL = "none", "one a feature map", "one a pixel and map (untied)"


class Row(NamedTuple):
    """One layer: dropout on its input, then the operation, bias, batch norm, nonlinearity."""

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
    """The five networks of one table. The encoder's last row holds [μ, log σ]: 2·z maps."""

    image: tuple[int, int, int]  # channels, height, width
    z: int
    encoder: Rows
    decoder: Rows
    d_x: Rows
    d_z: Rows
    d_xz: Rows  # its input is D(x) and D(z), concatenated


# fmt: off
TABLE3 = Table(  # SVHN. Consistent as printed: 512 encoder outputs are μ and log σ of a 256-d z.
    image=(3, 32, 32),
    z=256,
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
        Row(CONV,      1,      1,         1,  N,   0.2,     SIGMOID,      MAP),  # we keep the logit
    ),
)
# fmt: on


def configured(table: Table, config: Config) -> Table:
    """`table` at the configuration's width, dropout and batch norm.

    Width multiplies the maps of the leaky rows, which are the hidden ones; the outputs (μ and
    log σ, pixels, logit) and with them z keep the paper's size, so that every width has the same
    prior and the SVM's μ the same length. A row that gains batch norm loses its bias, one that
    loses batch norm gets a bias a map (the authors' rule for D(x)).
    """
    hidden_xz = [config.bn_xz] * (len(table.d_xz) - 1) + [False]
    return replace(
        table,
        encoder=_widened(table.encoder, config.width),
        decoder=_widened(table.decoder, config.width),
        d_x=_discriminator(table.d_x, config.width, config.bn_x, config.dropout_x),
        d_z=_discriminator(
            table.d_z, config.width, [config.bn_z] * len(table.d_z), config.dropout_z
        ),
        d_xz=_discriminator(table.d_xz, config.width, hidden_xz, config.dropout_xz),
    )


def out_size(row: Row, size: int) -> int:
    """Height (= width) in pixels of the row's output for an input of `size` pixels; no padding."""
    if row.operation == CONV:
        return (size - row.kernel) // row.stride + 1
    return (size - 1) * row.stride + row.kernel


def _widened(rows: Rows, width: float) -> Rows:
    return tuple(
        row._replace(maps=max(1, round(row.maps * width))) if row.nonlinearity == LEAKY else row
        for row in rows
    )


def _discriminator(rows: Rows, width: float, bn, dropout: float) -> Rows:
    changed = (
        row if row.bn == on else row._replace(bn=on, bias=NONE if on else MAP)
        for row, on in zip(rows, bn, strict=True)
    )
    return _widened(tuple(row._replace(dropout=dropout) for row in changed), width)
