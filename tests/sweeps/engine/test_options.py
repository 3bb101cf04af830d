"""Options: their domains, JSON, where a sweep is found, and what may change at a resume."""

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ali.config import MAX_SEED, Config
from ali.errors import UserError
from sweeps.engine.final import FinalOptions, fresh_seeds
from sweeps.engine.launch import acquire_sweep
from sweeps.engine.options import JOURNAL, SEEDS, Location, Options, read_config
from sweeps.engine.saved_options import parse, saved_options
from sweeps.engine.storage import Storage

pytestmark = pytest.mark.versions


def options(**more):
    return Options(name="s", **more)


@pytest.mark.parametrize(
    "wrong",
    [{"num_trials": 0}, {"reduction_factor": 1}, {"max_failures": -1}, {"gpus_per_trial": -1}],
)
def test_values_out_of_their_domain(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        options(**wrong)


@pytest.mark.parametrize("gpus", [1.5, float("inf")])
def test_parts_above_one_gpu_are_refused(gpus):
    with pytest.raises(UserError, match=f"--gpus-per-trial {gpus:g}: .*whole GPUs above 1"):
        options(gpus_per_trial=gpus)


def test_a_seed_leaves_room_for_those_of_all_trials_and_full_trainings():
    """A sweep of MAX_SEED began, ended at its second trial, and kept its name for ever."""
    config = options(seed=MAX_SEED - SEEDS).config()
    assert [config.replace(seed=seed) for seed in fresh_seeds(config.seed + 100_000, 1000)]
    with pytest.raises(UserError, match="--seed must be at most"):
        options(seed=MAX_SEED)


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


def test_a_job_that_a_scheduler_starts_again_resumes_what_has_begun(tmp_path):
    argv = [*saved(tmp_path, labels=100)[:-1], "--auto-resume", "--num-trials", "80"]
    assert not parse(options(), argv).resume, "it ended before its first trial"
    (tmp_path / "s" / "optuna.journal").touch()
    resumed = parse(options(), argv)
    assert resumed.resume and (resumed.labels, resumed.num_trials) == (100, 80)
    with pytest.raises(UserError, match="cannot change --epochs"):
        parse(options(), [*argv, "--epochs", "6"])


def test_what_a_resume_changed_is_remembered_with_a_bucket_too(tmp_path):
    """The bucket kept the first options, of the same length, and the next resume took them."""
    argv = ["--name", "s", "--output-dir", str(tmp_path)]
    argv += ["--storage-path", f"file://{tmp_path}/bucket"]

    def session(*more):
        asked = parse(options(data="house-numbers"), [*argv, *more])
        with acquire_sweep(asked, asked.storage) as copies:
            copies.copy()  # as in the background, before the options are written
            asked.save()
            (asked.folder / JOURNAL).touch()
        return asked.num_trials

    (tmp_path / "bucket" / "s").mkdir(parents=True)
    assert session("--num-trials", "50") == 50
    assert session("--resume", "--num-trials", "90") == 90
    assert session("--resume") == 90
    shutil.rmtree(tmp_path / "s")  # on another machine
    assert session("--resume") == 90


def test_a_resume_refuses_what_would_change_its_trials(tmp_path):
    with pytest.raises(UserError, match="cannot change --epochs, --labels"):
        parse(options(), [*saved(tmp_path), "--epochs", "6", "--labels", "10"])


def test_options_survive_json():
    made = replace(options(), gpus_per_trial=0.5)
    assert Options.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_password_in_an_address_is_refused_since_addresses_are_logged():
    with pytest.raises(UserError, match="--tracking-uri must not hold a password"):
        options(tracking_uri="https://me:secret@mlflow.example.org")
    assert options(tracking_uri="https://mlflow.example.org").tracking_uri


def test_a_full_disk_spares_the_options_that_are_saved(tmp_path):
    known = options(output_dir=tmp_path, num_trials=7)
    known.folder.mkdir()
    known.save()
    saved = (known.folder / "options.yaml").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*options\.yaml"):
            replace(known, num_trials=8).save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(f.name, f.read_bytes()) for f in known.folder.iterdir()] == [("options.yaml", saved)]


def test_the_mlflow_address_is_the_same_in_every_command(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = Location(name="s", output_dir=tmp_path)
    assert here.uri == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a:5000")
    assert here.uri == "http://a:5000"
    started = options(output_dir=tmp_path, tracking_uri="http://b:5000")
    started.folder.mkdir()
    started.save()
    assert here.uri == "http://b:5000", "the one that the sweep was started with"
    assert saved_options(here).uri == here.uri
    assert replace(here, tracking_uri="http://c:5000").uri == "http://c:5000"


def test_the_arguments_lead_another_command_to_the_sweep(tmp_path):
    there = Location(name="a b", output_dir=tmp_path, tracking_uri="http://a:5000")
    assert parse(options(), there.arguments()).uri == there.uri
    assert parse(options(), there.arguments()).folder == there.folder


def test_a_missing_sweep_names_those_that_there_are(tmp_path):
    options(output_dir=tmp_path).folder.mkdir()
    options(output_dir=tmp_path).save()
    with pytest.raises(UserError, match="found: s"):
        saved_options(Location(name="other", output_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("..", "plain file name"),
        (".", "plain file name"),
        ("a/b", "plain file name"),
        ("a\nb", "plain file name"),
        ("a:b", "must not contain :"),
        ("a\\", r"must not contain \\"),
        ("a'b", "must not contain '"),
        ("artifacts", "another meaning"),
        ("mlflow.db", "another meaning"),
        ("-x", "another meaning"),
        ("x ", "plain file name"),
        ("é" * 101, "longer than 200 bytes"),
    ],
)
def test_names_that_lead_elsewhere_or_that_mlflow_refuses(name, says):
    with pytest.raises(UserError, match=f"--name .*{says}"):
        Location(name=name)


@pytest.mark.parametrize("name", ["a b", "lr=1e-3,x", "été", "..a", "x" * 200, '"[x]#$&(){}*;!|~"'])
def test_other_names_are_taken(name):
    assert Location(name=name).folder.name == name


def test_a_home_that_no_shell_has_put_in(tmp_path, monkeypatch):
    """As in --output-dir=~/runs, in a file of settings, in a container's variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALI_DATA_DIR", "~/data")
    (tmp_path / "data" / "svhn").mkdir(parents=True)
    (tmp_path / "own.yaml").write_text("space: ~/space.toml\n")
    argv = ["--name", "s", "--output-dir=~/runs", "--config", str(tmp_path / "own.yaml")]
    found = parse(options(data="svhn"), argv)
    assert (found.output_dir, found.space) == (tmp_path / "runs", tmp_path / "space.toml")
    assert found.config().data_dir == tmp_path / "data" / "svhn"
    assert Storage.at("~/kept", "s").root == str(tmp_path / "kept")


def test_addresses_are_no_folders(monkeypatch):
    """As paths they would be local folders called s3: or gs:."""
    with pytest.raises(UserError, match=r"--output-dir s3:/.* --storage-path"):
        Location(name="s", output_dir=Path("s3://bucket/runs"))
    with pytest.raises(UserError, match="--storage-path s3:/bucket is an address"):
        assert Location(name="s", storage_path="s3:/bucket").storage
    with pytest.raises(UserError, match="--storage-path s3:// names no bucket"):
        assert Location(name="s", storage_path="s3://").storage
    monkeypatch.setenv("ALI_DATA_DIR", "s3://bucket/data")
    with pytest.raises(UserError, match="ALI_DATA_DIR s3:/bucket/data is an address"):
        options().config()


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_whose_database_would_be_elsewhere(tmp_path, name):
    with pytest.raises(UserError, match=r"with \? or %"):
        assert Location(name="s", output_dir=tmp_path / name).uri


def test_a_resume_from_another_folder_means_the_same_places(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = {"data_dir": Path("images"), "storage_path": "kept", "output_dir": Path("runs")}
    started = options(**paths, tracking_uri="sqlite:///my.db")
    started.folder.mkdir(parents=True)
    started.save()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = parse(options(), ["--name", "s", "--output-dir", "../runs", "--resume"])
    assert resumed.config().data_dir == tmp_path / "images"
    assert resumed.storage.root == str(tmp_path / "kept")
    assert resumed.uri == f"sqlite:///{tmp_path}/my.db"


def test_places_in_an_output_folder_move_with_it(tmp_path):
    before, after = tmp_path / "runs", tmp_path / "moved"
    uri = f"sqlite:///{before}/mlflow.db"
    started = options(output_dir=before, tracking_uri=uri, data_dir=tmp_path / "runs2")
    started.folder.mkdir(parents=True)
    started.save()
    before.rename(after)
    resumed = parse(options(), ["--name", "s", "--output-dir", str(after), "--resume"])
    assert resumed.uri == f"sqlite:///{after}/mlflow.db"
    assert resumed.data_dir == tmp_path / "runs2"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("", "", "line 1: not JSON"),
        ('"epochs": 5,', '"epochs": 5', "not JSON"),
        ('"epochs": 5', '"epochs": "six"', "epochs cannot be 'six'"),
        ('"epochs": 5', '"epochs": true', "epochs cannot be True"),
        ('"epochs": 5', '"epochs": 0', "epochs must be at least 1"),
        ('"num_trials": 50', '"num_trials": -1', "num_trials must be at least 1"),
        ('"output_dir": "', '"output_dir": 3, "x": "', "output_dir cannot be 3"),
        ('"seed"', '"from_the_future"', "from_the_future is unknown"),
        ('"name": "s"', '"name": "t"', "name is 't'"),
        ('"name": "s"', '"name": 3', "name cannot be 3"),
        ('"s"', '"s", "name": []', "name is there twice"),
        ("{", "[]", "line 2: not JSON"),
        ("{", "\udcff", "can't decode byte"),
        ("{", "[" * 9999, "recursion"),
    ],
)
def test_damaged_options_are_named_with_their_line(tmp_path, before, after, says):
    argv = saved(tmp_path)
    file = tmp_path / "s" / "sweep.json"
    text = json.dumps(json.loads(file.read_text()), indent=1)
    line = 1 + text[: text.index(before)].count("\n")
    text = text.replace(before, after, 1) if before else ""
    file.write_bytes(text.encode(errors="surrogateescape"))
    here = Location(name="s", output_dir=tmp_path)
    for use in (lambda: parse(options(), argv), lambda: saved_options(here), lambda: here.uri):
        with pytest.raises(UserError) as refused:
            use()
        assert str(file) in str(refused.value) and says in str(refused.value)
        assert "restore the file" in str(refused.value)
        assert f", line {line}: " in str(refused.value) or "not JSON" in says


def test_a_sweep_whose_options_are_gone(tmp_path):
    argv = saved(tmp_path)
    (tmp_path / "s" / "optuna.journal").touch()
    (tmp_path / "s" / "sweep.json").unlink()
    for use in (
        lambda: parse(options(), argv),
        lambda: saved_options(Location(name="s", output_dir=tmp_path)),
    ):
        with pytest.raises(UserError, match=r"options\.yaml is missing: restore it"):
            use()


# Files of options ---------------------------------------------------------------------------


@pytest.fixture
def swept(tmp_path):
    """A sweep that has written its options."""
    made = options(output_dir=tmp_path / "runs", epochs=5, width=0.25, outage_seconds=1e-5)
    made.folder.mkdir(parents=True)
    made.save()
    return made


def test_what_a_sweep_has_written_repeats_it_under_another_name(swept):
    argv = ["--config", str(swept.folder / "options.yaml"), "--name", "again"]
    assert parse(options(), argv) == replace(swept, name="again")
    assert parse(options(), [*argv, "--epochs", "7"]).epochs == 7, "the command line wins"
    resumed = ["--name", "s", "--output-dir", str(swept.output_dir), "--resume"]
    assert parse(options(), resumed) == replace(swept, resume=True)


def test_a_folder_that_was_moved_repeats_where_it_is_now(swept, tmp_path):
    swept.output_dir.rename(tmp_path / "moved")
    argv = ["--config", str(tmp_path / "moved" / "s" / "options.yaml"), "--name", "again"]
    assert parse(options(), argv).output_dir == tmp_path / "moved"


def test_a_sweep_of_an_earlier_version_is_resumed_and_repeated(tmp_path):
    argv = saved(tmp_path, resume=True, labels=100)
    assert parse(options(), argv).labels == 100
    again = ["--config", str(tmp_path / "s" / "sweep.json"), "--name", "again"]
    assert not parse(options(), again).resume, "that it was resumed says nothing of another"
    parse(options(), argv).save()
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["options.yaml"]
    assert parse(options(), argv).labels == 100


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.yaml", "epochs: 7\nwidth: 5e-1\ndata-dir: images\nmax_concurrent: null\n"),
        ("own.toml", 'epochs = 7\nwidth = 0.5\ndata-dir = "images"\n'),
        ("own.json", '{"epochs": 7, "width": 0.5, "data_dir": "images"}'),
    ],
)
def test_a_file_of_ones_own_names_any_of_the_options(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    made = parse(options(race=3), ["--config", str(tmp_path / name), "--seed", "2"])
    assert made == options(race=3, seed=2, epochs=7, width=0.5, data_dir=Path("images"))


def test_the_full_training_takes_a_file_too(tmp_path):
    (tmp_path / "best.yaml").write_text("name: s\nepochs: 3\n")
    assert read_config(FinalOptions, tmp_path / "best.yaml") == {"name": "s", "epochs": 3}


def test_what_a_full_training_has_written_repeats_it_where_it_is_now(tmp_path):
    made = FinalOptions(name="s", output_dir=tmp_path / "runs", epochs=7, data_dir=Path("images"))
    made.save()
    made.output_dir.rename(tmp_path / "moved")
    found = read_config(FinalOptions, tmp_path / "moved" / "s" / "best.yaml")
    places = {"output_dir": tmp_path / "moved", "data_dir": Path("images").resolve()}
    assert FinalOptions(**found) == replace(made, **places)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\nnum_trails: 3", "line 2: num_trails is unknown: did you mean num_trials?"),
        ("epochs: six", "line 1: epochs cannot be 'six': a whole number is expected"),
        ("width: 0.5\nepochs: 0", "line 2: epochs must be at least 1, not 0"),
        ("keep: 0", "line 1: keep must be at least 1, not 0"),
        ("name: no", "line 1: name cannot be False: text in quotes is expected"),
        ("epochs: 3\nepochs: 4", "line 2: not YAML (epochs is there twice)"),
        ("epochs: [", "line 1: not YAML"),
        ("", "is empty"),
        ("- epochs", "is not a table"),
        (b"\xff\x00", "not a text file"),
        (None, "there is no such file on"),
    ],
)
def test_a_file_that_is_no_options_is_refused_in_a_line(tmp_path, content, says):
    file = tmp_path / "own.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        parse(options(), ["--config", str(file)])
    told = str(refused.value)
    assert str(file) in told and says in told and "\n" not in told


def test_toml_that_is_damaged_and_what_is_no_file(tmp_path):
    (tmp_path / "own.toml").write_text("epochs = 1\nkeep = \n")
    with pytest.raises(UserError, match=r"own\.toml, line 2: not TOML"):
        parse(options(), ["--config", str(tmp_path / "own.toml")])
    with pytest.raises(UserError, match=r"cannot read .*: is a directory"):
        parse(options(), ["--config", str(tmp_path)])
    with pytest.raises(UserError, match="/dev/zero, line 1: too long"):
        parse(options(), ["--config", "/dev/zero"])
