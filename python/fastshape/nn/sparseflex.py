"""SparseFlex: signed distances, deformations and weights of sparse voxels to a surface."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastshape import ops
from fastshape.nn.sparse_tensor import SparseTensor

SHAPE_CHANNELS = 53  # 8 distances, 8 deformations of 3, and 21 weights
COLOR_CHANNELS = 48  # 8 corners of 6


class SparseFlexSurface(NamedTuple):
    """A surface of sparse voxels, and what its regularizers are of.

    Attributes:
        vertices: (V, 3), in [-bounds, bounds].
        faces: (F, 3) int64, counterclockwise seen from outside.
        colors: (V, 6) in [0, 1], or None.
        deviation: of FlexiCubes, for `losses.deviation_loss`.
        said: (N, 8, C) what each voxel says of its corners: distance, deformation and, if any, colors.
        mean: (P, C) the means over the voxels of each corner; said, mean and `cubes` are what
            `losses.corner_consistency_loss` takes.
        cubes: (N, 8) the voxels' corners.
        corners: (P, 3) integer coordinates of the corners.
        weights: (N, 21) raw: beta, alpha, gamma.
    """

    vertices: Tensor
    faces: Tensor
    colors: Tensor | None
    deviation: Tensor
    said: Tensor
    mean: Tensor
    cubes: Tensor
    corners: Tensor
    weights: Tensor


def sparseflex_surface(
    x: SparseTensor,
    resolution: int,
    *,
    bounds: float = 0.5,
    scaled: bool = True,
    training: bool = False,
    face_order: str = "trellis",
) -> SparseFlexSurface:
    """The surface within the voxels of one shape; where there is no voxel it ends.

    A corner's values are the means over the voxels that have it. In units of a voxel a corner moves by half
    the tanh of its deformation along each axis.

    Args:
        x: of one item, 53 channels: distance of each of 8 corners, (i & 1, i >> 1 & 1, i >> 2 & 1); their
            deformations, 8 x 3; weights beta (12), alpha (8), gamma; or 101, with 8 x 6 colors. A voxel may
            be there twice: its corners count twice, and of the weights the last ones hold.
        resolution: voxels along an axis of the whole grid.
        bounds: half side of the cube that the grid fills.
        scaled: distances are in units of a quarter of the grid, as TripoSF's; False: as TRELLIS has them.
        training: as in `ops.flexicubes`.
        face_order: as in `ops.flexicubes`.

    Raises:
        ValueError: several items, or another number of channels.

    Reference: He et al. 2025, "SparseFlex" (TripoSF), section 3.2, and the head of TRELLIS' mesh decoder.
    """
    if x.batch_size != 1:
        raise ValueError(f"`x` must be of one item, got {x.batch_size}")
    if x.num_channels not in (SHAPE_CHANNELS, SHAPE_CHANNELS + COLOR_CHANNELS):
        raise ValueError(
            f"`x` must have {SHAPE_CHANNELS} channels, or {SHAPE_CHANNELS + COLOR_CHANNELS} with colors, "
            f"got {x.num_channels}"
        )
    feats = x.feats if x.dtype == torch.float64 else x.feats.float()
    corners = ops.voxel_corners(x.coords[:, 1:].contiguous(), resolution=resolution)
    parts = [(feats[:, :8] * (4.0 / resolution if scaled else 1.0) - 1.0 / resolution)[..., None]]
    parts.append(feats[:, 8:32].unflatten(1, (8, 3)))
    if x.num_channels > SHAPE_CHANNELS:
        parts.append(feats[:, SHAPE_CHANNELS:].unflatten(1, (8, 6)))
    said = torch.cat(parts, 2)  # (N, 8, 4 or 10)
    mean = ops.corner_mean(said, corners)
    weights = feats[:, 32:SHAPE_CHANNELS]
    reach = (1.0 - 1e-8) * bounds / resolution
    places = corners.coords.to(feats.dtype) * (2.0 * bounds / resolution) - bounds
    surface = ops.flexicubes(
        mean[:, 0].contiguous(),
        cubes=corners.cubes,
        positions=(places + reach * mean[:, 1:4].tanh()).contiguous(),
        features=mean[:, 4:].sigmoid().contiguous() if len(parts) == 3 else None,
        beta=weights[:, :12],
        alpha=weights[:, 12:20],
        gamma=weights[:, 20],
        training=training,
        face_order=face_order,
    )
    return SparseFlexSurface(
        surface.vertices,
        surface.faces,
        surface.features,
        surface.deviation,
        said,
        mean,
        corners.cubes,
        corners.coords,
        weights,
    )
