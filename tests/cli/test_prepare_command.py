"""`fastshape prepare`: what it says and its exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastshape import geometry
from fastshape.cli import main
from fastshape.cli.app import parser
from fastshape.cli.prepare import specification
from fastshape.geometry import PrepareSpec, shapes

SMALL = ["--set", "num_surface=20", "--set", "num_volume=30", "--set", "num_near=40"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    for segments in (8, 12):
        geometry.save(shapes.torus(segments=segments), path / f"torus-{segments}.ply")
    (path / "broken.stl").touch()
    return path


def run_main(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_reports_counts_and_failures(capsys, tmp_path, folder) -> None:
    pytest.importorskip("PIL")
    words = ["prepare", folder, "-o", tmp_path / "out", "--workers", 1, *SMALL]
    code, out, err = run_main(capsys, *words)
    assert code == 0, err
    assert "3 items" in err
    assert "broken.stl: file is empty" in err
    assert [line.split() for line in out.splitlines() if line.strip()][2:4] == [
        ["prepared", "2"],
        ["failed", "1"],
    ]
    assert "not a mesh with a surface: 1" in out
    assert f"2 prepared shapes in {tmp_path / 'out'}" in out.replace("\n", "")
    picture = tmp_path / "sheet.png"
    code, out, err = run_main(capsys, *words, "--strict", "--contact-sheet", picture)
    assert code == 1
    assert f"wrote {picture}" in err
    assert picture.read_bytes()[16:24] == (320).to_bytes(4, "big") + (160).to_bytes(4, "big")
    assert "prepared before" in out
    assert "--retry-failed tries again" in out
    code, _, err = run_main(capsys, *words, "--set", "num_near=41")
    assert code == 2
    assert "another specification (num_near 40 there, 41 here)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "-o", "out"], "none: no such file or folder"),
        (["in", "-o", "out", "--preset", "nobody"], "there is no preset 'nobody'"),
        (["in", "-o", "out", "--set", "num_near"], "--set num_near: expected NAME=VALUE"),
        (["in", "-o", "out", "--set", "nea=1"], "there is no field 'nea' in a specification; there are"),
        (["in", "-o", "out", "--set", "num_near=x"], "--set num_near=x: the value does not fit `num_near`"),
        (["in", "-o", "out", "--set", "num_near=-1"], "`num_near` must be at least 0, got -1"),
        (["in", "-o", "out", "--set", "labels=x"], "`labels` must be one of sdf, occupancy, got 'x'"),
        (["in", "-o", "out", "--spec", "none.json"], "none.json: No such file"),
        (["in", "-o", "out", "--rank", "1"], "--rank and --world-size come together"),
        (["in", "-o", "out", "--rank", "4", "--world-size", "2"], "the rank must lie in 0..1, got 4"),
        (["in", "-o", "in/broken.stl"], "a file is in the way"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, folder, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(capsys, "prepare", *words)
    assert (code, out) == (2, "")
    assert err.startswith("fastshape: ")
    assert message in err
    assert err.count("\n") == 1


def test_sizes_and_fields_are_read(tmp_path) -> None:
    options = parser().parse_args(["prepare", "in", "-o", "out", "--memory", "1.5 GiB", *SMALL])
    assert options.memory == 3 << 29
    assert specification(options) == PrepareSpec.preset("vecset", num_surface=20, num_volume=30, num_near=40)
    with pytest.raises(SystemExit):
        parser().parse_args(["prepare", "in", "-o", "out", "--memory", "lots"])
    (tmp_path / "spec.json").write_text(PrepareSpec(num_surface=7).to_json())
    words = [
        "--spec",
        str(tmp_path / "spec.json"),
        "--set",
        "near_sigmas=0.1,0.2",
        "--set",
        "labels=occupancy",
    ]
    options = parser().parse_args(["prepare", "in", "-o", "out", *words])
    assert specification(options) == PrepareSpec(num_surface=7, near_sigmas=(0.1, 0.2), labels="occupancy")


def test_ctrl_c_says_how_to_go_on(tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for segments in range(8, 28):
        geometry.save(shapes.torus(segments=segments), folder / f"{segments}.ply")
    command = [
        "prepare",
        str(folder),
        "-o",
        str(tmp_path / "out"),
        "--workers",
        "1",
        "--set",
        "num_volume=200000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastshape", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("??/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "of 20 items; to go on: fastshape prepare" in err
    assert not list((tmp_path / "out").glob(".scratch*"))
