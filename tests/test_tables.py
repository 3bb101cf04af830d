"""Table 3's rows: spatial sizes, parameter counts of the authors' code, what a Config changes."""

from __future__ import annotations

import pytest

from ali.config import Config
from ali.tables import LEAKY, MAP, NONE, TABLE3, Rows, configured, out_size


def sizes(rows: Rows, size: int) -> list[int]:
    found = [size]
    for row in rows:
        found.append(out_size(row, found[-1]))
    return found


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (TABLE3.encoder, [32, 28, 13, 10, 4, 1, 1, 1]),
        (TABLE3.d_x, [32, 28, 13, 10, 4, 1]),
        (TABLE3.decoder, [1, 4, 10, 13, 28, 32, 32, 32]),
        (TABLE3.d_z, [1, 1, 1]),
        (TABLE3.d_xz, [1, 1, 1, 1]),
    ],
)
def test_spatial_sizes(rows, expected):
    assert sizes(rows, expected[0]) == expected


def test_the_default_configuration_is_the_paper():
    assert configured(TABLE3, Config()) == TABLE3


def test_the_printed_input_widths_follow_from_the_rows():
    assert TABLE3.encoder[-1].maps == 2 * TABLE3.z  # [μ, log σ]
    assert TABLE3.d_x[-1].maps + TABLE3.d_z[-1].maps == 1024  # "D(x, z) − 1024 × 1 × 1 input"


def test_width_scales_hidden_rows_and_leaves_the_outputs():
    table = configured(TABLE3, Config(width=0.25))
    for name in ("encoder", "decoder", "d_x", "d_z", "d_xz"):
        for row, paper in zip(getattr(table, name), getattr(TABLE3, name), strict=True):
            hidden = paper.nonlinearity == LEAKY
            assert row.maps == (paper.maps // 4 if hidden else paper.maps)
    assert table.z == 256
    assert min(row.maps for row in configured(TABLE3, Config(width=1e-6)).encoder) == 1


def test_dropout_goes_to_every_row_of_its_own_part():
    table = configured(TABLE3, Config(dropout_x=0.1, dropout_z=0.3, dropout_xz=0.5))
    assert [row.dropout for row in table.d_x] == [0.1] * 5
    assert [row.dropout for row in table.d_z] == [0.3] * 2
    assert [row.dropout for row in table.d_xz] == [0.5] * 3
    assert {row.dropout for row in table.encoder + table.decoder} == {0.0}


def test_batch_norm_is_per_layer_and_replaces_the_bias():
    bn_x = (True, False, True, False, True)
    table = configured(TABLE3, Config(bn_x=bn_x, bn_z=True, bn_xz=True))
    assert tuple(row.bn for row in table.d_x) == bn_x
    assert [row.bias for row in table.d_x] == [NONE, MAP, NONE, MAP, NONE]
    assert [row.bn for row in table.d_z] == [True, True]
    assert [row.bn for row in table.d_xz] == [True, True, False]  # never on the logit
    assert [row.bias for row in table.d_xz] == [NONE, NONE, MAP]
