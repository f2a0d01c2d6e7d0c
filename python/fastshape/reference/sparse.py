"""Sparse voxels: which rows are neighbors, sums over rows, and convolutions as one product an offset.

Voxels are rows (batch, x, y, z) of integers. Offset k of a kernel of n voxels along an axis is
``(k // n**2, k // n % n, k % n)``: x is the slowest axis.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lookup_voxels(coords: Tensor, queries: Tensor) -> Tensor:
    """(M,) int64: the first row of ``coords`` (N, 4) that equals the query (M, 4), -1 where none does."""
    rows: dict[tuple[int, ...], int] = {}
    for row, voxel in enumerate(coords.tolist()):
        rows.setdefault(tuple(voxel), row)
    found = [rows.get(tuple(voxel), -1) for voxel in queries.tolist()]
    return torch.tensor(found, dtype=torch.int64, device=coords.device)


def kernel_offsets(kernel_size: int, dilation: int = 1) -> Tensor:
    """(K, 3) int64, around the middle for an odd size, from 0 for an even one."""
    steps = torch.arange(kernel_size) - (kernel_size - 1) // 2
    return torch.cartesian_prod(steps, steps, steps).view(-1, 3) * dilation


def neighbor_table(
    coords: Tensor, queries: Tensor | None = None, *, kernel_size: int = 3, stride: int = 1, dilation: int = 1
) -> Tensor:
    """(M, K) int32: the row of voxel ``stride * query + offset`` of the same batch, -1 where none is."""
    centers = (coords if queries is None else queries).long()
    offsets = kernel_offsets(kernel_size, dilation).to(coords.device)
    places = centers[:, None, 1:] * stride + offsets
    batch = centers[:, None, :1].expand(-1, len(offsets), -1)
    wanted = torch.cat([batch, places], 2).flatten(0, 1)
    return lookup_voxels(coords, wanted).view(-1, len(offsets)).int()


def invert_table(rows: Tensor, num_rows: int) -> Tensor:
    """(num_rows, K): where ``rows`` (M, K) has entry n in column k, the inverse has m at (n, k); else -1."""
    inverse = rows.new_full((num_rows, rows.shape[1]), -1)
    m, k = (rows >= 0).nonzero(as_tuple=True)
    inverse[rows[m, k].long(), k] = m.to(rows.dtype)
    return inverse


def unique_voxels(coords: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows in ascending order, and for each row of ``coords`` which of them it is."""
    return torch.unique(coords, dim=0, return_inverse=True)


def downsample_voxels(coords: Tensor, factor: int = 2) -> tuple[Tensor, Tensor]:
    """The distinct voxels of a grid ``factor`` times as coarse, and which of them each row lies in."""
    coarse = torch.cat([coords[:, :1], coords[:, 1:].div(factor, rounding_mode="floor")], 1)
    return unique_voxels(coarse)


def subdivide_voxels(coords: Tensor) -> Tensor:
    """(8 N, 4): the children of each voxel behind each other, 000, 001, 010, ..., 111 in (x, y, z)."""
    children = torch.cartesian_prod(*3 * [torch.arange(2)]).to(coords)
    children = torch.nn.functional.pad(children, (1, 0))
    scale = torch.tensor([1, 2, 2, 2]).to(coords)
    return (coords[:, None] * scale + children).flatten(0, 1)


def segment_reduce(values: Tensor, index: Tensor, num_segments: int, mode: str = "mean") -> Tensor:
    """(S, C): of the rows n with ``index[n] == s`` the "sum", "mean" or "max", zero where there are none.

    "mean_with_zero" counts one more row, of zeros. Rows whose index is not in [0, S) are left out.
    """
    result = values.new_zeros(num_segments, values.shape[1])
    for segment in range(num_segments):
        rows = values[index == segment]
        if len(rows) == 0:
            continue
        if mode == "max":
            result[segment] = rows.amax(0)
        else:
            counted = {"sum": 1, "mean": len(rows), "mean_with_zero": len(rows) + 1}[mode]
            result[segment] = rows.sum(0) / counted
    return result


def gather_segments(values: Tensor, index: Tensor) -> Tensor:
    """(N, C): row ``index[n]`` of ``values`` (S, C), zeros where there is no such row."""
    inside = (index >= 0) & (index < len(values))
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return padded[torch.where(inside, index, len(values))]


def sparse_conv3d(feats: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    """(M, Co): ``bias + sum over k of weight[:, k] @ feats[rows[:, k]]`` over the entries that are not -1.

    ``feats`` (N, Ci), ``weight`` (Co, n, n, n, Ci), ``bias`` (Co,), ``rows`` (M, n^3).
    """
    kernels = weight.flatten(1, 3)
    result = feats.new_zeros(rows.shape[0], weight.shape[0])
    for k in range(rows.shape[1]):
        result = result + gather_segments(feats, rows[:, k].long()) @ kernels[:, k].T
    return result if bias is None else result + bias
