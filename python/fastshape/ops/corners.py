"""The corners of sparse voxels: which there are, and the mean of what the voxels say of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define

_MAX_AXIS_BITS = 20  # kMaxAxisBits in csrc/isosurface/voxel_corners.h


class VoxelCorners(NamedTuple):
    """The corners of a list of voxels, as :func:`voxel_corners` gives them."""

    coords: Tensor
    cubes: Tensor
    keys: Tensor
    axis_bits: int


def _bytes(size: int, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


# ---- voxel_corners -----------------------------------------------------------------------------------------


def _new_corners(coords: Tensor, num_corners: Any) -> tuple[Tensor, Tensor, Tensor]:
    width = coords.shape[1] if coords.ndim == 2 else 3
    return (
        coords.new_empty(num_corners, width),
        coords.new_empty(coords.shape[0] if coords.ndim else 0, 8, dtype=torch.int64),
        coords.new_empty(num_corners, dtype=torch.int64),
    )


def _voxel_corners(coords: Tensor, axis_bits: int) -> tuple[Tensor, Tensor, Tensor]:
    module = backend()
    num_voxels = coords.shape[0] if coords.ndim else 0
    workspace = _bytes(module.voxel_corners_workspace_bytes(num_voxels, coords.is_cuda), coords)
    found = coords.new_empty(2, dtype=torch.int64)
    module.voxel_corners_count(coords, axis_bits, workspace, found)
    num_corners, bad_voxel = found.tolist()  # the sync
    if bad_voxel < num_voxels:
        shapes = f", and a shape in [0, {2 ** (63 - 3 * axis_bits)})" if coords.shape[1] == 4 else ""
        raise ValueError(
            f"`coords` must lie in [0, {2**axis_bits - 3}]{shapes}, "
            f"got {coords[bad_voxel].tolist()} in row {bad_voxel}"
        )
    corners, index, keys = _new_corners(coords, num_corners)
    module.voxel_corners_fill(coords, axis_bits, workspace, index, keys, corners)
    return corners, index, keys


_voxel_corners_op = define(
    "voxel_corners(Tensor coords, int axis_bits) -> (Tensor, Tensor, Tensor)",
    implementation=_voxel_corners,
    fake=lambda coords, axis_bits: _new_corners(coords, torch.library.get_ctx().new_dynamic_size()),
)


def voxel_corners(coords: Tensor, *, resolution: int = 2**_MAX_AXIS_BITS - 2) -> VoxelCorners:
    """The corners of voxels, each once however many voxels share it.

    Args:
        coords: (N, 3) int32, contiguous: x, y, z, each in [0, resolution); or (N, 4) with the shape's number
            in front, and corners of different shapes apart. In any order; a voxel may be there twice. N below
            2^29.
        resolution: how many voxels there are along an axis, at most 1048574. The number of a shape must have
            63 - 3 bits left beside it, bits being those of resolution + 1: eight shapes with the default,
            2^30 with a resolution of 1024.

    Returns:
        ``coords`` (P, 3) or (P, 4) int32: the corners, in the order of (shape, x, y, z). ``cubes`` (N, 8)
        int64: the corner of each voxel at its (i & 1, i >> 1 & 1, i >> 2 & 1), i = 0..7. ``keys`` (P,) int64,
        ascending: shape, x, y and z behind each other in ``axis_bits`` bits each.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, coordinates out of range.

    Gradient: none.

    Device: CPU and CUDA with equal results; one sync, as the number of corners depends on the voxels.

    Reference: our own; in place of unique rows one sort of integers, on the CPU of the voxels only.
    """
    if not 1 <= resolution <= 2**_MAX_AXIS_BITS - 2:
        raise ValueError(f"`resolution` must lie in [1, {2**_MAX_AXIS_BITS - 2}], got {resolution}")
    axis_bits = (resolution + 1).bit_length()
    corners, cubes, keys = _voxel_corners_op(coords, axis_bits)
    return VoxelCorners(corners, cubes, keys, axis_bits)


def corner_neighbors(corners: VoxelCorners) -> Tensor:
    """The next corner along each axis.

    Args:
        corners: of :func:`voxel_corners`.

    Returns:
        (P, 3) int64: the corner one further along x, y and z, -1 where it is no corner of a voxel.

    Gradient: none.

    Device: CPU and CUDA; no sync.
    """
    keys, bits = corners.keys, corners.axis_bits
    wanted = keys[:, None] + torch.tensor([1 << 2 * bits, 1 << bits, 1], device=keys.device)
    found = torch.searchsorted(keys, wanted).clamp_max(keys.shape[0] - 1)
    return torch.where(keys[found] == wanted, found, -1)


# ---- corner_mean -------------------------------------------------------------------------------------------


def _new_mean(values: Tensor, index: Tensor, num_corners: Any) -> tuple[Tensor, Tensor]:
    width = values.shape[2] if values.ndim == 3 else 0
    return values.new_empty(num_corners, width), values.new_empty(num_corners, dtype=torch.int64)


def _corner_mean(values: Tensor, index: Tensor, num_corners: int) -> tuple[Tensor, Tensor]:
    module, workspace = backend(), None
    mean, counts = _new_mean(values, index, num_corners)
    if values.is_cuda or module.emulated:
        num_voxels = values.shape[0] if values.ndim else 0
        workspace = _bytes(module.corner_mean_workspace_bytes(num_voxels), values)
    module.corner_mean(values, index, workspace, mean, counts)
    return mean, counts


_corner_mean_op = define(
    "corner_mean(Tensor values, Tensor index, SymInt num_corners) -> (Tensor, Tensor)",
    implementation=_corner_mean,
    fake=_new_mean,
)


class _CornerMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, num_corners: int) -> Tensor:
        mean, counts = _corner_mean_op(values, index, num_corners)
        ctx.save_for_backward(index, counts)
        return mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_mean: Tensor) -> tuple[Tensor | None, ...]:
        index, counts = ctx.saved_tensors
        shares = grad_mean / counts.clamp_min(1)[:, None]
        return shares.index_select(0, index.flatten()).view(*index.shape, -1), None, None


def corner_mean(values: Tensor, corners: VoxelCorners) -> Tensor:
    """The mean of what voxels say of each of their common corners.

    Args:
        values: (N, 8, C), float32 or float64, contiguous: C numbers of each voxel for each of its corners.
        corners: of :func:`voxel_corners`, P of them.

    Returns:
        (P, C), dtype of ``values``, summed in the order of the voxels.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: with respect to ``values``, once.

    Device: CPU and CUDA with equal results, the same for any number of threads; no sync.

    Reference: He et al. 2025, "SparseFlex" (TripoSF), and Xiang et al. 2024 (TRELLIS): the heads of their
    decoders. How far the voxels are from the mean is :func:`fastshape.losses.corner_consistency_loss`.
    """
    num_corners = corners.keys.shape[0]
    if torch.is_grad_enabled() and values.requires_grad:
        return _CornerMean.apply(values, corners.cubes, num_corners)
    return _corner_mean_op(values, corners.cubes, num_corners)[0]
