"""`fastshape evaluate`: what it prints and writes, and its exit codes."""

import json
from pathlib import Path

import pytest

from fastshape import geometry
from fastshape.cli import main
from fastshape.geometry import Mesh, shapes

QUICK = ["--samples", "500"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, mesh in (("torus", shapes.torus(segments=24)), ("knot", shapes.knot(segments=40))):
        for folder, shift in (("a", 0.01), ("b", 0.0)):
            (tmp_path / folder).mkdir(exist_ok=True)
            geometry.save(Mesh(mesh.vertices + shift, mesh.faces), tmp_path / folder / f"{name}.ply")
    return tmp_path


def run_main(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_table_that_can_be_cited(capsys, folders) -> None:
    code, out, err = run_main(capsys, "evaluate", "a", "b", "--preset", "vecset", *QUICK)
    assert code == 0, err
    assert out.startswith("vecset: target's bounding box in [-1, 1]^3; 500 points against 500;")
    for word in ("seed 0", "fastshape", "watertight: 2 shapes", "CD (L1, sum) ↓", "F@.02 ↑", "floor", "["):
        assert word in out, word
    assert "worst by CD (L1, sum): " in out
    assert "…" not in out  # nothing is cut off where there is no terminal
    assert not list(folders.glob("*.html"))


@pytest.mark.parametrize("image", [True, False])
def test_the_folder(capsys, folders, image) -> None:
    if image:
        pytest.importorskip("PIL")
    words = ["evaluate", "a", "b", "-o", "new/out", *QUICK, "--latent-bytes", "512"]
    words += ["--pictures", "1"] if image else ["--no-picture"]
    code, out, err = run_main(capsys, *words)
    assert code == 0, err
    assert "512 bytes of latents each" in out
    output = folders / "new" / "out"
    assert sorted(p.name for p in output.iterdir()) == ["index.html", "shapes", "shapes.csv", "summary.json"]
    assert ("data:image/png" in (output / "index.html").read_text()) == image
    assert json.loads((output / "summary.json").read_text())["settings"]["num_samples"] == 500
    code, again, err = run_main(capsys, *words, "--resume")
    assert code == 0
    assert again == out
    assert "2 of 2 taken from the earlier run" in err


def test_a_long_run_says_where_it_is_without_a_terminal(capsys, folders, monkeypatch) -> None:
    _, _, err = run_main(capsys, "evaluate", "a", "b", *QUICK)
    assert "pairs" not in err
    monkeypatch.setattr("fastshape.cli.evaluate._EVERY", 0.0)
    _, _, err = run_main(capsys, "evaluate", "a", "b", *QUICK)
    assert "1 of 2 pairs\n" in err


def test_failures_are_counted_and_the_run_goes_on(capsys, folders) -> None:
    (folders / "a" / "knot.ply").write_bytes(b"")
    (folders / "a" / "extra.ply").write_bytes(b"")
    code, out, _ = run_main(capsys, "evaluate", "a", "b", *QUICK, "--allow-missing")
    assert code == 1
    assert "2 of 3 failed and are in no mean:" in out
    assert "knot: " in out
    assert "file is empty" in out
    assert "extra: no target" in out
    assert "watertight: 1 shape" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "none"], "none: no such file or folder"),
        (["a", "b/torus.ply"], "expected two files or two folders"),
        (["a"], "expected two meshes, two folders, or one .csv"),
        (["a", "b", "--resume"], "--resume needs the folder"),
        (["a", "b", "--latent-bytes", "much"], "expected a number of bytes"),
        (["a", "b", "-o", "a/torus.ply/x"], "expected a directory to write to"),
    ],
)
def test_errors_are_one_line(capsys, folders, words, message) -> None:
    code, out, err = run_main(capsys, "evaluate", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("fastshape: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_partner_stops_before_anything_is_written(capsys, folders) -> None:
    (folders / "b" / "knot.ply").unlink()
    code, _, err = run_main(capsys, "evaluate", "a", "b", "-o", "out")
    assert code == 2
    assert "knot has no target" in err
    assert not (folders / "out").exists()


def test_every_preset_is_a_choice(capsys) -> None:
    for name in geometry.PROTOCOLS:
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", "--preset", name])
        assert "the following arguments are required: A" in capsys.readouterr().err
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["evaluate", "a", "--preset", "best"])
    assert "invalid choice" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(capsys, folders, monkeypatch) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastshape.cli.evaluate.evaluate_pairs", stop)
    code, _, err = run_main(capsys, "evaluate", "a", "b", "-o", "out")
    assert code == 130
    assert "to go on: fastshape evaluate a b -o out --resume" in err
