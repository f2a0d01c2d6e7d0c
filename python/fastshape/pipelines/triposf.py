"""TripoSF in the pipelines: a mesh as it is to latents of the voxels around it, and these to a mesh."""

from __future__ import annotations

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry import DistanceField, Mesh
from fastshape.models import TripoSFVAE
from fastshape.nn import SparseTensor
from fastshape.nn.sparseflex import SHAPE_CHANNELS
from fastshape.pipelines.latents import Encoded, LatentsError
from fastshape.pipelines.sparse_inputs import SparseInputs

SUBDIVISION = 4  # voxels of the surface to one of the latents, along an axis


def at_surface_resolution(model: TripoSFVAE, resolution: int | None) -> TripoSFVAE:
    """The model for a surface of `resolution` voxels along an axis; None leaves it as it is.

    Raises:
        ValueError: not a positive multiple of four.
    """
    if resolution is None:
        return model
    if resolution < 1 or resolution % SUBDIVISION:
        raise ValueError(
            f"`resolution` of {model.title} must be a positive multiple of {SUBDIVISION}, got {resolution}"
        )
    return model.at_resolution(resolution // SUBDIVISION)


def encode_triposf(
    model: TripoSFVAE, inputs: SparseInputs, sample: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents (1, M, C) and their voxels (M, 3) int32 on the CPU: the posterior's mode, or a draw."""
    device = next(model.parameters()).device
    posterior = model.encode(inputs.points.to(device), inputs.voxels.to(device))
    latents = posterior.sample(generator) if sample else posterior.mode()
    return latents.feats[None], latents.coords[:, 1:].cpu().contiguous()


def sparse_latents(encoded: Encoded, device: torch.device) -> SparseTensor:
    """What `TripoSFVAE.decode` takes.

    Raises:
        LatentsError: the latents have no voxels.
    """
    if encoded.coords is None:
        raise LatentsError(f"the latents of {encoded.weights} have no voxels, which {encoded.model} needs")
    coords = torch.nn.functional.pad(encoded.coords, (1, 0)).to(device)
    return SparseTensor(coords, encoded.latents[0][0].to(device, torch.float32), 1)


def sparseflex_of(mesh: Mesh, resolution: int) -> SparseTensor:
    """A mesh as TripoSF's decoder would say it at best: what `TripoSFVAE.extract` makes its surface of.

    The voxels that a face touches, with the signed distances of their corners, whose sign is that of the side
    that they are seen from; no deformation, no weights. An open surface ends where its voxels end.

    Args:
        mesh: in [-0.5, 0.5]^3, any mesh with a surface, its faces turned alike.
        resolution: voxels along an axis.

    Returns:
        53 channels of each voxel, one item.
    """
    vertices = mesh.vertices.float()
    voxels = ops.voxelize_mesh(vertices, mesh.faces, resolution, (-0.5, 0.5))
    corners = ops.voxel_corners(voxels, resolution=resolution)
    field = DistanceField(Mesh(vertices, mesh.faces), sign="front")
    distances = field((corners.coords / resolution - 0.5).contiguous())
    feats = torch.zeros(len(voxels), SHAPE_CHANNELS, device=voxels.device)
    feats[:, :8] = (distances[corners.cubes] * resolution + 1.0) / SUBDIVISION
    return SparseTensor(torch.nn.functional.pad(voxels, (1, 0)), feats, 1)
