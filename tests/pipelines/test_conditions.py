"""Conditions of prepared shapes, from meshes to a generator that is told them; the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import tiny_backbones
import torch
from safetensors import safe_open
from tiny_models import ball_field, tiny

from fastshape import geometry, models, pipelines, train
from fastshape.cli import main
from fastshape.geometry import PreparedFolder, PrepareError, PrepareSpec, shapes
from fastshape.models import VAT, CheckpointError, ConditionFolder, ImageConditioner, TextConditioner
from fastshape.pipelines import conditions as conditions_module
from fastshape.pipelines import make_conditions, read_captions, shape_sources
from fastshape.pipelines.status import read_lines

MESHES = {
    "torus": shapes.torus(segments=7),
    "knot": shapes.knot(segments=24),
    "pipe": shapes.half_pipe(segments=8),
    "needle": shapes.torus(0.1, 0.9, segments=8),
}
SHAPES = len(MESHES)
SETTINGS = {"views": 5, "picture_size": 40}  # none of the meshes looks alike after a fifth of a turn


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return tiny_backbones.vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return tiny_backbones.language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def image(vision):
    return ImageConditioner(vision, size=28)  # 5 tokens


@pytest.fixture(scope="module")
def text(language):
    return TextConditioner(language)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What `fastshape prepare` writes, of a few meshes and a copy of one."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "in").mkdir()
    for name, mesh in MESHES.items():
        geometry.save(mesh, folder / "in" / f"{name}.ply")
    (folder / "in" / "copy.ply").write_bytes((folder / "in" / "knot.ply").read_bytes())
    spec = PrepareSpec.preset("vat", num_surface=400, num_volume=50, num_near=50)
    pipelines.prepare([folder / "in"], folder / "out", spec, workers=1)
    return folder / "out"


@pytest.fixture(scope="module")
def keys(prepared):
    return PreparedFolder(prepared).keys


@pytest.fixture(scope="module")
def told(prepared, image, text, tmp_path_factory):
    """Conditions of all shapes, a caption of two of them."""
    folder = tmp_path_factory.mktemp("told")
    captions = {"torus": "a chair", "in/pipe.ply": "a"}
    make_conditions(shape_sources([prepared], captions), folder, image=image, text=text, **SETTINGS)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "status" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- Making ------------------------------------------------------------------------------------------------


def test_each_shape_has_its_own_pictures_and_caption(prepared, keys, told, image, text):
    folder = ConditionFolder(told, keys)
    assert len(folder) == SHAPES
    assert folder.names == ["text", "image"]
    assert folder.fields == {"text_dim": 16, "image_dim": 16, "image_tokens": 5}
    captions = {"torus.ply": "a chair", "pipe.ply": "a"}
    elevations = set()
    for line, condition in zip(read_lines(prepared / "index.jsonl"), folder, strict=True):
        with safe_open(told / line["file"], framework="pt") as file:
            elevation = float(file.metadata()["elevation"])
        elevations.add(elevation)
        seen = geometry.orbit(geometry.load(line["source"]), frames=5, size=40, elevation=elevation)
        assert condition.image.dtype == torch.float16
        torch.testing.assert_close(condition.image.float(), image(seen.pictures), rtol=1e-2, atol=1e-2)
        caption = captions.get(Path(line["source"]).name)
        if caption is None:
            assert bool(condition.text.isnan().all())
        else:
            torch.testing.assert_close(condition.text.float(), text([caption])[0], rtol=1e-2, atol=1e-2)
    assert len(elevations) == SHAPES
    assert all(-5.0 <= elevation <= 30.0 for elevation in elevations)
    assert bool(
        (folder[0].image[0] - folder[1].image[0]).abs().max() > 0.1
    )  # pictures that can be told apart


def test_what_a_stopped_run_made_is_kept(prepared, keys, told, image, text, tmp_path, monkeypatch):
    plain, calls = conditions_module.orbit, []

    def counted(mesh, **options):
        calls.append(mesh)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(mesh, **options)

    monkeypatch.setattr(conditions_module, "orbit", counted)
    captions = {"torus": "a chair", "pipe": "a"}

    def make(captions=captions, **changes):
        return make_conditions(
            shape_sources([prepared], captions), tmp_path, image=image, text=text, **{**SETTINGS, **changes}
        )

    with pytest.raises(pipelines.PrepareInterrupted, match="stopped after 2 of 4 items"):
        make()
    assert len(calls) == 2
    with pytest.raises(CheckpointError, match=r"no index\.jsonl; a run of `fastshape conditions` that ends"):
        ConditionFolder(tmp_path, keys)
    report = make()
    assert (report.counts["done"], report.counts["ok"], report.num_indexed) == (2, 2, 4)
    assert len(calls) == 4
    assert tree(tmp_path) == tree(told)
    assert ConditionFolder(tmp_path, keys).fingerprint == ConditionFolder(told, keys).fingerprint
    # Another caption is another condition, of that shape alone; other pictures are for another folder.
    report = make({"torus": "a chair", "pipe": "chair"})
    assert (report.counts["done"], report.counts["ok"]) == (3, 1)
    assert ConditionFolder(tmp_path, keys).fingerprint != ConditionFolder(told, keys).fingerprint
    with pytest.raises(
        PrepareError, match=r"that were made otherwise \(image\.views \(5 -> 2\)\); choose another"
    ):
        make(views=2)
    # Two processes share the work.
    for rank in (0, 1):
        make_conditions(
            shape_sources([prepared], captions),
            tmp_path / "shared",
            image=image,
            text=text,
            rank=pipelines.Rank(rank, 2),
            **SETTINGS,
        )
    assert tree(tmp_path / "shared") == tree(told)


def test_meshes_that_are_gone(prepared, keys, image, tmp_path, monkeypatch):
    lines = list(read_lines(prepared / "index.jsonl"))
    sources = shape_sources([prepared])
    gone, broken, _, duplicates = sorted(sources, key=lambda shape: len(shape.paths))
    moved = tmp_path / "elsewhere" / "renamed.ply"
    moved.parent.mkdir()
    moved.write_bytes(Path(gone.paths[0]).read_bytes())
    (tmp_path / "other.ply").write_bytes(b"something else")
    places = {path: path for shape in sources for path in shape.paths}
    places[gone.paths[0]] = str(tmp_path / "nowhere.ply")
    places[duplicates.paths[0]] = str(tmp_path / "other.ply")  # its copy is still there
    changed = [
        pipelines.ShapeSource(shape.key, shape.digest, tuple(places[path] for path in shape.paths))
        for shape in sources
    ]
    plain = conditions_module.load
    unreadable = {broken.paths[0]}

    def load(path):
        if path in unreadable:
            raise geometry.MeshError(path, "no face has an area")
        return plain(path)

    monkeypatch.setattr(conditions_module, "load", load)
    report = make_conditions(changed, tmp_path / "out", image=image, **SETTINGS)
    assert report.counts == {"ok": SHAPES - 2, "failed": 2}
    assert {(failure.kind, failure.reason) for failure in report.failures} == {
        ("missing", "no file with the bytes that were prepared"),
        ("mesh", "no face has an area"),
    }
    with pytest.raises(CheckpointError, match=r"holds no conditions of 2 of the 4 shapes, [0-9a-f]{64} say;"):
        ConditionFolder(tmp_path / "out", keys)
    folder = ConditionFolder(tmp_path / "out", keys, allow_missing=True)
    unknown = [bool(condition.image.isnan().all()) for condition in folder]
    assert unknown == [line["key"] in (gone.key, broken.key) for line in lines]
    assert all(condition.text is None for condition in folder)
    with pytest.raises(CheckpointError, match="of 1 of the 1 shapes"):  # of all: that is a mistake
        ConditionFolder(tmp_path / "out", ["ab"], allow_missing=True)
    unreadable.clear()
    report = make_conditions(changed, tmp_path / "out", image=image, meshes=[moved.parent], **SETTINGS)
    assert report.counts == {"done": SHAPES - 2, "ok": 2}
    assert len(ConditionFolder(tmp_path / "out", keys)) == SHAPES


def test_captions_find_their_meshes(prepared, tmp_path):
    def captions_of(captions):
        found = shape_sources([prepared], captions)
        return {Path(shape.paths[0]).stem: shape.caption for shape in found if shape.caption is not None}

    source = shape_sources([prepared])[0].paths[0]
    assert captions_of({source: "whole"}) == {Path(source).stem: "whole"}
    assert captions_of({"in/pipe": "long", "pipe": "short"}) == {"pipe": "long"}
    assert captions_of({"knot": "by its copy's other name", "of no mesh": "x"}) == {
        "copy": "by its copy's other name"
    }
    with pytest.raises(
        PrepareError, match=r"no caption fits a mesh: they are of 'chair', and the first mesh"
    ):
        captions_of({"chair": "a chair"})
    table = tmp_path / "captions.csv"
    table.write_text('path,caption\n./torus.ply,"a chair, say"\nknot,\n')
    assert read_captions(table) == {"torus.ply": "a chair, say"}
    (tmp_path / "captions.json").write_text(json.dumps({"torus": "a chair"}))
    assert read_captions(tmp_path / "captions.json") == {"torus": "a chair"}
    for content in ("uid,text\n1,a\n", "path,caption\n1\n"):
        table.write_text(content)
        with pytest.raises(PrepareError, match=r"captions\.csv: expected a \.csv with the columns path and"):
            read_captions(table)
    table.write_text("path,caption\na,x\n./a,y\n")
    with pytest.raises(PrepareError, match="1 names have more than one caption"):
        read_captions(table)


def test_a_caption_of_two_meshes_is_refused(tmp_path):
    for segments, place in ((6, "one"), (7, "two")):
        (tmp_path / place).mkdir()
        geometry.save(shapes.torus(segments=segments), tmp_path / place / "model.ply")
    spec = PrepareSpec(num_surface=20, num_volume=5, num_near=5)
    pipelines.prepare([tmp_path / "one", tmp_path / "two"], tmp_path / "out", spec, workers=1)
    with pytest.raises(PrepareError, match=r"the caption of 'model' fits .*model\.ply and .*model\.ply"):
        shape_sources([tmp_path / "out"], {"model": "a chair"})
    found = shape_sources([tmp_path / "out"], {"one/model": "a", "two/model": "chair"})
    assert {shape.caption for shape in found} == {"a", "chair"}


def test_folders_that_are_damaged(told, keys, tmp_path):
    with pytest.raises(CheckpointError, match=r"no conditions\.json; a run of `fastshape conditions` that"):
        train.read_conditions(tmp_path, keys)
    copy = tmp_path / "copy"
    shutil.copytree(told, copy)
    file = next(copy.glob(f"*/{keys[1]}.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    folder = train.read_conditions(copy, keys)
    assert torch.equal(folder[2].image, ConditionFolder(told, keys)[2].image)
    with pytest.raises(CheckpointError, match=rf"{keys[1]}\.safetensors is damaged"):
        folder[1]
    (copy / "index.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(CheckpointError, match=r"copy: not a folder of conditions: KeyError\('file'\)"):
        train.read_conditions(copy, keys)


# ---- Training ----------------------------------------------------------------------------------------------


def test_a_step_draws_one_view_of_each_shape(prepared, keys, told, tmp_path):
    tokenizer = tiny("VAT")
    dataset = train.ShapeDataset(prepared)
    conditions = train.read_conditions(told, dataset.prepared.keys)
    samples = train.encode_tokens(tokenizer, dataset, tmp_path, conditions=conditions, progress=False)
    fields = {**train.token_fields(tokenizer), **train.condition_fields(conditions)}
    model = models.NextScaleConfig(dim=16, depth=1, heads=2, **fields)
    config = train.TokenTrainConfig(model=model, batch_size=SHAPES, steps=40)
    views = torch.stack([condition.image for condition in conditions]).float()
    seen = set()
    for step in range(40):
        batch = train.sample_tokens(samples, config, step)
        again = train.sample_tokens(samples, config, step)
        assert torch.equal(batch.condition.image, again.condition.image)
        for row, tokens in zip(batch.condition.image, batch.tokens, strict=True):
            shape, view = (views == row).flatten(2).all(2).nonzero()[0].tolist()
            assert torch.equal(tokens, samples.tokens[shape, 0].long())
            seen.add((shape, view))
    assert len(seen) == SHAPES * SETTINGS["views"]
    assert train.validate_tokens(models.NextScaleTransformer(model), samples)["validation_loss"] > 0
    other = train.TokenDataset(samples.tokens, tokenizer)
    assert other.fingerprint() != samples.fingerprint()
    with pytest.raises(ValueError, match="`conditions` must have a row for each of 4 shapes, got 3"):
        train.TokenDataset(samples.tokens, tokenizer, conditions=ConditionFolder(told, keys[1:]))


def test_a_picture_says_which_shape(prepared, keys, told, image, tmp_path):
    tokenizer = tiny("VAT")
    conditions = ConditionFolder(told, keys)
    dataset = train.ShapeDataset(prepared)
    samples = train.encode_tokens(tokenizer, dataset, tmp_path, conditions=conditions, progress=False)
    fields = {**train.token_fields(tokenizer), "image_dim": 16, "image_tokens": 5, "drop_condition": 0.0}
    model = train.fit(
        train.TokenTrainConfig(
            model=models.NextScaleConfig(dim=16, depth=2, heads=2, **fields),
            steps=140,
            batch_size=SHAPES,
            learning_rate=2e-2,
            betas=(0.9, 0.95),
            num_threads=1,
        ),
        samples,
        progress=False,
        device="cpu",
    )
    seen = torch.stack([condition.image[2] for condition in conditions]).float()
    greedy = models.Sampling(top_k=1)
    made = model.generate(tokenizer.quantizer, range(SHAPES), models.Condition(image=seen), sampling=greedy)
    alike = (made[:, None] == samples.tokens[:, 0].long()).float().mean(2)  # (made, shape)
    assert alike.argmax(1).tolist() == list(range(SHAPES)), alike


def test_from_meshes_to_a_generator_that_is_shown_a_picture(
    capsys, tmp_path, prepared, vision, language, monkeypatch
):
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(VAT, "_field", ball_field)

    def command(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    tiny("VAT").save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "captions.csv").write_text("path,caption\ntorus,a chair\n")
    words = ["conditions", prepared, "-o", tmp_path / "told", "--views", 2, "--picture-size", 40]
    code, out, err = command(
        *words, "--image-model", vision, "--text-model", language, "--captions", tmp_path / "captions.csv"
    )
    assert code == 0, err
    assert "4 items" in err
    assert "3 of 4 shapes have no caption: their text is not known" in err
    assert [line.split() for line in out.splitlines() if line.strip()][2] == ["made", "4"]
    assert f"conditions of 4 shapes in {tmp_path / 'told'}" in out.replace("\n", "")

    training = ["--tokenizer", tmp_path / "tokenizer", "--conditions", tmp_path / "told", "--no-tensorboard"]
    for setting in ("model.dim=16", "model.depth=1", "model.heads=2", "batch_size=2", "scale_counts="):
        training += ["--set", setting]
    training += ["--set", "scale_probabilities=", "--steps", 2]
    words = ["train", "vat-tiny-ar", prepared, "-o", tmp_path / "run", "--validation", prepared, *training]
    code, out, err = command(*words)
    assert code == 0, err
    config = models.load(tmp_path / "run" / "model").config
    assert (config.text_dim, config.image_dim, config.image_tokens) == (16, 16, 257)

    picture = geometry.orbit(shapes.torus(), frames=1, size=40, elevation=10.0).pictures[0]
    pixels = (255 * picture.permute(1, 2, 0)).round().byte().numpy()
    pillow.fromarray(pixels, "RGBA").save(tmp_path / "picture.png")
    words = ["generate", "-m", tmp_path / "run" / "model", "-n", 1, "--resolution", 20, "--no-picture"]
    words += ["-o", tmp_path / "new", "--image", tmp_path / "picture.png", "--image-model", vision]
    code, out, err = command(*words, "--guidance", 2)
    assert code == 0, err
    assert geometry.load(tmp_path / "new" / "seed-0000.glb").num_faces > 20

    # What does not go together is refused before anything is encoded: another model, shapes that the folder
    # does not know.
    words = ["train", "vat-ar", prepared, "-o", tmp_path / "next", "--tokenizer", tmp_path / "tokenizer"]
    for more, given in ((["--conditions", tmp_path / "told"], "has 16"), ([], "is not given")):
        code, _, err = command(*words, *more)
        assert code == 2
        assert (
            f"fastshape: vat-ar: `model.text_dim` is 768, and --conditions {given}: --set model.text" in err
        )
    (tmp_path / "more").mkdir()
    geometry.save(shapes.torus(segments=30), tmp_path / "more" / "torus.ply")
    meshes, spec = [prepared.parent / "in", tmp_path / "more"], PreparedFolder(prepared).spec
    pipelines.prepare(meshes, tmp_path / "larger", spec, workers=1)
    words = ["train", "vat-tiny-ar", tmp_path / "larger", "-o", tmp_path / "next", *training]
    code, _, err = command(*words)
    assert code == 2
    assert f"{tmp_path / 'told'}: holds no conditions of 1 of the 5 shapes" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "next").exists()
    code, _, err = command(*words, "--allow-missing")
    assert code == 0, err


def test_ctrl_c_says_how_to_go_on(capsys, tmp_path, prepared, vision, monkeypatch):
    plain = conditions_module.orbit

    def stopped(mesh, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(mesh, **options)

    monkeypatch.setattr(conditions_module, "orbit", stopped)
    words = ["conditions", prepared, "-o", tmp_path, "--image-model", vision, "--views", 1]
    assert main([*map(str, words), "--picture-size", "16"]) == 130
    err = capsys.readouterr().err
    assert f"fastshape: stopped after 1 of 4 items; to go on: fastshape conditions {prepared}" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what are conditions to be made of? --image-model PATH, --text-model PATH, or both"),
        (["--text-model", "clip"], "--text-model and --captions come together"),
        (["--image-model", "dino", "--captions", "c.csv"], "--text-model and --captions come together"),
        (["--image-model", "dino", "--rank", 1], "--rank and --world-size come together"),
        (
            ["--text-model", "clip", "--captions", "c.csv"],
            "c.csv: cannot be read (No such file or directory)",
        ),
        (["--image-model", "dino"], "nowhere: no spec.json, so this is not a folder of prepared shapes"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code = main(["conditions", "nowhere", "-o", "out", *map(str, words)])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err == f"fastshape: {message}\n"
    assert list(tmp_path.iterdir()) == []
