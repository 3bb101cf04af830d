"""Several sweeps at once log to one MLflow server over PostgreSQL."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.audit import audit
from tests.integration.harness import EPOCHS, Server, Toy


@pytest.fixture
def postgres(tmp_path):
    """The address of a database in a PostgreSQL of its own, reached through a socket's folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    folder, user = Path("/var/tmp") / f"ali-{os.getpid()}", []
    folder.mkdir()
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres")
        user = ["runuser", "-u", "postgres", "--"]

    def run(name, *arguments):
        subprocess.run(
            [*user, found[-1] / name, *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL
        )

    data, socket = str(folder / "data"), str(folder)
    try:
        run("initdb", "-D", data, "-U", "ali", "--auth=trust", "--encoding=UTF8")
        run("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o",
            f"-k {socket} -c listen_addresses=", "start")  # fmt: skip
        run("createdb", "-h", socket, "-U", "ali", "mlflow")
        yield f"postgresql+psycopg2:///mlflow?host={socket}&user=ali"
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.long
def test_three_sweeps_at_once_log_to_mlflow_over_postgresql(tmp_path, postgres):
    server = Server(tmp_path, database=postgres, workers=2)
    server.start()
    try:
        toys = [Toy(tmp_path / name, name=name, server=server.uri) for name in ("a", "b", "c")]
        for toy in toys:
            toy.folder.mkdir()
        options = ("--tracking-uri", server.uri, "--num-trials", "6")
        processes = [toy.start(*options) for toy in toys]
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, out + err
        for toy in toys:
            ends = audit(toy, 6)
            assert "COMPLETE" in ends.values()
            for number, trial in enumerate(toy.study().get_trials()):
                (run,) = toy.mlflow()[f"{number:05d}"]
                assert run.data.metrics["epoch"] == max(trial.intermediate_values) <= EPOCHS
    finally:
        server.stop()
