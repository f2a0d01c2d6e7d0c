"""The command: what it writes, what it says, its exit codes."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import ball_field, tiny

from fastshape import geometry, models
from fastshape.cli import main
from fastshape.cli.app import again, parser
from fastshape.cli.models import default_model
from fastshape.cli.reconstruct import mesh_plan
from fastshape.geometry import Mesh, shapes
from fastshape.models import MODELS, CheckpointMetadata, registry


def run_main(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else."""

    def draw(meshes, path, *, size, up):
        assert size >= 300
        return geometry.compare_picture(meshes, path, size=40, up=up, occlusion=0)

    module = importlib.import_module("fastshape.pipelines.reconstruct_files")
    monkeypatch.setattr(module, "compare_picture", draw)


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has learned a ball: what the command does with it needs no training."""
    for model in MODELS.values():
        monkeypatch.setattr(model, "_field", ball_field)


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without shipped weights."""
    monkeypatch.setattr(registry, "WEIGHTS_FOLDER", tmp_path / "no-weights")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ball: None) -> Path:
    """An installation with untrained weights of each family, which have learned a ball."""
    folder = tmp_path / "weights"
    for family, name in (("VecSetVAE", "vecset-tiny"), ("DoraVAE", "dora-tiny"), ("LaGeM", "lagem-tiny")):
        model = tiny(family)
        model.metadata = CheckpointMetadata(license="Apache-2.0", source="nobody", name=name)
        model.save_pretrained(folder / name, dtype=torch.float16)
    monkeypatch.setattr(registry, "WEIGHTS_FOLDER", folder)
    return folder


@pytest.fixture
def torus(tmp_path: Path) -> Path:
    path = tmp_path / "torus.ply"
    geometry.save(shapes.torus(segments=32), path)
    return path


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """A folder of two meshes, one of them below, and of one that is none."""
    folder = tmp_path / "meshes"
    (folder / "deeper").mkdir(parents=True)
    torus = shapes.torus(segments=24)
    geometry.save(Mesh(torus.vertices.double() * 0.01 + 7, torus.faces), folder / "ring.glb")
    geometry.save(shapes.knot(segments=32), folder / "deeper" / "knot.stl")
    (folder / "broken.obj").write_text("v 0 0 0\n")
    return folder


# ---- All commands ------------------------------------------------------------------------------------------


def test_help_and_bad_arguments(capsys) -> None:
    for words, code in ((["--help"], 0), (["demo", "--help"], 0), (["frobnicate"], 2), ([], 2)):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code
    with pytest.raises(SystemExit):
        main(["demo", "--steps", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    program = "import sys\nfrom fastshape.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_command_line_is_given_back() -> None:
    def given_back(*words: str, more: tuple[str, ...] = ()) -> str:
        options = parser().parse_args(words)
        options.words = list(words)
        return again(options, *more)

    words = ["reconstruct", "a b.stl", "-o", "out.ply", "--fit", "--steps", "5"]
    expected = "fastshape reconstruct 'a b.stl' -o out.ply --fit --steps 5"
    assert given_back(*words) == expected
    assert given_back(*words, "--resume", "run", more=("--resume", "run")) == f"{expected} --resume run"
    assert given_back(*words, "--resume=run") == expected
    assert given_back(*words, "--resume", more=("--resume",)) == f"{expected} --resume"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.obj", "-o", "out.obj"], "none.obj: no such file"),
        (["empty.stl", "-o", "out.obj"], "empty.stl: file is empty"),
        (["torus.ply", "-o", "torus.ply"], "torus.ply: the result would replace the input"),
        (["torus.ply", "-o", "out.fbx"], "out.fbx: expected a directory or one of .obj"),
        (["torus.ply", "torus.ply", "-o", "out.obj"], "out.obj: 2 inputs need a directory"),
        ([".", "-o", "out.obj"], "out.obj: all of . needs a directory, not one file"),
        (["torus.ply", "torus.ply", "-o", "folder"], "folder: two inputs have one name"),
        (["torus.ply", "-o", "empty.stl/out.obj"], "expected a directory to write to"),
        (["torus.ply", "-o", "out.obj", "-m", "none"], "none: no such folder, no hub id"),
        (["torus.ply", "-o", "out.obj", "-m", "none"], "(dora-tiny, lagem-tiny, vecset-tiny)"),
        (["torus.ply", "-o", "out.obj", "-m", "vecset-tiny", "--fit"], "give one of the two"),
        (["torus.ply", "-o", "out.obj", "--steps", "3"], "--steps is of the training that --fit does"),
        (["torus.ply", "-o", "out.obj", "--tokens", "1"], "--tokens 1: `num_tokens` of DoraVAE must be"),
        (["torus.ply", "-o", "out.obj", "--resume"], "--resume is for a folder or several inputs"),
        (["torus.ply", "-o", "out.obj", "--resume", "run"], "--resume run: a folder is for --fit"),
        (["nothing", "-o", "folder"], "nothing: no meshes in it"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, torus, weights, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.stl").touch()
    (tmp_path / "nothing").mkdir()
    code, out, err = run_main(capsys, "reconstruct", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("fastshape: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.obj").exists()


# ---- With shipped weights ----------------------------------------------------------------------------------


def test_the_default_is_a_constant_of_what_ships(tmp_path, weights) -> None:
    assert default_model() == "dora-tiny"
    for name, then in (("dora-tiny", "vecset-tiny"), ("vecset-tiny", "lagem-tiny"), ("lagem-tiny", None)):
        (weights / name / "config.json").unlink()
        assert default_model() == then


@pytest.mark.parametrize("image", [True, False])
def test_reconstruct_writes_the_mesh_and_the_picture(capsys, tmp_path, torus, weights, image) -> None:
    if image:
        pytest.importorskip("PIL")
    output = tmp_path / "new" / "out.obj"
    options = [] if image else ["--no-picture"]
    code, out, err = run_main(capsys, "reconstruct", torus, "-o", output, "--resolution", 24, *options)
    assert code == 0, err
    assert geometry.load(output).num_faces > 0
    expected = ["out.obj", "out.png"] if image else ["out.obj"]
    assert sorted(entry.name for entry in output.parent.iterdir()) == expected
    assert "torus" in out
    assert "CD-L1" in out
    assert "IoU" in out
    assert "wrote" in err
    assert "training" not in err


@pytest.mark.parametrize("name", ["vecset-tiny", "dora-tiny", "lagem-tiny"])
def test_glb_comes_back_as_glb_in_its_own_frame(capsys, meshes, tmp_path, weights, name) -> None:
    words = [meshes / "ring.glb", "-o", tmp_path / "out.glb", "-m", name, "--resolution", 32, "--no-picture"]
    code, _, err = run_main(capsys, "reconstruct", *words)
    assert code == 0, err
    before, after = (geometry.load(path) for path in (meshes / "ring.glb", tmp_path / "out.glb"))
    torch.testing.assert_close(before.bounds.mean(0), after.bounds.mean(0), atol=1e-3, rtol=0)
    size = float((before.bounds[1] - before.bounds[0]).max())
    assert 0.5 * size < float((after.bounds[1] - after.bounds[0]).max()) < size


def test_a_folder_becomes_a_folder_with_one_page(capsys, tmp_path, meshes, weights, monkeypatch) -> None:
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    words = ["reconstruct", "meshes", "-o", "out", "--resolution", 20, "--pictures", 1, "--tokens", 6]
    code, out, err = run_main(capsys, *words)
    assert code == 1
    files = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file())
    shapes_of = [f"shapes/{name}.json" for name in ("broken", "deeper/knot", "ring")]
    assert files == ["deeper/knot.stl", "index.html", "ring.glb", *shapes_of]
    for text in (out, Path("out/index.html").read_text()):
        assert "expected triangles, got a point cloud" in text
        assert "mean of 2" in text
        assert text.count("floor") >= 2
    assert "broken: expected triangles" in err
    page = Path("out/index.html").read_text()
    for word in ("dora-tiny: DoraVAE", "Apache-2.0", "6 tokens", "deeper/knot", "--tokens 6", "1 failed"):
        assert word in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")

    # Again, and nothing is done but what failed; then with a changed mesh, and another setting.
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.stl")}
    code, again_out, err = run_main(capsys, *words, "--resume")
    assert (code, again_out) == (1, out)
    assert "2 of 3 taken from the earlier run" in err
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.stl")} == before
    geometry.save(shapes.torus(segments=20), "meshes/ring.glb")
    assert "1 of 3 taken from" in run_main(capsys, *words, "--resume")[2]
    assert "taken from" not in run_main(capsys, *words, "--resume", "--seed", 1)[2]


def test_pictures_stand_in_the_page(capsys, tmp_path, meshes, weights) -> None:
    pytest.importorskip("PIL")
    (meshes / "broken.obj").unlink()
    code, _, err = run_main(capsys, "reconstruct", meshes, "-o", tmp_path / "out", "--resolution", 16)
    assert code == 0, err
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<figure>") == 2
    record = json.loads((tmp_path / "out" / "shapes" / "ring.json").read_text())
    assert record["status"] == "ok"
    assert record["tokens"] == [16]
    assert {"sample", "encode", "decode", "extract", "evaluate", "draw"} == set(record["seconds"])


def test_several_files_and_lists_go_to_a_folder(capsys, tmp_path, meshes, weights) -> None:
    words = ["--resolution", 16, "--no-picture", "-o"]
    given = [meshes / "ring.glb", meshes / "deeper" / "knot.stl"]
    assert run_main(capsys, "reconstruct", *given, *words, tmp_path / "a")[0] == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "index.html",
        "knot.stl",
        "ring.glb",
        "shapes",
    ]
    (meshes / "list.txt").write_text("deeper/knot.stl\n")
    assert run_main(capsys, "reconstruct", meshes / "list.txt", *words, tmp_path / "b")[0] == 0
    first, second = (tmp_path / "a" / "knot.stl"), (tmp_path / "b" / "deeper" / "knot.stl")
    assert first.read_bytes() == second.read_bytes()


def test_outputs_are_planned_by_the_inputs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    for name in ("a/x.stl", "y.gltf"):
        Path(name).touch()
    several = mesh_plan(["a/x.stl", "y.gltf"], Path("out"))
    assert several.folder == Path("out")
    assert [item.output for item in several.items] == [Path("out/x.stl"), Path("out/y.glb")]
    one = mesh_plan(["a/x.stl"], Path("z.glb"))
    assert (one.folder, one.items[0].output, one.items[0].name) == (None, Path("z.glb"), "x")
    into = mesh_plan(["a/x.stl"], Path("out"))
    assert (into.folder, into.items[0].output) == (None, Path("out/x.stl"))


def test_demo_draws_solids(capsys, tmp_path, weights) -> None:
    pytest.importorskip("PIL")
    folder = tmp_path / "demo"
    words = ["demo", "-o", folder, "--shapes", "torus", "plate", "--resolution", 16]
    code, out, err = run_main(capsys, *words)
    assert code == 0, err
    assert "training" not in err
    for name in ("torus", "plate"):
        assert name in out
        for file in (f"{name}.ply", f"{name}-reconstructed.ply", f"{name}-reconstructed.png"):
            assert (folder / file).is_file()
    assert (folder / "index.html").read_text().count("data:image/png;base64,") == 2


def test_unknown_shape(capsys, tmp_path) -> None:
    code, _, err = run_main(capsys, "demo", "-o", tmp_path / "demo", "--shapes", "teapot")
    assert code == 2
    assert "unknown shape 'teapot'" in err
    assert not (tmp_path / "demo").exists()


def test_a_difference_from_the_training_data_is_said_once(capsys, tmp_path, meshes, weights) -> None:
    (meshes / "broken.obj").unlink()
    model = tiny("DoraVAE")
    model.metadata = CheckpointMetadata(preparation={"num_sharp": 0})
    model.save_pretrained(tmp_path / "mine")
    words = [meshes, "-o", tmp_path / "out", "--resolution", 16, "--no-picture", "-m", tmp_path / "mine"]
    code, _, err = run_main(capsys, "reconstruct", *words)
    assert code == 0, err
    assert err.count("note: this DoraVAE was trained on data prepared in another way: any num_sharp") == 1


# ---- Encode and decode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vecset-tiny", "dora-tiny", "lagem-tiny"])
def test_encode_and_decode_are_reconstruct_to_the_last_bit(capsys, tmp_path, meshes, weights, name) -> None:
    common = ["-m", name, "--tokens", 8, "--seed", 5]
    ring, latents = meshes / "ring.glb", tmp_path / "new" / "ring.fsh"
    whole, parts = tmp_path / "whole.glb", tmp_path / "parts.glb"
    words = ["reconstruct", ring, "-o", whole, *common, "--resolution", 24, "--no-picture"]
    assert run_main(capsys, *words)[0] == 0
    code, out, err = run_main(capsys, "encode", ring, "-o", latents, *common)
    assert code == 0, err
    assert "8 + 4 + 2 tokens" in out if name == "lagem-tiny" else "8 tokens" in out
    code, out, err = run_main(capsys, "decode", latents, "-o", parts, "--resolution", 24)
    assert code == 0, err
    assert whole.read_bytes() == parts.read_bytes()


def test_both_make_dual_surfaces(capsys, tmp_path, meshes, weights) -> None:
    """Whose vertices lie in the cells and not on the lattice's edges."""
    common = ["-m", "dora-tiny", "--tokens", 8]
    ring, latents = meshes / "ring.glb", tmp_path / "ring.fsh"
    whole, parts, other = (tmp_path / f"{name}.glb" for name in ("whole", "parts", "other"))
    words = ["--resolution", 24, "--surface", "dual_marching_cubes"]
    code, _, err = run_main(capsys, "reconstruct", ring, "-o", whole, *common, *words, "--no-picture")
    assert code == 0, err
    assert run_main(capsys, "encode", ring, "-o", latents, *common)[0] == 0
    assert run_main(capsys, "decode", latents, "-o", parts, *words)[0] == 0
    assert whole.read_bytes() == parts.read_bytes()
    assert run_main(capsys, "decode", latents, "-o", other, "--resolution", 24)[0] == 0
    dual, usual = geometry.load(parts), geometry.load(other)
    assert dual.is_watertight
    assert dual.num_vertices != usual.num_vertices


def test_folders_are_encoded_and_decoded(capsys, tmp_path, meshes, weights) -> None:
    latents, results = tmp_path / "latents", tmp_path / "results"
    code, out, err = run_main(capsys, "encode", meshes, "-o", latents, "--half", "--sample")
    assert code == 1
    assert out.count(" tokens, ") == 2
    assert "broken.obj: expected triangles" in err
    assert "1 of 3 failed" in err
    files = sorted(path.relative_to(latents).as_posix() for path in latents.rglob("*.fsh"))
    assert files == ["deeper/knot.fsh", "ring.fsh"]
    code, out, err = run_main(capsys, "decode", latents, "-o", results, "--resolution", 16)
    assert code == 0, err
    assert geometry.load(results / "deeper" / "knot.glb").num_faces > 0
    assert "ring.glb: " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "torus.ply", "-o", "out.npz"], "out.npz: expected a directory or one of .fsh"),
        (["encode", "none.ply", "-o", "out.fsh"], "none.ply: no such file"),
        (["encode", "torus.ply", "-o", "out.fsh", "--tokens", "1"], "--tokens 1: `num_tokens` of"),
        (["encode", "torus.ply", "-o", "out.fsh", "-m", "none"], "none: no such folder"),
        (["decode", "none.fsh", "-o", "out.glb"], "none.fsh: no such file of latents"),
        (["decode", "torus.ply", "-o", "out.glb"], "torus.ply: expected latents"),
        (["decode", "empty", "-o", "out"], "empty: no latents in it"),
        (["decode", "a.fsh", "-o", "out.txt"], "out.txt: expected a directory or one of .obj"),
        (
            ["decode", "a.fsh", "-o", "out.glb", "-m", "vecset-tiny"],
            "a.fsh: the latents were made by dora-tiny (DoraVAE), the model is vecset-tiny (Vec",
        ),
    ],
)
def test_latents_errors_are_one_line(capsys, tmp_path, torus, weights, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run_main(capsys, "encode", "torus.ply", "-o", "a.fsh")[0] == 0
    code, out, err = run_main(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("fastshape: ")
    assert message in err
    assert err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_latents_of_weights_that_are_gone(capsys, tmp_path, torus, weights, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny("VecSetVAE", seed=3)
    model.save_pretrained("mine")
    assert run_main(capsys, "encode", "torus.ply", "-o", "a.fsh", "-m", "mine")[0] == 0
    Path("mine").rename("moved")
    words = ["decode", "a.fsh", "-o", "out.glb", "--resolution", 16]
    code, _, err = run_main(capsys, *words)
    assert code == 2
    assert "a.fsh: made by mine (VecSetVAE), which is not to be found here" in err
    assert run_main(capsys, *words, "-m", "moved")[0] == 0  # the weights are what counts, not their place
    tiny("VecSetVAE", seed=4).save_pretrained("moved")
    code, _, err = run_main(capsys, *words, "-m", "moved")
    assert code == 2
    assert "made by mine (weights " in err
    assert "the model is moved (weights " in err


# ---- Info --------------------------------------------------------------------------------------------------


def test_info(capsys, weights) -> None:
    code, out, err = run_main(capsys, "info")
    assert code == 0
    assert err == ""
    for word in ("fastshape", "torch", "CUDA kernels", "vecset-single", "dora-tiny (default)", "lagem-tiny"):
        assert word in out


def test_info_of_a_model(capsys, weights) -> None:
    code, out, _ = run_main(capsys, "info", "lagem-tiny")
    assert code == 0
    for word in ("lagem-tiny (LaGeM)", "39,591", "Apache-2.0", "nobody", "num_latents [16, 8, 4]", "0.999"):
        assert word in " ".join(out.split())
    assert models.load("lagem-tiny").fingerprint() in out
    code, out, _ = run_main(capsys, "info", weights / "dora-tiny")
    assert code == 0
    assert "256 points on the surface and 256 on sharp edges, with normals" in " ".join(out.split())


def test_info_of_latents_and_meshes(capsys, tmp_path, meshes, weights) -> None:
    path = tmp_path / "a.fsh"
    run_main(capsys, "encode", meshes / "ring.glb", "-o", path, "-m", "lagem-tiny", "--seed", 9)
    code, out, _ = run_main(capsys, "info", path)
    assert code == 0
    for word in ("lagem-tiny (LaGeM)", "16 x 4 + 8 x 6 + 4 x 8, 28 in all", "center 7, 7, 7", "seed 9"):
        assert word in " ".join(out.split())
    code, out, _ = run_main(capsys, "info", meshes / "ring.glb")
    assert code == 0
    for word in ("ring.glb", "faces 576", "watertight yes", "notes none"):
        assert word in " ".join(out.split())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("teapot", "teapot: no such folder, no hub id"),
        ("none.ply", "none.ply: no such file"),
        ("none.fsh", "none.fsh: no such file of latents"),
        ("broken.obj", "broken.obj: expected triangles"),
        ("some.txt", "expected one of .obj"),
        (".", "config.json does not exist"),
    ],
)
def test_info_of_nothing(capsys, meshes, weights, monkeypatch, target, message) -> None:
    monkeypatch.chdir(meshes)
    Path("some.txt").write_text("x")
    code, out, err = run_main(capsys, "info", target)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# ---- A model for each mesh ---------------------------------------------------------------------------------


def test_without_weights_a_model_is_trained(capsys, tmp_path, torus, ball, no_weights) -> None:
    output = tmp_path / "new" / "out.obj"
    (tmp_path / "new" / "out.run").mkdir(parents=True)
    (tmp_path / "new" / "out.run" / "mine.txt").write_text("not ours to delete")
    words = ["reconstruct", torus, "-o", output, "--steps", 2, "--resolution", 24, "--tokens", 16]
    code, out, err = run_main(capsys, *words, "--no-picture")
    assert code == 0, err
    assert "no weights are shipped with this installation" in err
    assert "training vecset-single on torus" in err
    assert sorted(entry.name for entry in output.parent.iterdir()) == ["out.obj", "out.run"]
    assert [entry.name for entry in (tmp_path / "new" / "out.run").iterdir()] == ["mine.txt"]
    assert "CD-L1" in out
    code, _, err = run_main(capsys, "encode", torus, "-o", tmp_path / "a.fsh")
    assert code == 2
    assert "no weights are shipped with this installation: give -m MODEL" in err


def test_a_kept_model_serves_again(capsys, tmp_path, torus, weights) -> None:
    second = tmp_path / "other.stl"
    geometry.save(shapes.knot(segments=48), second)
    kept, folder = tmp_path / "kept", tmp_path / "results"
    words = [torus, second, "-o", folder, "--resolution", 20, "--no-picture"]
    code, _, err = run_main(capsys, "reconstruct", *words, "--fit", "--steps", 2, "--resume", kept)
    assert code == 0, err
    expected = ["index.html", "other.stl", "shapes", "torus.ply"]
    assert sorted(entry.name for entry in folder.iterdir()) == expected
    first = (folder / "torus.ply").read_bytes()
    code, _, err = run_main(capsys, "reconstruct", *words, "--model", kept / "torus" / "model")
    assert code == 0, err
    assert "training" not in err
    assert (folder / "torus.ply").read_bytes() == first


def test_too_little_training_says_what_to_do(capsys, tmp_path, torus, monkeypatch) -> None:
    monkeypatch.setattr(MODELS["VecSetVAE"], "_field", lambda self, points, _: -points.norm(dim=2) - 1)
    words = ["reconstruct", torus, "-o", tmp_path / "out.ply", "--fit", "--steps", 1]
    code, _, err = run_main(capsys, *words)
    assert code == 2
    assert "train longer" in err
    assert "Traceback" not in err


def test_a_sheet_is_refused_and_doubt_is_said(capsys, tmp_path, ball) -> None:
    sheet = tmp_path / "sheet.obj"
    sheet.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    code, _, err = run_main(capsys, "reconstruct", sheet, "-o", tmp_path / "out.ply", "--fit")
    assert code == 2
    assert "sheet.obj: the mesh encloses nothing" in err
    geometry.save(shapes.half_pipe(), tmp_path / "pipe.obj")
    words = ["reconstruct", tmp_path / "pipe.obj", "-o", tmp_path / "out.ply", "--fit", "--steps", 1]
    code, _, err = run_main(capsys, *words, "--resolution", 16, "--no-picture")
    assert code == 0, err
    assert "pipe: inside or outside is in doubt for" in err


# ---- Ctrl-C ------------------------------------------------------------------------------------------------


# Threads that wait for one another take many times as long where other processes have the processors.
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def interrupt(command: list[str], ready: Path) -> tuple[int, str]:
    """Starts a command, sends it Ctrl-C once a file is there, and gives exit code and stderr."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ALONE)
    deadline = time.monotonic() + 120
    while not ready.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_an_interrupted_batch_leaves_whole_files_and_goes_on(tmp_path) -> None:
    model = tiny("VecSetVAE")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    count = 40  # so many that a busy machine interrupts before the last
    for number in range(count):
        torus = shapes.torus(segments=16)
        mesh = Mesh(torus.vertices * (1 + number), torus.faces)
        geometry.save(mesh, tmp_path / "in" / f"{number:02}.ply")
    # As the command, with a field that has a surface.
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
    program += "from tiny_models import ball_field\nfrom fastshape.models import VecSetVAE\n"
    program += "VecSetVAE._field = ball_field\nfrom fastshape.cli import main\nsys.exit(main())"
    command = [
        sys.executable,
        "-c",
        program,
        "reconstruct",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
    ]
    command += ["-m", str(tmp_path / "model"), "--resolution", "24", "--no-picture"]
    code, err = interrupt(command, tmp_path / "out" / "shapes" / "01.json")
    assert code == 130, err
    assert "Traceback" not in err
    assert err.rstrip().endswith("--no-picture --resume")
    assert "interrupted; to go on: fastshape reconstruct" in err
    done = sorted((tmp_path / "out").glob("*.ply"))
    assert 2 <= len(done) < count
    for path in done:
        assert geometry.load(path).num_faces > 0
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    finished = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=ALONE)
    assert finished.returncode == 0, finished.stderr
    assert "taken from the earlier run" in finished.stderr
    assert len(list((tmp_path / "out").glob("*.ply"))) == count


@pytest.mark.slow
def test_interrupted_training_goes_on(tmp_path, torus) -> None:
    """Ctrl-C leaves a checkpoint and the command that goes on from it, to the uninterrupted result."""
    command = [sys.executable, "-m", "fastshape", "reconstruct", str(torus), "--fit"]
    command += ["--resolution", "20", "--no-picture", "--steps", "400", "-o"]
    run_dir = tmp_path / "out.run"
    code, err = interrupt([*command, str(tmp_path / "out.ply")], run_dir / "metrics.jsonl")
    assert code == 130, err
    assert "Traceback" not in err
    assert f"--resume {run_dir}" in err
    assert (run_dir / "checkpoint.safetensors").exists()
    assert not (tmp_path / "out.ply").exists()

    def finish(output: Path, *words: str) -> bytes:
        subprocess.run([*command, str(output), *words], check=True, capture_output=True)
        return output.read_bytes()

    resumed = finish(tmp_path / "out.ply", "--resume", str(run_dir))
    assert resumed == finish(tmp_path / "whole.ply")
