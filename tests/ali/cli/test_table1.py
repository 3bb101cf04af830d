"""`python -m ali table1`: what it prints, keeps, goes on with, and says it did not measure."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ali import __main__ as commands
from ali import data, experiment
from ali.config import Config
from ali.errors import NonFiniteError, UserError
from ali.evaluation import baselines, protocol
from ali.evaluation.table1 import MORE_ROWS, TABLE_1
from ali.lock import LockedError, folder_lock
from tests.paths import REAL_DATA

CROPS = REAL_DATA / "svhn"
TINY = ["--width", "0.1", "--batch-size", "20", "--labels", "20", "--draws", "2"]
TINY += ["--precision", "fp32", "--unlabelled", "30"]


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """SVHN's layout, the digit told by the height of a bright band: 100 train, 40 test."""
    folder = tmp_path_factory.mktemp("svhn")
    rng = np.random.default_rng(0)
    for name, n in (("train", 100), ("test", 40)):
        y = np.arange(n) % 10 + 1
        x = rng.integers(0, 60, (32, 32, 3, n))
        for i in range(n):
            x[3 * y[i] - 2 : 3 * y[i] + 1, ..., i] += 150
        labels = y.astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{name}_32x32.mat", {"X": x.astype(np.uint8), "y": labels})
    return folder


@pytest.fixture(autouse=True)
def one_c(monkeypatch):
    monkeypatch.setattr(baselines, "NEAR", (0,))


def here(capsys, *arguments):
    commands.run(["table1", *map(str, arguments)])
    return capsys.readouterr().out


def line(out, name):
    """The cells of a row."""
    (found,) = [
        text for text in out.splitlines() if text.strip("│ ").startswith((name + "  ", name + " │"))
    ]
    return [cell.strip() for cell in found.strip("│").split("│")]


@pytest.fixture
def command(bands, tmp_path):
    return [*TINY, "--data-dir", bands, "--output-dir", tmp_path / "out"]


def test_baselines_without_networks(command, tmp_path, capsys):
    out = here(capsys, *command, "--output", tmp_path / "t.json")
    written = json.loads((tmp_path / "t.json").read_text())
    rows = {row["row"]: row for row in written["rows"]}
    names = [name for name, _ in (*TABLE_1, *MORE_ROWS)]
    assert [row["row"] for row in written["rows"]] == names
    for name in ("KNN", "TSVM", "L2-SVM on pixels"):
        found = rows[name]["measured"]
        assert found["draws"] == 2 and found["mean"] < 0.2  # chance: 0.9
        assert line(out, name)[3].startswith(f"{100 * found['mean']:.2f} % (±")
    assert line(out, "KNN")[1] == "77.93 %"
    for name, why in (("ALI", "--epochs"), ("DCGAN + L2-SVM", "--gan"), ("SDGM", "--models sdgm")):
        assert rows[name]["measured"].startswith("not measured") and why in line(out, name)[4]
        assert line(out, name)[3] == "not measured"
    assert line(out, "SDGM")[2] == "train, extra" == rows["SDGM"]["published_trained_on"]
    assert "Not comparable" in out and "not the official file" in out


def test_what_was_measured_is_not_measured_again(command, capsys, monkeypatch):
    first = here(capsys, *command)
    assert first.count("measuring") == 3

    def never(*_, **__):
        raise AssertionError

    for name in ("raw_pixel_errors", "nearest_neighbour_errors", "transductive_svm_errors"):
        monkeypatch.setattr(baselines, name, never)
    again = here(capsys, *command)
    assert again in first and "measuring" not in again
    assert "--unlabelled 0" in line(here(capsys, *command, "--unlabelled", 0), "TSVM")[4]
    for other in (["--draws", 3], ["--labels", 30], ["--no-balanced"]):
        with pytest.raises(AssertionError):
            here(capsys, *command, *other)


@pytest.mark.slow
def test_networks_trained_here_go_on_where_they_were_stopped(command, tmp_path, capsys):
    out = here(capsys, *command, "--epochs", 1)
    assert "ali: epoch 1/1" in out and "gan: epoch 1/1" in out
    out = here(capsys, *command, "--epochs", 2)
    assert "ali: epoch 2/2" in out and "epoch 1/2" not in out
    assert line(out, "ALI")[4].startswith("2 epochs, 160 images, ")
    (run,) = (tmp_path / "out").glob("ali-*")
    with folder_lock(run, "another"), pytest.raises(LockedError, match="is being run by process"):
        here(capsys, *command, "--epochs", 2)
    # the same training, uninterrupted, by hand
    folder = next((tmp_path / "out").glob("ali-*/checkpoint"))
    for again in (folder, folder.parent):
        given = here(capsys, *command, "--ali", again)
        assert line(given, "ALI") == line(out, "ALI")
        assert line(given, "DCGAN + L2-SVM")[3] == "not measured"
    config = Config.from_dict(json.loads((folder / "state.json").read_text())["config"])
    dataset = data.load(config), data.load_test(config)
    *_, (state, _) = experiment.run(config.replace(epochs=2), dataset[0])
    errors = protocol.test_errors(state.networks, *dataset, config, draws=2)
    want = f"{100 * errors.mean():.2f} % (± {100 * errors.std(ddof=1):.2f} %)"
    assert line(out, "ALI")[3] == want


def test_every_model_has_its_rows(command, tmp_path, capsys):
    """Those trained with labels once a seed; a checkpoint goes to its model's row by itself."""
    small = ["--models", "ali", "vae-m1", "convnet", "swwae", "--width", "0.05"]
    out = here(capsys, *command, *small, "--epochs", 1, "--seeds", 2)
    for name in ("convnet on labels", "SWWAE without dropout"):
        assert (
            line(out, name)[4].startswith("2 × 1 epochs, 80 images") and "±" in line(out, name)[3]
        )
    for name in ("ALI", "ALI, features of D", "VAE (M1) + KNN", "VAE (M1) + TSVM"):
        assert line(out, name)[4].startswith("1 epochs, 80 images, ")
        assert 0 < float(line(out, name)[3].split()[0]) <= 100
    assert line(out, "GAN with labels")[3] == "not measured"
    trained = sorted((tmp_path / "out").glob("swwae-*"))
    assert len(trained) == 4
    again = here(capsys, *command, "--trained", *trained)
    for name in ("SWWAE without dropout", "SWWAE with dropout"):
        assert line(again, name) == line(out, name)
    with pytest.raises(UserError, match="trained with 20 labels, but the other rows have 30"):
        here(capsys, *command, "--trained", trained[0], "--labels", 30)
    ali = next((tmp_path / "out").glob("ali-*"))
    with pytest.raises(UserError, match="given twice"):
        here(capsys, *command, "--trained", ali, ali)
    other = ["--data", "house-numbers", *command[-2:], "--draws", "1"]
    other += ["--train-size", "200", "--labels", "20", "--unlabelled", "0", "--trained"]
    assert f"{ali / 'checkpoint'} was trained on svhn." in here(capsys, *other, ali)
    with pytest.raises(UserError, match="classifies images of svhn: give --data svhn"):
        here(capsys, *other, trained[0])


def test_more_epochs_of_m1_and_m2_are_another_training(command, tmp_path, capsys):
    """M1 is trained for half of the epochs: going on with the shorter training would be too few."""
    small = [*command, "--models", "vae-m1m2", "--width", "0.05", "--epochs"]
    here(capsys, *small, 2)
    out = here(capsys, *small, 4)
    assert line(out, "VAE (M1 + M2)")[4].startswith("4 epochs, 320 images")
    assert len(list((tmp_path / "out").glob("vae-m1m2-*"))) == 2


def test_trainings_of_one_configuration_are_mean_and_std(command, tmp_path, capsys):
    """Their error is the mean over trainings, ± between them; the figure has each one's curve."""
    errors, runs = [], [tmp_path / f"run-{seed}" for seed in range(3)]
    for seed, run in enumerate(runs):
        more = ["--width", "0.05", "--epochs", 2 - seed // 2, "--seed", seed]
        options = [*TINY[:4], *command[len(TINY) : -2], *more, "--output-dir", run]
        commands.run(["train", "--data", "svhn", "--labels", "20", *map(str, options)])
        errors.append(float(line(here(capsys, *command, "--trained", run), "ALI")[3].split()[0]))
    figure = tmp_path / "curves.png"
    out = here(capsys, *command, "--trained", *runs[:2], "--figure", figure)
    mean, std = np.mean(errors[:2]), np.std(errors[:2], ddof=1)
    found = line(out, "ALI")[3].replace("%", "").strip(" )").split("(± ")
    assert [float(text) for text in found] == pytest.approx([mean, std], abs=0.011)
    assert line(out, "ALI")[4].startswith("2 × 2 epochs, 160 images, ")
    assert np.asarray(Image.open(figure)).std() > 0
    figure.unlink()
    (runs[0] / "metrics.jsonl").unlink()
    out = here(capsys, *command, "--trained", runs[0], "--figure", figure)
    assert "Not in the figure" in out and not figure.exists()
    with pytest.raises(UserError, match="both for the row ALI, but differ in epochs: give"):
        here(capsys, *command, "--trained", *runs)
    with pytest.raises(UserError, match=r"--figure must end in \.png"):
        here(capsys, *command, "--figure", "curves.pdf")


def test_diverged_training_is_told(command, capsys, monkeypatch):
    def diverges(*_):
        raise NonFiniteError(3, ("d_loss",))
        yield

    monkeypatch.setattr(experiment, "run", diverges)
    out = here(capsys, *command, "--epochs", 1)
    assert "diverged" in line(out, "ALI")[4] and line(out, "KNN")[3] != "not measured"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "celeba"], "celeba"),
        (["--draws", "0"], "--draws"),
        (["--epochs", "-1"], "--epochs"),
        (["--epochs", "1", "--models", "ali", "vae-m1m2"], "--epochs must be 2 or more"),
        (["--unlabelled", "-1"], "--unlabelled"),
        (["--labels", "5000"], "--labels 5000"),
        (["--ali", "nowhere"], "nowhere"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--output", "table.txt"], ".json"),
        (["--output", "nowhere/table.json"], "there is no folder nowhere"),
        (["--width", "-1"], "--width"),
        (["--seed", str(2**62), "--seeds", "2"], "--seed must be at most"),
    ],
)
def test_mistakes_write_nothing(command, tmp_path, capsys, options, says):
    with pytest.raises(UserError, match=says) as caught:
        here(capsys, *command, *options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_mistakes(command, tmp_path, capsys):
    here(capsys, *command, "--epochs", 1)
    gan = next((tmp_path / "out").glob("gan-*"))
    with pytest.raises(UserError, match="model gan"):
        here(capsys, *command, "--ali", gan)
    (tmp_path / "out" / "measured.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        here(capsys, *command)


@pytest.mark.slow
@pytest.mark.skipif(not CROPS.exists(), reason="no crops of SVHN here")
def test_real_crops(tmp_path, capsys):
    options = ["--data-dir", CROPS, "--output-dir", tmp_path, "--width", 0.1, "--epochs", 1]
    options += ["--train-size", 500, "--draws", 2, "--unlabelled", 200, "--labels", 100]
    out = here(capsys, *options)
    for name in ("KNN", "TSVM", "DCGAN + L2-SVM", "ALI", "L2-SVM on pixels"):
        assert 20 < float(line(out, name)[3].split()[0]) < 92
