"""Every model by the name of its class, and trained weights by a name, a folder or a hub id."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, overload

import torch

from fastshape.models.dora import DoraVAE
from fastshape.models.field import FieldAutoencoder
from fastshape.models.lagem import LaGeM
from fastshape.models.nextscale import NextScaleTransformer
from fastshape.models.pretrained import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    PretrainedModel,
    locate,
    looks_like_hub_id,
    read_description,
)
from fastshape.models.slat import SLatVAE
from fastshape.models.structure import SparseStructureVAE
from fastshape.models.triposf import TripoSFVAE
from fastshape.models.vat import VAT
from fastshape.models.vecset import VecSetVAE

ModelT = TypeVar("ModelT", bound=PretrainedModel)

MODELS: Mapping[str, type[FieldAutoencoder]] = MappingProxyType(
    {model.__name__: model for model in (VecSetVAE, DoraVAE, LaGeM, VAT)}
)
"""The autoencoders of fields."""

Autoencoder = FieldAutoencoder | SparseStructureVAE | TripoSFVAE
"""What the pipelines take from a mesh to a mesh."""

VOXEL_MODELS: Mapping[str, type[PretrainedModel]] = MappingProxyType(
    {model.__name__: model for model in (SparseStructureVAE, SLatVAE, TripoSFVAE)}
)
"""The autoencoders of voxels."""

GENERATORS: Mapping[str, type[PretrainedModel]] = MappingProxyType(
    {model.__name__: model for model in (NextScaleTransformer,)}
)
"""The models of tokens, which a tokenizer makes."""

OFFICIAL: Mapping[str, tuple[type[Autoencoder], int]] = MappingProxyType(
    {
        "vecset": (VecSetVAE, 1),
        "dora": (DoraVAE, 1),
        "lagem": (LaGeM, 1),
        "structure": (SparseStructureVAE, 2),
        "triposf": (TripoSFVAE, 1),
    }
)
"""The families that `load_official` takes, and the files that a model of each is in."""

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


@overload
def load(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu", revision: str | None = None
) -> PretrainedModel: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    kind: type[ModelT],
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> ModelT: ...
def load(
    path: str | os.PathLike[str],
    *,
    kind: type[PretrainedModel] = PretrainedModel,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> PretrainedModel:
    """Loads trained weights of any model, in evaluation mode; their `config.json` says which model it is.

    Args:
        path: the name of shipped weights (see `shipped`), else a folder that `save_pretrained` wrote, else a
            Hugging Face repository ("owner/name") of such files. A folder that has the name of shipped
            weights is "./name".
        kind: what it must be, e.g. `FieldAutoencoder`.
        device: where the model goes.
        revision: branch, tag or commit of a repository.

    Raises:
        CheckpointError: there is nothing of that name, what is there cannot be loaded, or is no `kind`.
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
    written = str(read_description(config_path)["model"])
    known = {**MODELS, **VOXEL_MODELS, **GENERATORS}
    if written not in known:
        raise CheckpointError(f"{config_path} describes a {written}; this release has {', '.join(known)}")
    if not issubclass(known[written], kind):
        fitting = ", ".join(other for other, model in known.items() if issubclass(model, kind))
        raise CheckpointError(f"{name} is a {written}, and one of {fitting} is needed here")
    model = known[written].from_pretrained(place, device=device, revision=revision)
    model.origin = name
    return model


def load_official(
    family: str, files: Sequence[str | os.PathLike[str]], *, device: str | torch.device = "cpu"
) -> Autoencoder:
    """Loads a checkpoint of an official repository, in evaluation mode.

    Args:
        family: a name in `OFFICIAL`.
        files: the checkpoint; of "structure" the encoder's, then the decoder's.
        device: where the model goes.

    Raises:
        CheckpointError: no such family, another number of files, or a file that cannot be loaded.
    """
    if family not in OFFICIAL:
        raise CheckpointError(f"there is no family {family!r} of official checkpoints; {', '.join(OFFICIAL)}")
    kind, count = OFFICIAL[family]
    if len(files) != count:
        wanted = "one file" if count == 1 else "two files, the encoder's and the decoder's"
        raise CheckpointError(f"a checkpoint of {family} is {wanted}, got {len(files)}")
    from_official: Any = kind.from_official  # type: ignore[union-attr]
    model: Autoencoder = from_official(*files)
    model.origin = os.fspath(files[0])
    return model.to(device)
