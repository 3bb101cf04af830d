"""ali.data.splits: how images are ordered and cut into splits."""

import collections

from ali.data import splits


def test_mixed_order_is_fixed_and_one_of_many():
    """By the paths alone: an image more does not change the order of the others."""
    paths = [f"n{c:02}/{i}.jpg" for c in range(20) for i in range(50)]
    mixed = splits.mixed_order(paths)
    assert mixed == splits.mixed_order(reversed(paths)) and sorted(mixed) == sorted(paths)
    assert [path for path in splits.mixed_order([*paths, "new"]) if path != "new"] == mixed
    held = collections.Counter(path.split("/")[0] for path in mixed[-200:])
    assert len(held) == 20 and max(held.values()) < 25  # 10 expected of each
    # Another order would bring what a checkpoint was trained on into the validation set.
    assert "".join(splits.mixed_order("abcdefgh")) == "hdacbfge"


def test_hold_out_last_is_the_end_and_never_empty():
    assert splits.hold_out_last(range(40), 0.1) == (range(36), range(36, 40))
    assert splits.hold_out_last("abc", 0.1) == ("ab", "c")


def test_validation_is_a_fifth_of_small_and_a_fixed_number_of_large_data():
    assert splits.validation_size(39_999, 10_000) == 8000
    assert splits.validation_size(40_000, 10_000) == 10_000
    assert splits.validation_size(2, 10_000) == 0
