"""Names of metrics, pictures and facts, as logged to MLflow and reported to Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping

# Metrics
VAL_ERROR = "val_error"  # fraction in [0, 1], validation split: the objective with labels
SAMPLE_DISTANCE = "sample_distance"  # of samples from the data: the objective without labels
SAMPLE_DIVERSITY = "sample_diversity"  # 0: all samples the same; 1: as different as the data
SAMPLE_SEPARATION = "sample_separation"  # 0: a few pictures, repeated; 1: as distinct as the data
CODE_USE = "code_use"  # how much reconstructions depend on ẑ: 0 not at all, 1 exact
PRIOR_GAP = "prior_gap"  # nats per dimension between the encodings of the data and the prior
MODES_MISSED = "modes_missed"  # of the mixture: the objective there
NEAR_MODES = "near_modes"  # share of the mixture's samples within 3σ of a mode
RECONSTRUCTION_DISTANCE = "reconstruction_distance"  # mean ‖x − G_x(ẑ)‖ on the mixture
TEST_ERROR_MEAN = "test_error_mean"  # fraction, mean over draws of the labelled set
TEST_ERROR_STD = "test_error_std"
RAW_PIXEL_ERROR = "raw_pixel_error"  # as val_error, of pixels; of the sweep, not of a trial
UNTRAINED_ERROR = "untrained_error"  # as val_error, of the networks before their first step
UNTRAINED_BN_ERROR = "untrained_bn_error"  # the same with batch norm's statistics of the data
D_LOSS = "d_loss"  # nats, mean of an epoch
G_LOSS = "g_loss"
LOSS = "loss"  # of a model with one: nats, unless the model says otherwise
LOSSES = {D_LOSS: "d", G_LOSS: "g", LOSS: "loss"}  # their names in a progress line
IMAGES_PER_SECOND = "images_per_second"  # training images a second, evaluation left out
EPOCH = "epoch"  # epochs done
TRAIN_SECONDS = "train_seconds"  # wall time of the epoch's training
EVAL_SECONDS = "eval_seconds"  # wall time of its evaluation, where there was one

HIGHER_IS_BETTER = frozenset(
    {SAMPLE_DIVERSITY, SAMPLE_SEPARATION, CODE_USE, NEAR_MODES, IMAGES_PER_SECOND}
)

# Pictures
SAMPLES = "samples"  # x̃ = G_x(z)
RECONSTRUCTIONS = "reconstructions"  # odd columns source, even columns result
INTERPOLATIONS = "interpolations"  # between encodings of two images, one pair per row

# Facts of a run: tags in MLflow
DEVICE = "device"
ACTIVATIONS = "activations"  # their type
COMPILED_LAYERS = "compiled_layers"  # those of narrow networks on one CPU thread

COLLAPSED = {  # measures of samples, and values below which a generator has collapsed
    SAMPLE_DIVERSITY: 0.2,  # nearly identical samples
    SAMPLE_SEPARATION: 0.5,  # a few pictures, repeated
}


def format_losses(metrics: Mapping[str, float]) -> str:
    """The losses of an epoch, as a progress line shows them."""
    return " ".join(f"{LOSSES[name]} {metrics[name]:.3f}" for name in LOSSES if name in metrics)
