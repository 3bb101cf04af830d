"""Hyperparameter sweeps over `ali`: Ray Tune, Optuna and MLflow live here and nowhere else."""
