"""What autoencoders of sparse latents are shown of a mesh: points with normals, and voxels around them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry import Mesh, Normalization, normalize, sample_surface
from fastshape.models import TripoSFVAE

NUM_POINTS = 819_200
_CLEARANCE = 1e-6  # from the cube's border


class SparseInputs(NamedTuple):
    """What goes into `TripoSFVAE.encode`.

    Attributes:
        points: (N, 6) float32, places in [-0.5, 0.5] and unit normals of the faces.
        voxels: (V, 4) int32, 0, x, y, z, in lexicographic order.
        normalization: the way into that frame and back.
        mesh: the mesh in that frame, float32.
    """

    points: Tensor
    voxels: Tensor
    normalization: Normalization
    mesh: Mesh


def sparse_inputs(
    mesh: Mesh,
    model: TripoSFVAE,
    *,
    num_points: int = NUM_POINTS,
    generator: torch.Generator | None = None,
) -> SparseInputs:
    """Normalizes a mesh, draws points of its surface, and finds the voxels around it.

    The mesh is taken as it is: open surfaces stay open, inner ones stay, and normals are those of the faces
    as they are wound. The voxels are those that a face touches, and those that a point or one of its 26
    neighbors at 1 / (4 R - 1) along each axis lies in.

    Args:
        mesh: any mesh with a surface.
        model: its resolution is that of the voxels.
        num_points: N.
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: a mesh without surface.

    Reference: He et al. 2025, "SparseFlex" (TripoSF), the data of its code, which takes a library's voxels
    where this has `ops.voxelize_mesh`.
    """
    half = model.bounds
    normalized, normalization = normalize(mesh, extent=half, fit="box")
    limit = half - _CLEARANCE
    vertices = normalized.vertices.float().clamp(-limit, limit)
    normalized = Mesh(vertices, normalized.faces)
    samples = sample_surface(normalized, num_points, generator)
    points = torch.cat([samples.points.float(), samples.normals.float()], 1)
    size, box = model.config.resolution, (-half, half)
    touched = ops.voxelize_mesh(vertices, normalized.faces, size, box)
    near = ops.voxelize_points(points[:, :3], size, box, reach=2 * half / (4 * size - 1))
    voxels = torch.nn.functional.pad(torch.cat([touched, near]), (1, 0))
    return SparseInputs(points, ops.unique_voxels(voxels).coords, normalization, normalized)
