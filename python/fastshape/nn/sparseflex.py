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
    closed: bool = False,
    training: bool = False,
    face_order: str = "trellis",
) -> SparseFlexSurface:
    """The surface within the voxels of one shape; where there is no voxel it ends, unless it is `closed`.

    A corner's values are the means over the voxels that have it. In units of a voxel a corner moves by half
    the tanh of its deformation along each axis.

    Args:
        x: of one item, 53 channels: distance of each of 8 corners, (i & 1, i >> 1 & 1, i >> 2 & 1); their
            deformations, 8 x 3; weights beta (12), alpha (8), gamma; or 101, with 8 x 6 colors. A voxel may
            be there twice: its corners count twice, and of the weights the last ones hold.
        resolution: voxels along an axis of the whole grid.
        bounds: half side of the cube that the grid fills.
        scaled: distances are in units of four voxels, as TripoSF's; False: as TRELLIS has them.
        closed: what is no voxel is outside, as TRELLIS has it: distance 1 at its corners, no deformation, raw
            weights of zero. A surface that would end is closed there, and a thin shell has two skins.
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
    raw = feats[:, 32:SHAPE_CHANNELS]
    values, cubes, points, weights = mean, corners.cubes, corners.coords, raw
    if closed:
        values, cubes, points, weights = _surrounded(x, resolution, corners, mean, raw)
    reach = (1.0 - 1e-8) * bounds / resolution
    places = points.to(feats.dtype) * (2.0 * bounds / resolution) - bounds
    surface = ops.flexicubes(
        values[:, 0].contiguous(),
        cubes=cubes,
        positions=(places + reach * values[:, 1:4].tanh()).contiguous(),
        features=values[:, 4:].sigmoid().contiguous() if len(parts) == 3 else None,
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
        raw,
    )


def _surrounded(
    x: SparseTensor, resolution: int, corners: ops.VoxelCorners, mean: Tensor, raw: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, cubes, corners and weights with the voxels' neighbors in the grid, which are outside.

    No other cube can be crossed: all of its corners are outside.
    """
    voxels = x.coords[:, 1:].contiguous()
    around = ops.dilate_coords(voxels, shape=(resolution,) * 3)
    wider = ops.voxel_corners(around, resolution=resolution)
    values = mean.new_zeros(len(wider.keys), mean.shape[1])
    values[:, 0] = 1.0
    values = values.index_put((torch.searchsorted(wider.keys, corners.keys),), mean)
    rows = ops.lookup_voxels(_with_item(around), _with_item(voxels))
    weights = raw.new_zeros(len(around), raw.shape[1]).index_put((rows,), raw)
    return values, wider.cubes, wider.coords, weights


def _with_item(voxels: Tensor) -> Tensor:
    return torch.nn.functional.pad(voxels, (1, 0))
