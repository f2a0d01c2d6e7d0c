"""Structure autoencoders in the pipelines: a mesh's voxels, and a latent volume as tokens."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry import Mesh, Normalization, PrepareSpec, normalize
from fastshape.models import CheckpointError, SparseStructureVAE


def structure_preparation(model: SparseStructureVAE) -> PrepareSpec:
    """How a structure model's voxels are made: as its metadata says, else as the preset "structure".

    Raises:
        CheckpointError: the metadata says something that cannot be.
    """
    said = model.metadata.preparation or {}
    fields = {name: said[name] for name in ("normalization", "extent") if name in said}
    try:
        spec = PrepareSpec.preset("structure", voxels=model.config.resolution)
        return dataclasses.replace(spec, **fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{model.title}: its metadata holds a bad preparation: {error}") from error


def structure_inputs(mesh: Mesh, model: SparseStructureVAE) -> tuple[Tensor, Normalization, Mesh]:
    """What a structure model encodes of a mesh.

    Args:
        mesh: any mesh with a surface, open or closed; it is taken as it is.
        model: it may state its preparation in its metadata.

    Returns:
        The voxels (N, 3) that the mesh touches, the way into the normalized frame, the mesh in that frame.

    Raises:
        ValueError: a mesh without surface.
        CheckpointError: see `structure_preparation`.
    """
    spec = structure_preparation(model)
    normalized, normalization = normalize(mesh, extent=spec.extent, fit=spec.normalization)  # type: ignore[call-overload]
    voxels = ops.voxelize_mesh(
        normalized.vertices, normalized.faces, model.config.resolution, (-spec.extent, spec.extent)
    )
    model.check_preparation(spec.to_dict())
    return voxels, normalization, normalized


def structure_mesh(model: SparseStructureVAE, logits: Tensor) -> Mesh:
    """The surface around occupied voxels, in the normalized frame.

    Raises:
        NoSurfaceError: no voxel is occupied.
    """
    mesh = model.extract(logits)
    return Mesh(mesh.vertices * (structure_preparation(model).extent / model.bounds), mesh.faces)


def volume_to_tokens(latents: Tensor) -> Tensor:
    """(1, C, r, r, r) -> (1, r^3, C), x slowest."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def tokens_to_volume(tokens: Tensor) -> Tensor:
    """The inverse of `volume_to_tokens`.

    Raises:
        ValueError: a number of tokens that no cube has.
    """
    side = round(tokens.shape[1] ** (1 / 3))
    if side**3 != tokens.shape[1]:
        raise ValueError(f"the latents must be a cube of tokens, got {tokens.shape[1]}")
    return tokens.transpose(1, 2).unflatten(2, (side, side, side))


def voxel_iou(logits: Tensor, voxels: Tensor, model: SparseStructureVAE) -> float:
    """Intersection over union of the occupied voxels of logits (1, 1, R, R, R) and of a list (N, 3)."""
    truth = model.occupancy([voxels], resolution=logits.shape[-1]) > 0
    occupied = logits > 0
    union = int((truth | occupied).sum())
    return int((truth & occupied).sum()) / union if union else 1.0


def structure_tokens(model: SparseStructureVAE) -> int:
    """How many tokens its latents are."""
    return (model.config.resolution // model.config.factor) ** 3


def encode_structure(
    model: SparseStructureVAE, voxels: Tensor, sample: bool, generator: torch.Generator
) -> Tensor:
    """Voxels (N, 3) to latent tokens (1, r^3, C): the posterior's mode, or a draw."""
    posterior = model.encode(model.occupancy([voxels]))
    return volume_to_tokens(posterior.sample(generator) if sample else posterior.mode())
