"""Table 3's rows: spatial sizes, parameter counts of the authors' code, what a Config changes."""

from __future__ import annotations

from typing import get_args

import pytest

from ali.config import Config, DataName
from ali.errors import UserError
from ali.models.tables import (
    LEAKY,
    MAP,
    MAXOUT,
    MIXTURE,
    NONE,
    TABLE2,
    TABLE3,
    TABLE4,
    TABLE5,
    Rows,
    apply_config,
    out_maps,
    out_size,
    paper_table,
)


def sizes(rows: Rows, size: int) -> list[int]:
    found = [size]
    for row in rows:
        found.append(out_size(row, found[-1]))
    return found


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (TABLE2.encoder, [32, 28, 13, 10, 4, 1, 1, 1]),
        (TABLE2.d_x, [32, 28, 13, 10, 4, 1]),
        (TABLE2.decoder, [1, 4, 10, 13, 28, 32, 32, 32]),
        (TABLE3.encoder, [32, 28, 13, 10, 4, 1, 1, 1]),
        (TABLE3.d_x, [32, 28, 13, 10, 4, 1]),
        (TABLE3.decoder, [1, 4, 10, 13, 28, 32, 32, 32]),
        (TABLE3.d_z, [1, 1, 1]),
        (TABLE3.d_xz, [1, 1, 1, 1]),
        (TABLE4.encoder, [64, 63, 29, 13, 4, 1, 1]),
        (TABLE4.d_x, [64, 63, 29, 13, 4, 1]),
        (TABLE4.decoder, [1, 4, 13, 29, 63, 64, 64]),
        (TABLE5.encoder, [64, 31, 28, 13, 10, 4, 1, 1, 1, 1]),
        (TABLE5.d_x, [64, 31, 28, 13, 10, 4, 1]),
        (TABLE5.decoder, [1, 1, 1, 4, 10, 13, 28, 31, 64, 64]),
    ],
)
def test_spatial_sizes(rows, expected):
    assert sizes(rows, expected[0]) == expected


@pytest.mark.parametrize("data", get_args(DataName))
def test_the_default_configuration_is_the_paper(data):
    config = Config(data=data)
    assert apply_config(config) == paper_table(config)


def test_every_data_set_has_its_table():
    assert [
        paper_table(Config(data=d)) for d in ("cifar10", "svhn", "celeba", "tiny-imagenet")
    ] == [*(TABLE2, TABLE3, TABLE4, TABLE5)]
    assert paper_table(Config(data="folder", image_size=64)).image == (3, 64, 64)


def test_the_input_widths_of_the_joint_follow_from_the_rows():
    # As printed, but for Table 2 (before maxout) and Table 4 (z is 256-d), see facts in tables.py
    def joint(table):
        d_x, d_z = (out_maps(rows[-1], table.pieces) for rows in (table.d_x, table.d_z))
        return d_x + d_z

    assert [joint(t) for t in (TABLE2, TABLE3, TABLE4, TABLE5)] == [512, 1024, 1536, 2304]
    for table in (TABLE2, TABLE3, TABLE4, TABLE5):
        assert table.encoder[-1].maps == 2 * table.z  # [μ, log σ]


def test_width_scales_hidden_rows_and_leaves_the_outputs():
    table = apply_config(Config(width=0.25))
    for name in ("encoder", "decoder", "d_x", "d_z", "d_xz"):
        for row, paper in zip(getattr(table, name), getattr(TABLE3, name), strict=True):
            hidden = paper.nonlinearity == LEAKY
            assert row.maps == (paper.maps // 4 if hidden else paper.maps)
    assert table.z == 256
    assert min(row.maps for row in apply_config(Config(width=1e-6)).encoder) == 1


def test_dropout_goes_to_every_row_of_its_own_part():
    table = apply_config(Config(dropout_x=0.1, dropout_z=0.3, dropout_xz=0.5))
    assert [row.dropout for row in table.d_x] == [0.1] * 5
    assert [row.dropout for row in table.d_z] == [0.3] * 2
    assert [row.dropout for row in table.d_xz] == [0.5] * 3
    assert {row.dropout for row in table.encoder + table.decoder} == {0.0}


def test_batch_norm_is_per_layer_and_replaces_the_bias():
    bn_x = (True, False, True, False, True)
    table = apply_config(Config(bn_x=bn_x, bn_z=True, bn_xz=True))
    assert tuple(row.bn for row in table.d_x) == bn_x
    assert [row.bias for row in table.d_x] == [NONE, MAP, NONE, MAP, NONE]
    assert [row.bn for row in table.d_z] == [True, True]
    assert [row.bn for row in table.d_xz] == [True, True, False]  # never on the logit
    assert [row.bias for row in table.d_xz] == [NONE, NONE, MAP]


def test_a_bn_x_of_another_length_is_a_clear_error():
    with pytest.raises(UserError, match="6 convolutions"):
        apply_config(Config(data="tiny-imagenet", bn_x=(True,) * 5))


def test_width_keeps_whole_maxout_groups():
    for data in ("cifar10", "mixture"):
        table = apply_config(Config(data=data, width=0.3))
        rows = [r for r in table.d_x + table.d_z + table.d_xz if r.nonlinearity == MAXOUT]
        assert rows and all(row.maps % table.pieces == 0 for row in rows)
    assert MIXTURE.d_xz[0].maps == 800
