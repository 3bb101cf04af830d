"""Options, shares of a node, and what may change at a resume."""

import io
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from ali.config import Config
from ali.errors import UserError
from sweeps.engine import reporting
from sweeps.engine.driver import NODE_CPU, Options, Share, allot, parse


def options(**more):
    return Options(name="s", **more)


@pytest.mark.parametrize(
    ("asked", "resources", "share"),
    [
        ({}, {"CPU": 2}, Share(1, 0.0, 1, 2)),
        ({"max_concurrent": 1}, {"CPU": 2}, Share(2, 0.0, 2, 1)),
        ({"num_trials": 1}, {"CPU": 8}, Share(8, 0.0, 8, 1)),
        ({"cpus_per_trial": 4}, {"CPU": 8}, Share(4, 0.0, 4, 2)),
        ({}, {"CPU": 16, "GPU": 2}, Share(8, 1.0, 8, 2)),
        ({"gpus_per_trial": 0.25}, {"CPU": 16, "GPU": 2}, Share(2, 0.25, 2, 8)),
        ({"gpus_per_trial": 0}, {"CPU": 4, "GPU": 1}, Share(1, 0.0, 1, 4)),
        ({"max_concurrent": 3}, {"CPU": 2}, Share(1, 0.0, 1, 2)),
        ({"max_concurrent": 3}, {"CPU": 16, NODE_CPU: 4}, Share(4, 0.0, 4, 3)),
    ],
)
def test_shares(asked, resources, share):
    assert allot(options(**asked), resources) == share


@pytest.mark.parametrize("asked", [{"gpus_per_trial": 1}, {"cpus_per_trial": 3}])
def test_a_share_larger_than_the_node(asked):
    with pytest.raises(UserError, match="lower --cpus-per-trial"):
        allot(options(**asked), {"CPU": 8, NODE_CPU: 2})


@pytest.mark.parametrize(
    "wrong",
    [{"num_trials": 0}, {"reduction_factor": 1}, {"max_failures": -1}, {"gpus_per_trial": -1}],
)
def test_values_out_of_their_domain(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        options(**wrong)


def test_the_shared_part_is_an_experiment():
    for given in (
        {"width": 0.5, "epochs": 7, "data": "house-numbers", "seed": 3},
        {"data": "folder", "image_size": 64, "levels": 2},
        {"data": "mixture", "modes": 25, "model": "gan"},
    ):
        argv = [str(a) for k, v in given.items() for a in ("--" + k.replace("_", "-"), v)]
        assert parse(options(), argv).config() == Config(**given)


def test_the_data_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert options(data_dir=Path("images")).config().data_dir == tmp_path / "images"


def saved(folder, **more):
    made = options(output_dir=folder, epochs=5, **more)
    made.folder.mkdir(parents=True)
    (made.folder / "sweep.json").write_text(json.dumps(made.to_dict()))
    return ["--name", "s", "--output-dir", str(folder), "--resume"]


def test_a_resume_remembers_and_may_raise_the_number_of_trials(tmp_path):
    argv = saved(tmp_path, labels=100)
    resumed = parse(options(epochs=100), [*argv, "--num-trials", "80"])
    assert (resumed.epochs, resumed.labels, resumed.num_trials) == (5, 100, 80)


def test_a_resume_refuses_what_would_change_its_trials(tmp_path):
    with pytest.raises(UserError, match="cannot change --epochs, --labels"):
        parse(options(), [*saved(tmp_path), "--epochs", "6", "--labels", "10"])


def test_options_survive_json():
    made = replace(options(), gpus_per_trial=0.5)
    assert Options.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_the_library_knows_no_sweep():
    code = (
        "import pkgutil, importlib, sys, ali\n"
        "for m in pkgutil.iter_modules(ali.__path__):\n"
        "    if m.name != '__main__': importlib.import_module(f'ali.{m.name}')\n"
        "print({'ray', 'optuna', 'mlflow', 'sweeps'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_table_of_best_trials_is_not_cut():
    config = Config(bn_x=(True,) * 5, dropout_x=0.25, dropout_z=0.25, dropout_xz=0.25)
    slopes = {f"slope_{who}": 0.125 for who in ("encoder", "decoder", "discriminator")}
    params = {k: str(v) for k, v in config.replace(**slopes).to_dict().items()}
    params["bn_x"] = ",".join(["True"] * 5)
    metrics = dict.fromkeys(("sample_distance", "sample_diversity", "val_error"), 0.123456)
    data = SimpleNamespace(params=params, metrics=metrics, tags={"trial_id": "00000"})
    table = reporting._best(options(), [SimpleNamespace(data=data)], "val_error")
    console = Console(file=io.StringIO(), width=reporting.WIDTH, color_system=None)
    console.print(table)
    shown = console.file.getvalue()
    assert "…" not in shown and "diversity" in shown and "1.0e-4/1.0e-4" in shown


def test_a_password_in_an_address_is_refused_since_addresses_are_logged():
    with pytest.raises(UserError, match="--tracking-uri must not hold a password"):
        options(tracking_uri="https://me:secret@mlflow.example.org")
    assert options(tracking_uri="https://mlflow.example.org").tracking_uri


def test_a_full_disk_spares_the_options_that_are_saved(tmp_path):
    known = options(output_dir=tmp_path, num_trials=7)
    known.folder.mkdir()
    known.save()
    saved = (known.folder / "sweep.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*sweep\.json"):
            replace(known, num_trials=8).save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(f.name, f.read_bytes()) for f in known.folder.iterdir()] == [("sweep.json", saved)]
