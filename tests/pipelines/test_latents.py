"""The file of latents: what goes in comes out, and what is wrong with another file is said in one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import ball, tiny

from fastshape.geometry import Mesh, shapes
from fastshape.models import MODELS
from fastshape.pipelines import LatentsError, decode_latents, encode_mesh, load_latents, save_latents


@pytest.fixture(scope="module")
def torus() -> Mesh:
    mesh = shapes.torus(segments=24)
    return Mesh(mesh.vertices.double() / 3 + 100, mesh.faces)


@pytest.mark.parametrize("family", MODELS)
def test_what_was_saved_is_loaded_to_the_last_bit(tmp_path, torus, family) -> None:
    model = ball(family)
    encoded = encode_mesh(torus, model, seed=7, sample_posterior=True)
    path = tmp_path / "new" / "a.safetensors"
    save_latents(encoded, path)
    loaded = load_latents(path)
    for mine, theirs in zip(encoded.latents, loaded.latents, strict=True):
        assert torch.equal(mine, theirs)
    for name in ("normalization", "model", "weights", "fingerprint", "seed", "sampled", "version", "tokens"):
        assert getattr(loaded, name) == getattr(encoded, name)
    first, second = (decode_latents(e, model, resolution=16) for e in (encoded, loaded))
    assert torch.equal(first.vertices, second.vertices)
    save_latents(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    with safe_open(path, framework="pt") as file:  # readable without us
        assert file.metadata()["model"] == family
        assert len(list(file.keys())) == len(encoded.latents)


def test_half_precision(tmp_path, torus) -> None:
    model = ball("LaGeM")
    encoded = encode_mesh(torus, model)
    save_latents(encoded, tmp_path / "half.safetensors", dtype=torch.float16)
    loaded = load_latents(tmp_path / "half.safetensors")
    assert {level.dtype for level in loaded.latents} == {torch.float16}
    assert loaded.num_bytes * 2 == encoded.num_bytes
    decode_latents(loaded, model, resolution=16)
    with pytest.raises(ValueError, match=r"must be torch\.float32 or torch\.float16, got torch\.int32"):
        save_latents(encoded, tmp_path / "no.safetensors", dtype=torch.int32)
    large = encoded.to(torch.float32)
    large.latents[0].fill_(1e6)
    with pytest.raises(ValueError, match=r"float16 cannot hold these latents"):
        save_latents(large, tmp_path / "no.safetensors", dtype=torch.float16)
    assert not (tmp_path / "no.safetensors").exists()


def _edit(path, **changes: str | None) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    save_file(tensors, path, metadata)


BAD_FILES = {
    "missing": (lambda path: path.unlink(), "no such file of latents"),
    "empty": (lambda path: path.write_bytes(b""), "a damaged file or no safetensors"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "a damaged file or no safetensors"),
    "a mesh": (lambda path: path.write_text("v 0 0 0\n"), "a damaged file or no safetensors"),
    "weights": (
        lambda path: save_file({"head.weight": torch.zeros(2)}, path),
        "expected latents that `fastshape encode` wrote, got tensors head.weight",
    ),
    "newer": (lambda path: _edit(path, format_version="9"), "format version 9; this release reads 1"),
    "no scale": (lambda path: _edit(path, scale=None), r"metadata is damaged \(KeyError\('scale'\)"),
    "scale 0": (lambda path: _edit(path, scale="0"), "scale is 0"),
    "nan": (lambda path: _edit(path, center="[1, 2]"), "metadata is damaged"),
    "tokens": (lambda path: _edit(path, tokens=json.dumps([3])), r"tokens are \[3\]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(tmp_path, torus, case) -> None:
    path = tmp_path / "a.safetensors"
    save_latents(encode_mesh(torus, tiny("VecSetVAE")), path)
    spoil, message = BAD_FILES[case]
    spoil(path)
    with pytest.raises(LatentsError, match=message) as caught:
        load_latents(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
