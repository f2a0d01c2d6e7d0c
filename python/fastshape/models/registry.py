"""Every model by the name of its class, and trained weights by a name, a folder or a hub id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from fastshape.models.dora import DoraVAE
from fastshape.models.field import FieldAutoencoder
from fastshape.models.lagem import LaGeM
from fastshape.models.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    locate,
    looks_like_hub_id,
    read_description,
)
from fastshape.models.vecset import VecSetVAE

MODELS: Mapping[str, type[FieldAutoencoder]] = MappingProxyType(
    {model.__name__: model for model in (VecSetVAE, DoraVAE, LaGeM)}
)
WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "weights"


def shipped() -> dict[str, Path]:
    """The trained weights that come with the library: name -> folder, sorted; empty where there are none."""
    if not WEIGHTS_FOLDER.is_dir():
        return {}
    return {
        folder.name: folder
        for folder in sorted(WEIGHTS_FOLDER.iterdir())
        if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
    }


def load(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu", revision: str | None = None
) -> FieldAutoencoder:
    """Loads trained weights of any model, in evaluation mode; their `config.json` says which model it is.

    Args:
        path: the name of shipped weights (see `shipped`), else a folder that `save_pretrained` wrote, else a
            Hugging Face repository ("owner/name") of such files. A folder that has the name of shipped
            weights is "./name".
        device: where the model goes.
        revision: branch, tag or commit of a repository.

    Raises:
        CheckpointError: there is nothing of that name, or what is there cannot be loaded.
    """
    name = os.fspath(path)
    folder = shipped().get(name)
    if folder is None and not Path(name).is_dir() and not looks_like_hub_id(path):
        listed = ", ".join(shipped()) or "none in this installation"
        raise CheckpointError(
            f"{name}: no such folder, no hub id (owner/name), and none of the shipped models ({listed})"
        )
    place = name if folder is None else folder
    config_path, _ = locate(place, revision)
    kind = str(read_description(config_path)["model"])
    if kind not in MODELS:
        raise CheckpointError(f"{config_path} describes a {kind}; this release has {', '.join(MODELS)}")
    model = MODELS[kind].from_pretrained(place, device=device, revision=revision)
    model.origin = name
    return model
