"""Generation of meshes: by seeds, from the first scales of a mesh, and the command."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ball_field, tiny

from fastshape import geometry, models, pipelines
from fastshape.cli import main
from fastshape.geometry import shapes
from fastshape.models import VAT, CheckpointError, CheckpointMetadata, NextScaleConfig, NextScaleTransformer
from fastshape.train import token_fields


@pytest.fixture
def tokenizer(monkeypatch):
    """Whose shapes are balls of a radius that depends on the tokens."""
    monkeypatch.setattr(VAT, "_field", ball_field)
    return tiny("VAT")


def generator_of(tokenizer, **changes) -> NextScaleTransformer:
    torch.manual_seed(0)
    config = NextScaleConfig(dim=16, depth=1, heads=2, **token_fields(tokenizer), **changes)
    model = NextScaleTransformer(config).eval()
    model.metadata = CheckpointMetadata(
        tokenizer=tokenizer.title, tokenizer_fingerprint=tokenizer.fingerprint()
    )
    return model


def test_a_shape_is_its_seed_s(tokenizer):
    model = generator_of(tokenizer)
    made = list(pipelines.generate(model, tokenizer, [4, 5, 6], resolution=20))
    assert [shape.encoded.seed for shape in made] == [4, 5, 6]
    alone = next(pipelines.generate(model, tokenizer, [5], resolution=20))
    codes = [shape.encoded.codes.codes for shape in made]
    assert torch.equal(alone.encoded.codes.codes, codes[1])
    assert torch.equal(alone.mesh.vertices, made[1].mesh.vertices)
    assert not torch.equal(codes[0], codes[1])
    expected = tokenizer.extract(tokenizer.decode_tokens(codes[1][None]), 20)
    assert torch.equal(alone.mesh.vertices, expected.vertices)
    again = pipelines.decode_latents(made[1].encoded, tokenizer, resolution=20)
    assert torch.equal(again.vertices, expected.vertices)


def test_it_goes_on_from_a_mesh(tokenizer):
    model = generator_of(tokenizer)
    mesh = shapes.torus()
    moved = geometry.Mesh(10.0 * mesh.vertices + 3.0, mesh.faces)
    whole = pipelines.encode_mesh(moved, tokenizer, seed=7)
    given = whole.coarser(2)
    made = list(pipelines.generate(model, tokenizer, [0, 1], given=given, resolution=20))
    for shape in made:
        assert torch.equal(shape.encoded.codes.codes[:5], whole.codes.codes[:5])
        bounds = shape.mesh.bounds
        middle = moved.bounds.mean(0).to(bounds.dtype)
        torch.testing.assert_close(bounds.mean(0), middle, rtol=0, atol=0.5)  # in its own frame
        assert float((bounds[1] - bounds[0]).max()) > 5.0
    assert not torch.equal(made[0].encoded.codes.codes, made[1].encoded.codes.codes)
    with pytest.raises(pipelines.LatentsError, match="the latents were made by"):
        next(pipelines.generate(model, tiny("VAT", seed=1), [0], given=given))


def test_a_field_without_surface_is_no_mesh(tokenizer, monkeypatch):
    monkeypatch.setattr(VAT, "_field", lambda self, points, context: points[..., 0] * 0.0 - 1.0)
    made = list(pipelines.generate(generator_of(tokenizer), tokenizer, [0], resolution=20))
    assert made[0].mesh is None


def test_the_tokenizer_is_found_and_compared(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "right")
    tiny("VAT", seed=1).save_pretrained(tmp_path / "wrong")
    tiny("DoraVAE").save_pretrained(tmp_path / "dora")
    model = generator_of(models.load(tmp_path / "right"))
    assert pipelines.load_tokenizer(model).fingerprint() == tokenizer.fingerprint()
    assert pipelines.load_tokenizer(model, tmp_path / "right").origin == str(tmp_path / "right")
    with pytest.raises(CheckpointError, match=r"says the tokens of .*right \(weights .*wrong has weights"):
        pipelines.load_tokenizer(model, tmp_path / "wrong")
    with pytest.raises(CheckpointError, match="is a DoraVAE, and one of VAT is needed"):
        pipelines.load_tokenizer(model, tmp_path / "dora")
    tiny("VAT", quantize=False).save_pretrained(tmp_path / "stage")
    with pytest.raises(CheckpointError, match="stage has no quantizer, and makes no tokens"):
        pipelines.load_tokenizer(model, tmp_path / "stage")
    model.metadata = CheckpointMetadata(tokenizer=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"says the tokens of .*gone, which cannot be loaded"):
        pipelines.load_tokenizer(model)
    model.metadata = CheckpointMetadata()
    with pytest.raises(CheckpointError, match="does not say what made its tokens"):
        pipelines.load_tokenizer(model)


class Command:
    def __init__(self, capsys, tokenizer, folder) -> None:
        self.capsys, self.folder = capsys, folder
        tokenizer.save_pretrained(folder / "tokenizer")
        self.tokenizer = models.load(folder / "tokenizer")
        self.save("plain")

    def save(self, name: str, **changes: object) -> None:
        generator_of(self.tokenizer, **changes).save_pretrained(self.folder / name)

    def __call__(self, *words: object, model: str = "plain") -> tuple[int, str, str]:
        given = ["generate", "-m", self.folder / model, "--resolution", 20, *words]
        code = main([str(word) for word in given])
        return code, *self.capsys.readouterr()


@pytest.fixture
def command(capsys, tokenizer, tmp_path):
    return Command(capsys, tokenizer, tmp_path)


def test_the_command(command, tmp_path):
    code, out, err = command("-n", 3, "--seed", 8, "-o", tmp_path / "out")
    assert code == 0, err
    assert f"wrote 3 meshes to {tmp_path / 'out'} and" in out
    assert "NextScaleTransformer" in err
    names = [f"seed-{seed:04}.{kind}" for seed in (8, 9, 10) for kind in ("fsh", "glb")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "sheet.png"]
    pillow = pytest.importorskip("PIL.Image")
    assert pillow.open(tmp_path / "out" / "sheet.png").size == (3 * 128, 128)
    code, _, err = command("-n", 1, "--seed", 9, "-o", tmp_path / "one", "--no-picture")
    assert code == 0, err
    for name in names[2:4]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 2
    # The codes lead back.
    words = ["decode", tmp_path / "one" / names[2], "-o", tmp_path / "back.glb", "--resolution", 20]
    assert main([str(word) for word in words]) == 0
    assert (tmp_path / "back.glb").read_bytes() == (tmp_path / "one" / names[3]).read_bytes()


def test_the_command_goes_on_from_a_mesh(command, tmp_path):
    geometry.save(shapes.torus(), tmp_path / "torus.ply")
    words = (
        "-n",
        1,
        "-o",
        tmp_path / "out",
        "--no-picture",
        "--top-k",
        5,
        "--top-p",
        0.9,
        "--temperature",
        0.8,
    )
    code, _, err = command(*words, "--from", tmp_path / "torus.ply", "--scales", 3)
    assert code == 0, err
    mesh = geometry.load(tmp_path / "out" / "seed-0000.glb")
    assert mesh.num_faces > 100
    code, _, err = command(
        "-n", 1, "-o", tmp_path / "more", "--no-picture", "--from", tmp_path / "out" / "seed-0000.fsh"
    )
    assert code == 0, err
    first, more = (pipelines.load_latents(tmp_path / name / "seed-0000.fsh") for name in ("out", "more"))
    assert first.codes.codes[0] == more.codes.codes[0]
    assert not torch.equal(first.codes.codes, more.codes.codes)


def test_the_command_takes_a_picture(command, tmp_path):
    transformers = pytest.importorskip("transformers")
    pillow = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    backbone = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=28, patch_size=14))
    backbone.save_pretrained(tmp_path / "vision")
    pillow.new("RGBA", (50, 40), (200, 30, 30, 128)).save(tmp_path / "picture.png")
    command.save("image", image_dim=8, image_tokens=257)
    words = ("-n", 1, "-o", tmp_path / "out", "--no-picture", "--image-model", tmp_path / "vision")
    code, _, err = command(*words, "--image", tmp_path / "picture.png", "--guidance", 2, model="image")
    assert code == 0, err
    code, _, err = command(*words, "--image", tmp_path / "vision", model="image")
    assert (code, f"{tmp_path / 'vision'}: " in err) == (2, True)
    command.save("small", image_dim=8, image_tokens=5)
    code, _, err = command(*words, "--image", tmp_path / "picture.png", model="small")
    assert code == 2
    assert "--image-model gives (1, 257, 8), and " in err


def test_what_a_generator_is(command, capsys):
    assert main(["info", str(command.folder / "plain")]) == 0
    out = capsys.readouterr().out
    assert "30 of 4 scales, as " in out.replace("\n", " ")
    geometry.save(shapes.torus(segments=8), command.folder / "torus.ply")
    words = ["reconstruct", command.folder / "torus.ply", "-o", command.folder / "out.ply", "--no-picture"]
    assert main([str(word) for word in [*words, "-m", command.folder / "plain"]]) == 2
    assert "is a generator: see `fastshape generate`" in capsys.readouterr().err


def test_what_the_command_refuses(command, tmp_path, monkeypatch):
    words = ("-o", tmp_path / "out", "-n", 1)
    for more, expected in (
        (("--guidance", 2), "--guidance needs a model with a condition, and"),
        (("--scales", 2), "--scales is of the shape that --from gives"),
        (("--temperature", 0), "`temperature` must be positive, got 0.0"),
        (("--top-p", 2), "`top_p` must be in [0, 1], got 2.0"),
        (("--class", 1), "--class: "),
        (("--text", "a chair"), "takes no such condition"),
        (("--image", "chair.png"), "takes no such condition"),
        (("--tokenizer", tmp_path / "gone"), "gone"),
    ):
        code, _, err = command(*words, *more)
        assert code == 2, more
        assert expected in err
        assert not list(tmp_path.glob("out/*"))
    command.save("classes", num_classes=3, text_dim=4)
    code, _, err = command(*words, "--class", 3, model="classes")
    assert (code, "--class must be in [0, 3), got 3" in err) == (2, True)
    code, _, err = command(*words, "--text", "a chair", model="classes")
    assert (code, "--text needs --text-model" in err) == (2, True)
    code, _, err = command(*words, "--class", 2, "--guidance", 1, "--no-picture", model="classes")
    assert code == 0, err
    code, _, err = command(*words, model="tokenizer")
    assert code == 2
    assert "is a VAT, and one of NextScaleTransformer is needed here" in err
    monkeypatch.setattr(VAT, "_field", lambda self, points, context: points[..., 0] * 0.0 - 1.0)
    code, out, err = command("-o", tmp_path / "none", "-n", 2)
    assert code == 1
    assert "seed 1: a field without a surface" in err
    assert "wrote 0 meshes" in out
