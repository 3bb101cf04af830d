"""The Pareto front: points that no other point dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of undominated points, sorted by their first value; less is better.

    One point dominates another if it is nowhere worse and somewhere better. Equal points are all
    on the front.
    """
    found = [
        name
        for name, point in points.items()
        if not any(_dominates(other, point) for other in points.values())
    ]
    return sorted(found, key=lambda name: (points[name][0], name))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
