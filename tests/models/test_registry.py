"""Models by name: shipped weights, folders, hub ids, and what is said of anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastshape import models
from fastshape.models import (
    MODELS,
    VAT,
    CheckpointError,
    CheckpointMetadata,
    DoraConfig,
    DoraVAE,
    LaGeM,
    LaGeMConfig,
    VATConfig,
    VecSetConfig,
    VecSetVAE,
    registry,
)
from fastshape.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from fastshape.runtime.files import read_safetensors

TINY = {
    "VecSetVAE": VecSetConfig(dim=16, depth=1, heads=1, head_dim=16, num_latents=8, latent_dim=4),
    "DoraVAE": DoraConfig(dim=16, heads=1, encoder_depth=1, depth=1, latent_dim=4, num_latents=8),
    "LaGeM": LaGeMConfig(
        dim=16, heads=1, head_dim=16, num_latents=(8, 4), latent_dims=(4, 8), depths=(1, 1), num_inputs=64
    ),
    "VAT": VATConfig(
        dim=16, heads=1, encoder_depth=1, depth=1, num_latents=16, plane_size=2, channels=(8,), num_codes=32
    ),
}


def tiny(name: str) -> models.FieldAutoencoder:
    torch.manual_seed(0)
    return MODELS[name](TINY[name]).eval()  # type: ignore[call-arg, arg-type]


def test_the_registry_holds_every_autoencoder() -> None:
    assert dict(MODELS) == {"VecSetVAE": VecSetVAE, "DoraVAE": DoraVAE, "LaGeM": LaGeM, "VAT": VAT}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_says_which_model_it_is(tmp_path, name) -> None:
    model = tiny(name)
    model.metadata = CheckpointMetadata(license="Apache-2.0", name="mine")
    model.save_pretrained(tmp_path)
    loaded = models.load(tmp_path)
    assert type(loaded) is MODELS[name]
    assert loaded.config == model.config
    assert loaded.metadata == model.metadata
    assert not loaded.training
    assert (loaded.title, loaded.origin) == (str(tmp_path), str(tmp_path))
    assert (model.title, model.origin) == ("mine", None)
    assert loaded.fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_halves_the_file_and_loads_as_single(tmp_path, name) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / folder / WEIGHTS_FILE).stat().st_size for folder in ("whole", "half")]
    assert sizes[1] < 0.75 * sizes[0]  # the names take their share of so small a file
    stored, _ = read_safetensors(tmp_path / "half" / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = models.load(tmp_path / "half")
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[key].half().float())
    assert loaded.fingerprint() != model.fingerprint()
    # Rounding once more changes nothing.
    loaded.save_pretrained(tmp_path / "again", dtype=torch.float16)
    files = [(tmp_path / folder / WEIGHTS_FILE).read_bytes() for folder in ("half", "again")]
    assert files[0] == files[1]


def test_a_dtype_must_hold_the_weights(tmp_path) -> None:
    model = tiny("VecSetVAE")
    with pytest.raises(ValueError, match=r"`dtype` must be of floating point, got torch\.int64"):
        model.save_pretrained(tmp_path, dtype=torch.int64)
    with torch.no_grad():
        model.head.to_logits.bias.fill_(1e5)
    with pytest.raises(ValueError, match=r"torch\.float16 cannot hold head\.to_logits\.bias"):
        model.save_pretrained(tmp_path, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_sees_weights_and_configuration() -> None:
    first, second = tiny("VecSetVAE"), tiny("VecSetVAE")
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        second.head.to_logits.bias += 1e-6
    assert first.fingerprint() != second.fingerprint()
    torch.manual_seed(0)
    other = VecSetVAE(VecSetConfig(**{**TINY["VecSetVAE"].to_dict(), "num_latents": 9})).eval()
    assert other.fingerprint() != first.fingerprint()  # the default number of tokens is another


def test_shipped_weights_are_loaded_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(registry, "WEIGHTS_FOLDER", tmp_path / "weights")
    assert models.shipped() == {}
    for name in ("vecset-mini", "lagem-mini"):
        tiny("LaGeM" if "lagem" in name else "VecSetVAE").save_pretrained(tmp_path / "weights" / name)
    (tmp_path / "weights" / "half-there").mkdir()
    (tmp_path / "weights" / "half-there" / CONFIG_FILE).write_text("{}")
    assert list(models.shipped()) == ["lagem-mini", "vecset-mini"]
    model = models.load("lagem-mini")
    assert isinstance(model, LaGeM)
    assert (model.title, model.origin) == ("lagem-mini", "lagem-mini")

    # A folder of that name is meant only where it is written as a path.
    tiny("DoraVAE").save_pretrained(tmp_path / "vecset-mini")
    monkeypatch.chdir(tmp_path)
    assert isinstance(models.load("vecset-mini"), VecSetVAE)
    assert isinstance(models.load("./vecset-mini"), DoraVAE)


def test_what_ships_can_be_loaded() -> None:
    for name, folder in models.shipped().items():
        model = models.load(name)
        assert model.title == model.metadata.name == name
        assert model.metadata.license
        assert model.metadata.source
        assert model.metadata.preparation
        assert (folder / "README.md").is_file()
        assert (folder / WEIGHTS_FILE).stat().st_size <= 4 << 20


def test_a_repository_says_which_model_it_is(tmp_path, monkeypatch) -> None:
    import huggingface_hub

    tiny("DoraVAE").save_pretrained(tmp_path)
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = models.load("owner/name", revision="v2")
    assert isinstance(model, DoraVAE)
    assert model.origin == "owner/name"
    assert set(asked) == {("owner/name", CONFIG_FILE, "v2"), ("owner/name", WEIGHTS_FILE, "v2")}


def test_other_names_give_one_line_that_lists_what_there_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(registry, "WEIGHTS_FOLDER", tmp_path)
    for place in ("teapot", tmp_path / "none" / "there"):
        with pytest.raises(CheckpointError, match=r"no such folder, .*none in this installation") as e:
            models.load(place)
        assert "\n" not in str(e.value)
    tiny("VecSetVAE").save_pretrained(tmp_path / "vecset-mini")
    with pytest.raises(CheckpointError, match=r"^teapot: .* none of the shipped models \(vecset-mini\)$"):
        models.load("teapot")


def test_a_description_of_another_model_is_refused(tmp_path) -> None:
    tiny("VecSetVAE").save_pretrained(tmp_path)
    path: Path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "Teapot"}))
    with pytest.raises(CheckpointError, match="describes a Teapot; this release has VecSetVAE, Dora"):
        models.load(tmp_path)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match="is not a model configuration"):
        models.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        models.load(tmp_path / "empty")
