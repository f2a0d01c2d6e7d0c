"""`fastshape train`: from prepared shapes to a model, its errors, and going on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastshape import geometry, models, pipelines, train
from fastshape.cli import main
from fastshape.geometry import PrepareSpec, shapes

SMALL = ["model.dim=16", "model.heads=2", "model.num_inputs=32", "token_counts=4", "token_probabilities="]
SMALL += ["volume_queries=16", "near_queries=16", "sharp_near_queries=16", "batch_size=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fastshape prepare` writes, of two shapes."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "in").mkdir()
    for segments in (8, 12):
        geometry.save(shapes.torus(segments=segments), folder / "in" / f"torus-{segments}.ply")
    counts = {"num_surface": 64, "num_sharp": 64, "num_volume": 64, "num_near": 64, "num_sharp_near": 64}
    spec = PrepareSpec(**counts, sharp_sigmas=(0.01,))  # type: ignore[arg-type]
    pipelines.prepare([folder / "in"], folder / "out", spec, workers=1)
    return folder / "out"


def run_main(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def settings(*more: str) -> list[str]:
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


def test_a_run_makes_a_model_and_goes_on(capsys, tmp_path, data):
    words = ["train", "dora-tiny", data, "-o", tmp_path, *settings("log_every=1"), "--validation", data]
    code, out, err = run_main(capsys, *words, "--steps", 3, "--no-tensorboard")
    assert code == 0, err
    assert "DoraVAE" in out
    assert "validation_volume_iou" in out
    assert f"wrote {tmp_path / 'model'}" in out.replace("\n", "")
    assert "step 3 of 3: loss" in err
    model = models.load(tmp_path / "model")
    assert model.config.dim == 16
    assert model.metadata.preparation["num_sharp"] == 64
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    # The same command has nothing left to do; another number of steps is another run.
    assert run_main(capsys, *words, "--steps", 3, "--no-tensorboard")[0] == 0
    assert models.load(tmp_path / "model").fingerprint() == model.fingerprint()
    code, _, err = run_main(capsys, *words, "--steps", 4, "--no-tensorboard")
    assert code == 2
    assert "belongs to a run with another configuration: steps (3 -> 4)" in err


def test_a_printed_configuration_is_a_recipe(capsys, tmp_path, data):
    code, out, _ = run_main(capsys, "train", "lagem-tiny", "--print-config", "--steps", 1, "--set", "seed=7")
    assert code == 0
    (tmp_path / "mine.json").write_text(out)
    config = train.TrainConfig.from_dict(json.loads(out))
    assert (config.steps, config.seed, type(config.model).__name__) == (1, 7, "LaGeMConfig")
    code, again, _ = run_main(capsys, "train", tmp_path / "mine.json", "--print-config")
    assert again == out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["huge-model"], "there is no recipe 'huge-model'; there are vecset-single"),
        (["dora-tiny", "--set", "stepz=1"], "there is no field `stepz`; there are steps"),
        (["dora-tiny", "--set", "model.dim=wide"], "`model.dim` must be an integer, got 'wide'"),
        (["dora-tiny", "--set", "batch_size=0"], "`batch_size` must be at least 1, got 0"),
        (["dora-tiny"], "expected DATA and -o DIR"),
        (["dora-tiny", "nowhere", "-o", "out"], "nowhere: no spec.json"),
        (["nothing.json"], "nothing.json: No such file or directory"),
    ],
)
def test_one_error_says_what_is_wrong(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(capsys, "train", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("fastshape: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_shapes_of_another_preparation_are_one_error(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    geometry.save(shapes.torus(segments=8), tmp_path / "in" / "torus.ply")
    spec = PrepareSpec(num_surface=64, num_sharp=0, num_volume=64, num_near=64)
    pipelines.prepare([tmp_path / "in"], tmp_path / "out", spec, workers=1)
    words = ["train", "dora-tiny", tmp_path / "out", "-o", tmp_path / "run", *settings()]
    code, _, err = run_main(capsys, *words)
    assert code != 0
    assert "the shape has no `sharp`: prepare the meshes with the model's own preset" in err
    assert "Traceback" not in err


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m fastshape train dora-tiny --print-config | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("{\n", "")
