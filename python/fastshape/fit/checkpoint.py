"""Where a fit stands, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastshape.geometry import Mesh
from fastshape.runtime.files import CheckpointError, changes, read_safetensors, write_safetensors

_FORMAT_VERSION = 1


def save(
    path: Path, tensors: Mapping[str, Tensor], *, config: dict[str, Any], mesh: str, numbers: dict[str, float]
) -> None:
    """Writes the state, whole or not at all.

    Args:
        path: the file.
        tensors: of the state.
        config: of the fit; going on with another one is refused.
        mesh: the fingerprint of what is fitted.
        numbers: of the state.
    """
    description = {"format_version": _FORMAT_VERSION, "config": config, "mesh": mesh, "numbers": numbers}
    write_safetensors(path, tensors, {"fastshape": json.dumps(description)})


def load(path: Path, *, config: dict[str, Any], mesh: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the numbers of a state.

    Raises:
        CheckpointError: the file is damaged, or belongs to another mesh or configuration.
    """
    tensors, metadata = read_safetensors(path)
    try:
        found: dict[str, Any] = json.loads(metadata["fastshape"])
        version, saved, numbers = found["format_version"], found["config"], found["numbers"]
        same_mesh = found["mesh"] == mesh
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a fit: {error!r}") from error
    if version != _FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this release reads {_FORMAT_VERSION}")
    changed = ", ".join(changes(saved, json.loads(json.dumps(config))))
    if changed or not same_mesh:
        whose = f"with another configuration: {changed}" if changed else "of another mesh"
        raise CheckpointError(
            f"{path} belongs to a fit {whose}; use another file, or resume=False to start again"
        )
    return tensors, numbers


def fingerprint(mesh: Mesh) -> str:
    """Of a mesh's bytes."""
    digest = hashlib.sha256()
    for tensor in (mesh.vertices, mesh.faces):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
