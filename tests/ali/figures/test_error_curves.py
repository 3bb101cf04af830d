"""Validation error by training time."""

import math

import numpy as np

from ali.evaluation.table1 import Curve
from ali.figures.error_curves import error_curves


def test_a_model_without_an_error_is_left_out():
    """As one that was trained on images without labels."""
    seconds = [1.0, 2.0, 4.0]
    known = {"ALI": [Curve(seconds, [0.5, math.nan, 0.4]), Curve(seconds, [0.6, math.nan, 0.3])]}
    drawn = error_curves(known, "title")
    nothing = {"GAN": [Curve(seconds, [math.nan] * 3)]}
    assert drawn.std() > 0 and (error_curves({**known, **nothing}, "title") == drawn).all()
    assert np.unique(drawn.reshape(-1, 3), axis=0).shape[0] > 10
