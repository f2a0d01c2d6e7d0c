"""Saving and loading of models: the folder, its metadata, the hub, and folders that are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS, tiny

from fastshape.models import CheckpointError, CheckpointMetadata, PreparationWarning, VecSetVAE
from fastshape.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from fastshape.testing import random_points

CONFIG = CONFIGS["VecSetVAE"]  # one layer


@pytest.fixture(scope="module")
def model():
    return tiny("VecSetVAE", depth=2)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == [CONFIG_FILE, WEIGHTS_FILE]
    loaded = VecSetVAE.from_pretrained(tmp_path / "saved")
    assert loaded.config == model.config
    assert not loaded.training
    points, queries = random_points(1, 50), random_points(1, 9)
    with torch.no_grad():
        assert torch.equal(loaded(points, queries).values, model(points, queries).values)


def test_saving_over_an_old_model(model, tmp_path):
    VecSetVAE(CONFIG).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert VecSetVAE.from_pretrained(tmp_path).config == model.config
    assert sorted(os.listdir(tmp_path)) == [CONFIG_FILE, WEIGHTS_FILE]


def _truncate(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def _edit(folder: Path, **changes) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD_DIRECTORIES = {
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), rf"{WEIGHTS_FILE} does not exist"),
    "no configuration": (lambda f: (f / CONFIG_FILE).unlink(), rf"{CONFIG_FILE} does not exist"),
    "truncated": (_truncate, rf"{WEIGHTS_FILE} is damaged"),
    "empty weights": (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), rf"{WEIGHTS_FILE} is damaged"),
    "garbage": (lambda f: (f / WEIGHTS_FILE).write_bytes(b"\xff" * 400), rf"{WEIGHTS_FILE} is damaged"),
    "bad json": (lambda f: (f / CONFIG_FILE).write_text("{"), rf"{CONFIG_FILE} is not a model configuration"),
    "a list": (lambda f: (f / CONFIG_FILE).write_text("[]"), rf"{CONFIG_FILE} is not a model configuration"),
    "another model": (lambda f: _edit(f, model="Other"), "describes a Other, not a VecSetVAE"),
    "newer": (lambda f: _edit(f, format_version=99), "format version 99"),
    "unknown field": (lambda f: _edit(f, config={"width": 1}), "has no field width"),
    "another depth": (lambda f: _edit(f, config=CONFIG.to_dict()), "0 missing, 12 extra, 0 misshapen"),
}


@pytest.mark.parametrize("case", BAD_DIRECTORIES)
def test_bad_directories_give_one_clear_error(model, tmp_path, case):
    model.save_pretrained(tmp_path)
    spoil, message = BAD_DIRECTORIES[case]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        VecSetVAE.from_pretrained(tmp_path)


def test_missing_directory(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        VecSetVAE.from_pretrained(tmp_path / "nowhere")


def test_unreachable_repository(monkeypatch):
    import huggingface_hub

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match="nobody/nothing is neither a directory nor a readable"):
        VecSetVAE.from_pretrained("nobody/nothing")


def test_repository_files_are_used(model, monkeypatch, tmp_path):
    import huggingface_hub

    model.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, revision: str(tmp_path / name))
    assert VecSetVAE.from_pretrained("owner/name").config == model.config


def test_metadata_is_kept(tmp_path):
    model = VecSetVAE(CONFIG)
    model.metadata = CheckpointMetadata("cc-by-4.0", "us", {"extent": 1.0, "near_sigmas": [0.01]}, 0.01)
    model.save_pretrained(tmp_path)
    loaded = VecSetVAE.from_pretrained(tmp_path)
    assert loaded.metadata == model.metadata
    assert VecSetVAE(CONFIG).metadata == CheckpointMetadata()
    assert loaded.check_preparation({"extent": 1.0, "near_sigmas": (0.01,), "other": 3}) == []
    with pytest.warns(
        PreparationWarning, match=r"VecSetVAE was trained .* extent: trained with 1\.0, got 0\.5"
    ):
        loaded.check_preparation({"extent": 0.5})


def test_a_directory_without_metadata_is_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / CONFIG_FILE
    description = json.loads(path.read_text())
    del description["metadata"]
    path.write_text(json.dumps(description))
    assert VecSetVAE.from_pretrained(tmp_path).metadata == CheckpointMetadata()


def test_signed_distances_serve_a_model_of_occupancy():
    metadata = CheckpointMetadata(preparation={"labels": "occupancy"})
    assert metadata.differences({"labels": "sdf"}) == []
    assert CheckpointMetadata(preparation={"labels": "sdf"}).differences({"labels": "occupancy"})


def test_push_to_hub(model, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, **options):
            files = {path.name: path.read_text("utf-8", "ignore") for path in Path(folder_path).iterdir()}
            calls.append((repo_id, files, options))
            return "https://address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(model, "metadata", CheckpointMetadata(license="mit"))
    assert model.push_to_hub("owner/name", private=True, revision="test") == "https://address"
    token, created, (repo_id, files, options) = calls
    assert token is None
    assert created == ("owner/name", {"private": True, "exist_ok": True})
    assert repo_id == "owner/name"
    assert sorted(files) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]
    assert "license: mit\n" in files["README.md"]
    assert options == {"revision": "test", "commit_message": "Upload model"}
