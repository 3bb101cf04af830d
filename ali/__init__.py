"""Adversarially Learned Inference (arXiv 1606.00704): a library that knows no sweep."""
