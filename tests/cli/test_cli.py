"""The command: what it writes, what it says, its exit codes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastshape import geometry
from fastshape.cli import main
from fastshape.cli.app import command_line, parser
from fastshape.cli.reconstruct import plan
from fastshape.geometry import shapes
from fastshape.models import VecSetVAE


def run_main(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has learned a ball: what the command does with it needs no training."""
    monkeypatch.setattr(VecSetVAE, "query", lambda self, points, features, **_: 0.7 - points.norm(dim=2))


@pytest.fixture
def torus(tmp_path: Path) -> Path:
    path = tmp_path / "torus.ply"
    geometry.save(shapes.torus(segments=32), path)
    return path


def test_info(capsys) -> None:
    code, out, err = run_main(capsys, "info")
    assert code == 0
    assert err == ""
    for word in ("fastshape", "torch", "CUDA kernels", "vecset-tiny"):
        assert word in out


def test_help_and_bad_arguments(capsys) -> None:
    for words, code in ((["--help"], 0), (["demo", "--help"], 0), (["frobnicate"], 2), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code
    with pytest.raises(SystemExit):
        main(["demo", "--steps", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("image", [True, False])
def test_reconstruct_writes_the_mesh_and_the_picture(capsys, tmp_path, torus, ball, image) -> None:
    if image:
        pytest.importorskip("PIL")
    output = tmp_path / "new" / "out.obj"
    (tmp_path / "new" / "out.run").mkdir(parents=True)
    (tmp_path / "new" / "out.run" / "mine.txt").write_text("not ours to delete")
    options = [] if image else ["--no-picture"]
    words = ["reconstruct", torus, "-o", output, "--steps", 2, "--resolution", 24, "--tokens", 16, *options]
    code, out, err = run_main(capsys, *words)
    assert code == 0, err
    assert geometry.load(output).num_faces > 0
    expected = ["out.obj", "out.png", "out.run"] if image else ["out.obj", "out.run"]
    assert sorted(entry.name for entry in output.parent.iterdir()) == expected
    assert [entry.name for entry in (tmp_path / "new" / "out.run").iterdir()] == ["mine.txt"]
    assert "torus" in out
    assert "CD-L1" in out
    assert "wrote" in err


def test_several_inputs_go_to_a_directory_and_a_kept_model_serves_again(
    capsys, tmp_path, torus, ball
) -> None:
    second = tmp_path / "other.stl"
    geometry.save(shapes.knot(segments=48), second)
    kept, folder = tmp_path / "kept", tmp_path / "results"
    words = [torus, second, "-o", folder, "--resolution", 20, "--no-picture"]
    code, _, err = run_main(capsys, "reconstruct", *words, "--steps", 2, "--resume", kept)
    assert code == 0, err
    assert sorted(entry.name for entry in folder.iterdir()) == ["other.stl", "torus.ply"]
    first = (folder / "torus.ply").read_bytes()
    code, _, err = run_main(capsys, "reconstruct", *words, "--model", kept / "torus" / "model")
    assert code == 0, err
    assert "training" not in err
    assert (folder / "torus.ply").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.obj", "-o", "out.obj"], "none.obj: no such file"),
        (["empty.stl", "-o", "out.obj"], "empty.stl: file is empty"),
        (["torus.ply", "-o", "torus.ply"], "torus.ply: the result would replace the input"),
        (["torus.ply", "-o", "out.fbx"], "out.fbx: expected a directory or one of .obj"),
        (["torus.ply", "torus.ply", "-o", "out.obj"], "out.obj: 2 inputs need a directory"),
        (["torus.ply", "torus.ply", "-o", "folder"], "folder: two inputs have one name"),
        (["torus.ply", "-o", "empty.stl/out.obj"], "expected a directory to write to"),
        (["torus.ply", "-o", "out.obj", "--model", "none"], "checkpoint directory none does not exist"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, torus, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.stl").touch()
    code, out, err = run_main(capsys, "reconstruct", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("fastshape: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.obj").exists()


def test_unknown_shape(capsys, tmp_path) -> None:
    code, _, err = run_main(capsys, "demo", "-o", tmp_path / "demo", "--shapes", "teapot")
    assert code == 2
    assert "unknown shape 'teapot'" in err
    assert not (tmp_path / "demo").exists()


def test_too_little_training_says_what_to_do(capsys, tmp_path, torus, monkeypatch) -> None:
    monkeypatch.setattr(VecSetVAE, "query", lambda self, points, features, **_: -points.norm(dim=2) - 1)
    code, _, err = run_main(capsys, "reconstruct", torus, "-o", tmp_path / "out.ply", "--steps", 1)
    assert code == 2
    assert "train longer" in err
    assert "Traceback" not in err


def test_outputs_are_planned_by_the_inputs() -> None:
    assert plan([Path("a/x.stl"), Path("y.gltf")], Path("out")) == [Path("out/x.stl"), Path("out/y.glb")]
    assert plan([Path("a/x.stl")], Path("x.glb")) == [Path("x.glb")]


def test_the_command_line_is_given_back() -> None:
    words = ["reconstruct", "a b.stl", "-o", "out.ply", "--steps", "5", "--tokens", "7", "--no-picture"]
    assert command_line(parser().parse_args(words)) == "fastshape " + " ".join(
        ["reconstruct", "'a b.stl'", "-o", "out.ply", "--steps", "5", "--tokens", "7", "--no-picture"]
    )
    assert command_line(parser().parse_args(["demo"])) == "fastshape demo -o fastshape-demo"


def test_a_sheet_is_refused_and_doubt_is_said(capsys, tmp_path, ball) -> None:
    sheet = tmp_path / "sheet.obj"
    sheet.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    code, _, err = run_main(capsys, "reconstruct", sheet, "-o", tmp_path / "out.ply")
    assert code == 2
    assert "sheet: the mesh encloses nothing" in err
    geometry.save(shapes.half_pipe(), tmp_path / "pipe.obj")
    words = [
        "reconstruct",
        tmp_path / "pipe.obj",
        "-o",
        tmp_path / "out.ply",
        "--steps",
        1,
        "--resolution",
        16,
    ]
    code, _, err = run_main(capsys, *words, "--no-picture")
    assert code == 0, err
    assert "pipe: inside or outside is in doubt for" in err


@pytest.mark.slow
def test_interrupted_training_goes_on(tmp_path, torus) -> None:
    """Ctrl-C leaves a checkpoint and the command that goes on from it, to the uninterrupted result."""
    command = [sys.executable, "-m", "fastshape", "reconstruct", str(torus)]
    command += ["--resolution", "20", "--no-picture", "--steps", "400", "-o"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "out.ply")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    run_dir = tmp_path / "out.run"
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        if process.poll() is not None:
            break
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"--resume {run_dir}" in err
    assert (run_dir / "checkpoint.safetensors").exists()
    assert not (tmp_path / "out.ply").exists()

    def finish(output: Path, *words: str) -> bytes:
        subprocess.run([*command, str(output), *words], check=True, capture_output=True)
        return output.read_bytes()

    resumed = finish(tmp_path / "out.ply", "--resume", str(run_dir))
    assert resumed == finish(tmp_path / "whole.ply")
