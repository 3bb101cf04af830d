"""A full training on several workers, through Ray Train."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ali.beside import beside
from ali.errors import UserError
from ali.files import open_regular
from sweeps.engine.cluster import NODE_CPU, check_ray, start_ray
from sweeps.engine.storage import Storage

MAX_FAILURES = 10  # workers or machines lost in one call


def train_on_workers(
    worker: Callable[[dict[str, Any]], Exception | None],
    config: dict[str, Any],
    workers: int,
    threads: int,
    log: Path,
    storage: Storage,
) -> None:
    """Runs worker(config) in several workers, restarted together if one is lost.

    Args:
        worker: trains from the last checkpoint; returns an error that another attempt would end
            with, too.
        threads: CPU threads of each worker.
        log: file that the first worker writes its lines to; they are printed meanwhile.
        storage: the sweep's.

    Raises UserError if the cluster cannot hold the workers, and what the training raises.
    """
    from ray import train
    from ray.train.torch import TorchTrainer

    check_ray()
    resources = start_ray()
    gpus = int(resources.get("GPU", 0))
    too_many = workers * threads > resources["CPU"] or threads > resources[NODE_CPU]
    if too_many or 0 < gpus < workers:
        raise UserError(
            f"{workers} workers of {threads} threads do not fit on {resources['CPU']:g} CPUs and "
            f"{gpus} GPUs: lower --workers or --threads"
        )
    trainer = TorchTrainer(
        worker,  # type: ignore[arg-type]  # its type denies that it may return a value
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": threads}
        ),
        run_config=train.RunConfig(
            name="workers",
            storage_path=f"{storage.folder}/{log.parent.name}",
            storage_filesystem=storage.filesystem if storage.remote else None,
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    print(f"splits each batch across {workers} workers (data parallel); log: {log}", flush=True)
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        with _printed(log):
            failure = trainer.fit().return_value  # type: ignore[attr-defined]
    except SystemExit:  # raised by Ray Train after a Ctrl-C
        raise KeyboardInterrupt from None
    except train.WorkerGroupError as error:
        raise next(iter(error.worker_failures.values())) from error
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _printed(log: Path) -> Iterator[None]:
    """In the block, prints the lines that workers, on whatever machine, append to a file."""
    open_regular(log, "a").close()

    def follow(ended: threading.Event) -> None:
        while True:
            last = ended.wait(0.5)
            if text := file.read():
                print(text, end="", flush=True)
            if last:
                return

    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        with beside(follow):
            yield
