"""`fastshape fit`: a mesh to a fitted one, its picture and scores, its tables, and its errors."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastshape import fit, geometry
from fastshape.cli import fit as fit_command
from fastshape.cli import main
from fastshape.geometry import shapes

SMALL = ["--resolution", "16", "--levels", "1", "--steps", "3", "--image-size", "48"]


@pytest.fixture
def torus(tmp_path: Path) -> Path:
    path = tmp_path / "torus.ply"
    geometry.save(shapes.torus(segments=16), path)
    return path


fit_mesh = fit.fit_mesh


def interrupted_after_a_step(
    *arguments: object, on_step: Callable[[fit.Step], None], **options: object
) -> fit.Fit:
    """The fit, with Ctrl-C after its first step."""

    def interrupt(step: fit.Step) -> None:
        on_step(step)
        if step.number == 1:
            signal.raise_signal(signal.SIGINT)

    return fit_mesh(*arguments, on_step=interrupt, **options)


def run_main(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_it_writes_the_mesh_a_picture_and_the_scores(torus, tmp_path, capsys):
    output = tmp_path / "deep" / "fitted.ply"
    code, out, err = run_main(capsys, "fit", torus, "-o", output, *SMALL)
    assert code == 0
    fitted, given = geometry.load(output), geometry.load(torus)
    assert fitted.is_watertight
    size = (given.bounds[1] - given.bounds[0]).max()
    assert (fitted.bounds - given.bounds).abs().max() < 0.1 * size  # in the frame of the input
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "fitted" in out
    assert "16 a side" in err


@pytest.fixture
def stoppable(monkeypatch):
    """Ctrl-C acts, as it does not in a process that was started in the background; scores take seconds."""
    monkeypatch.setattr(fit_command, "_scores", lambda target, meshes: "")
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("stoppable")
def test_the_same_command_goes_on_where_it_was_stopped(torus, tmp_path, capsys, monkeypatch):
    words = ["fit", torus, "-o", tmp_path / "fitted.ply", *SMALL, "--no-picture"]
    with monkeypatch.context() as patch:
        patch.setattr(fit_command.fit, "fit_mesh", interrupted_after_a_step)
        code, _, err = run_main(capsys, *words)
    assert code == 130
    assert "stopped after step 2 of 3" in err
    assert f"to go on: fastshape fit {torus}" in err
    code, _, err = run_main(capsys, *words)
    assert code == 0
    assert "going on from" in err
    assert not (tmp_path / "fitted.run").exists()  # done
    whole = tmp_path / "whole.ply"
    code, _, err = run_main(capsys, "fit", torus, "-o", whole, *SMALL, "--no-picture")
    assert code == 0
    assert "going on from" not in err
    assert whole.read_bytes() == (tmp_path / "fitted.ply").read_bytes()


@pytest.mark.usefixtures("stoppable")
def test_restart(torus, tmp_path, capsys, monkeypatch):
    words = ["fit", torus, "-o", tmp_path / "fitted.ply", *SMALL, "--no-picture"]
    with monkeypatch.context() as patch:
        patch.setattr(fit_command.fit, "fit_mesh", interrupted_after_a_step)
        assert run_main(capsys, *words)[0] == 130
    code, _, err = run_main(capsys, *words, "--seed", 4)
    assert code == 2
    assert "another configuration: seed (0 -> 4)" in err
    code, _, err = run_main(capsys, *words, "--seed", 4, "--restart")
    assert code == 0
    assert "going on from" not in err


def test_no_picture(torus, tmp_path, capsys):
    code, _, _ = run_main(capsys, "fit", torus, "-o", tmp_path / "fitted.obj", *SMALL, "--no-picture")
    assert code == 0
    assert not (tmp_path / "fitted.png").exists()


@pytest.mark.slow
def test_one_table(torus, tmp_path, capsys):
    words = ["fit", torus, "-o", tmp_path / "one.ply", *SMALL, "--tables", "variation"]
    code, out, _ = run_main(capsys, *words)
    assert code == 0
    assert "total variation" in out
    assert "carving and zoom" not in out
    with open(tmp_path / "one.csv", encoding="utf-8", newline="") as file:
        assert [row["table"] for row in csv.DictReader(file)] == ["variation"] * 2


@pytest.mark.slow
def test_tables(torus, tmp_path, capsys):
    output = tmp_path / "tables.ply"
    code, out, _ = run_main(capsys, "fit", torus, "-o", output, *SMALL, "--tables")
    assert code == 0
    assert not output.exists()
    with open(tmp_path / "tables.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["table"] for row in rows] == ["savings"] * 3 + ["threshold"] * 4 + ["variation"] * 2
    assert float(rows[0]["voxels_per_step"]) == float(rows[0]["num_voxels"])
    assert float(rows[1]["voxels_per_step"]) < float(rows[1]["num_voxels"])
    kept = [float(row["voxels_per_step"]) for row in rows if row["table"] == "threshold"]
    assert kept == sorted(kept)  # more, the farther behind the surface a voxel may lie
    assert "carving and zoom" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "fitted.txt"], "fitted.txt: expected one of"),
        (
            ["-o", "fitted.ply", "--resolution", "30", "--levels", "3"],
            "`resolution` must be at least 8 after 2",
        ),
    ],
)
def test_bad_arguments_are_one_line(torus, tmp_path, capsys, words, message):
    words = [tmp_path / word if word.startswith("fitted") else word for word in words]
    code, _, err = run_main(capsys, "fit", torus, *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
