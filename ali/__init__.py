"""Adversarially Learned Inference (arXiv 1606.00704) as a library, independent of sweeps."""
