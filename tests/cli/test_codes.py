"""A model that quantizes, on the command line: mesh to codes, codes or the first of them to a mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import ball_field, tiny

from fastshape import geometry, pipelines
from fastshape.cli import main
from fastshape.geometry import shapes
from fastshape.models import MODELS, VAT
from fastshape.ops import unpack_tokens
from fastshape.pipelines import LatentsError


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VAT:
    """Untrained weights in the folder `mine` that have learned a ball, and a mesh beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MODELS["VAT"], "_field", ball_field)
    tiny("VAT").save_pretrained("mine")
    geometry.save(shapes.torus(segments=24), "torus.stl")
    return VAT.from_pretrained("mine")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_encode_says_how_small_it_is(capsys, model) -> None:
    out = run(capsys, "encode", "torus.stl", "-m", "mine", "-o", "a.fsh")
    data, before = Path("a.fsh").read_bytes(), Path("torus.stl").stat().st_size
    assert out == (
        f"a.fsh: 30 tokens of 4 scales, {len(data)} B, {before / len(data):,.0f}x smaller than torus.stl\n"
    )
    inputs = pipelines.encoder_inputs(
        geometry.load("torus.stl"), model, generator=torch.Generator().manual_seed(0)
    )
    tokens = model.tokenize(*inputs.points)[0]
    stream = unpack_tokens(data[data.index(b"FQT") :])  # exactly the model's
    assert torch.equal(stream.codes, tokens)
    assert stream[1:] == (model.config.all_scales, model.config.num_codes, 4)
    run(capsys, "encode", "torus.stl", "-m", "mine", "-o", "b.fsh", "--half")
    assert Path("b.fsh").read_bytes() == data


def test_decode_is_reconstruct_to_the_last_bit(capsys, model) -> None:
    run(
        capsys,
        "reconstruct",
        "torus.stl",
        "-m",
        "mine",
        "-o",
        "whole.glb",
        "--resolution",
        24,
        "--no-picture",
    )
    run(capsys, "encode", "torus.stl", "-m", "mine", "-o", "a.fsh")
    out = run(capsys, "decode", "a.fsh", "-o", "parts.glb", "--resolution", 24)
    assert "from 30 tokens of 4 scales" in out
    assert Path("whole.glb").read_bytes() == Path("parts.glb").read_bytes()


def test_the_first_scales_are_a_coarser_shape(capsys, model) -> None:
    run(capsys, "encode", "torus.stl", "-m", "mine", "-o", "a.fsh")
    out = run(capsys, "decode", "a.fsh", "-o", "coarse.glb", "--resolution", 24, "--scales", 2)
    assert "from 5 tokens of 2 scales" in out
    encoded = pipelines.load_latents("a.fsh")
    expected = pipelines.decode_latents(encoded.coarser(2), model, resolution=24)
    features = model.decode_tokens(encoded.codes.codes[None], scales=2)
    found = encoded.normalization.undo_mesh(model.extract(features, 24))
    assert torch.equal(found.vertices, expected.vertices)
    whole = pipelines.decode_latents(encoded, model, resolution=24)
    assert not torch.equal(whole.vertices, expected.vertices)

    # A file that ends early is refused, unless no more is asked for than is there.
    coarse = pipelines.shape_bytes(encoded.coarser(2))
    Path("cut.fsh").write_bytes(Path("a.fsh").read_bytes()[: len(coarse) + 1])
    assert main(["decode", "cut.fsh", "-o", "cut.glb"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastshape: cut.fsh: the file ends within scale 3 of 4; the first 2 are whole")
    assert "--scales 2" in err
    assert err.count("\n") == 1
    run(capsys, "decode", "cut.fsh", "-o", "cut.glb", "--resolution", 24, "--scales", 2)
    assert Path("cut.glb").read_bytes() == Path("coarse.glb").read_bytes()


def test_info_of_codes(capsys, model) -> None:
    run(capsys, "encode", "torus.stl", "-m", "mine", "-o", "a.fsh", "--seed", 4)
    out = " ".join(run(capsys, "info", "a.fsh").split())
    for words in ("mine (VAT)", "1 + 4 + 9 + 16, 30 in all", "19 as codes of 32", "its mode; seed 4"):
        assert words in out
    pipelines.save_latents(pipelines.load_latents("a.fsh", scales=3), "b.fsh")
    assert "1 + 4 + 9, 14 in all; 3 of 4 scales" in " ".join(run(capsys, "info", "b.fsh").split())


def test_latents_before_quantization(model) -> None:
    mesh = geometry.load("torus.stl")
    codes = pipelines.encode_mesh(mesh, model)
    latents = pipelines.encode_mesh(mesh, model, quantize=False)
    assert codes.latents == ()
    assert latents.codes is None
    assert torch.equal(model.quantizer.quantize(latents.latents[0]).tokens[0], codes.codes.codes)
    found = pipelines.decode_latents(latents, model, resolution=24)
    features = model.decode(latents.latents[0], quantize=False)
    assert torch.equal(found.vertices, latents.normalization.undo_mesh(model.extract(features, 24)).vertices)
    drawn = pipelines.encode_mesh(mesh, model, sample_posterior=True)
    assert not torch.equal(drawn.codes.codes, codes.codes.codes)


def test_codes_of_another_codebook_are_refused(model) -> None:
    codes = pipelines.encode_mesh(geometry.load("torus.stl"), model)
    other = tiny("VAT", num_codes=64)
    with pytest.raises(LatentsError, match=r"made by mine \(weights .*\), the model is VAT \(weights"):
        pipelines.decode_latents(codes, other)
    unsigned = dataclasses.replace(codes, fingerprint="")  # nobody can tell but by the codes
    with pytest.raises(LatentsError, match=r"codes of 32 on scales \(1, 4, 9, 16\), which VAT does not"):
        pipelines.decode_latents(unsigned, other)
