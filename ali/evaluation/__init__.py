"""How good a model is: the SVM protocol of §4.4, sample quality, and the baselines of Table 1."""
