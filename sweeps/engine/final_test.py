"""The end of a full training: the test split, which only this reads, and the model registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ali.config import Config
from ali.data import Dataset, Images
from ali.metrics import TEST_ERROR_MEAN, TEST_ERROR_STD, VAL_ERROR

if TYPE_CHECKING:
    from ali.models.networks import ALI

WIDTH = 100  # characters of the printed table


def test_metrics(
    networks: ALI, dataset: Dataset, test: Images, config: Config, objective: str, svms: int
) -> dict[str, float]:
    """What the test split says, by metric: the protocol of §4.4, or sample quality without labels.

    The error is a fraction, mean and standard deviation over `svms` labelled draws.
    """
    from ali.evaluation import protocol, quality

    if objective != VAL_ERROR:
        print(f"testing the samples against {len(test)} test images")
        found = quality.measure(networks, replace(dataset, valid=test), config)
        return {f"test_{name}": value for name, value in found.items()}
    print(f"testing with {svms} SVMs on {len(test)} test images")
    errors = protocol.test_errors(networks, dataset, test, config, draws=svms)
    std = errors.std(ddof=1 if len(errors) > 1 else 0)
    return {TEST_ERROR_MEAN: float(errors.mean()), TEST_ERROR_STD: float(std)}


test_metrics.__test__ = False  # type: ignore[attr-defined]  # nothing for pytest to collect


def register(client: Any, run_id: str, checkpoint: Path, name: str) -> str:
    """Logs a checkpoint to its run and registers it as a model; returns the model's version."""
    from mlflow.exceptions import MlflowException

    client.log_artifacts(run_id, str(checkpoint), "model")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    return client.create_model_version(name, source, run_id).version


def result_table(found: dict[str, float], config: Config, epochs: int, unofficial: bool) -> str:
    """The result as text: for house numbers beside Table 1, otherwise a line a metric.

    Args:
        unofficial: whether the data differs from what its authors publish.
    """
    from ali.evaluation.table1 import TABLE_1

    if config.data not in ("svhn", "house-numbers"):
        lines = [f"{config.data}, {epochs} epochs:"]
        return "\n".join(lines + [f"  {name} {value:.4f}" for name, value in found.items()])
    table = Table(
        title="Table 1: test error with 1000 labels, as published, and this run",
        title_justify="left",
    )
    table.add_column("model")
    table.add_column("error", justify="right")
    for row in TABLE_1:
        table.add_row(*row)
    table.add_section()
    mean, std = found[TEST_ERROR_MEAN], found[TEST_ERROR_STD]
    table.add_row(
        f"this run ({config.data}, {config.labels} labels, {epochs} epochs)",
        f"{mean:.2%} (± {std:.2%})".replace("%", " %"),
    )
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table)
        if config.data != "svhn" or unofficial:
            console.print("Not comparable with the published errors: not the official SVHN.")
    return capture.get()
