"""Lists of sparse voxels: lookups, neighbors, coarser and finer grids.

A voxel is a row (batch, x, y, z) of integers, and a list of voxels may have them in any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define
from fastshape.ops.segments import Segments

# ---- neighbor_table ----------------------------------------------------------------------------------------


class NeighborTable(NamedTuple):
    """Which rows a convolution sums, as :func:`neighbor_table` gives it."""

    rows: Tensor
    inverse: Tensor | None = None
    order: Tensor | None = None
    inverse_order: Tensor | None = None

    def transposed(self) -> NeighborTable:
        """The table of the inverse convolution, from the queries back to the voxels.

        ``sparse_conv3d(feats, weight, bias, table.transposed())`` takes features of the M queries to the N
        voxels: voxel n gets ``weight[:, k] @ feats[m]`` for every ``table.rows[m, k] == n``, as spconv's
        ``SparseInverseConv3d`` and torch's ``conv_transpose3d``.
        """
        if self.inverse is None:
            return NeighborTable(self.rows.flip(1), None, self.order)
        return NeighborTable(self.inverse, self.rows, self.inverse_order, self.order)


def _hash(coords: Tensor, name: str, *, distinct: bool) -> Tensor:
    """The hash map of ``coords``; a voxel that is there twice is an error where they must be distinct."""
    module = backend()
    num_voxels = coords.shape[0] if isinstance(coords, Tensor) and coords.ndim else 0
    slots = torch.empty(module.voxel_hash_slots(num_voxels), dtype=torch.int32, device=coords.device)
    duplicate = torch.empty(1, dtype=torch.int64, device=coords.device)
    module.voxel_hash(coords, slots, duplicate)
    if distinct:
        row = int(duplicate)  # the sync
        if row >= 0:
            raise ValueError(
                f"`{name}` must have no voxel twice, got {coords[row].tolist()} again in row {row}; see "
                "unique_voxels"
            )
    return slots


def _table_rows(queries: Tensor, kernel_size: int) -> Tensor:
    return queries.new_empty(queries.shape[0] if queries.ndim else 0, kernel_size**3, dtype=torch.int32)


def _is_tiled(rows: Tensor) -> bool:
    """Whether the kernels sum tiles of rows, which should have neighbors at the same offsets."""
    return rows.is_cuda or backend().emulated


def _new_table(
    coords: Tensor, queries: Tensor | None, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _table_rows(coords if queries is None else queries, kernel_size)
    inverse = rows.new_empty(0 if queries is None else coords.shape[0], rows.shape[1])
    orders = [rows.new_empty(table.shape[0] if _is_tiled(rows) else 0) for table in (rows, inverse)]
    return rows, inverse, orders[0], orders[1]


def _order_rows(rows: Tensor, order: Tensor) -> None:
    module = backend()
    size = module.order_rows_workspace_bytes(rows.shape[0])
    workspace = torch.empty(size, dtype=torch.uint8, device=rows.device)
    module.order_rows(rows, workspace, order)


def _neighbor_table(
    coords: Tensor, queries: Tensor | None, kernel_size: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module = backend()
    slots = _hash(coords, "coords", distinct=True)
    centers = coords if queries is None else queries
    rows, inverse, order, inverse_order = _new_table(coords, queries, kernel_size, stride, dilation)
    module.neighbor_table(coords, slots, centers, kernel_size, stride, dilation, rows)
    if queries is not None:
        _hash(queries, "queries", distinct=True)
        module.invert_table(rows, inverse)
    if _is_tiled(rows):
        _order_rows(rows, order)
        _order_rows(inverse, inverse_order)
    return rows, inverse, order, inverse_order


_neighbor_table_op = define(
    "neighbor_table(Tensor coords, Tensor? queries, int kernel_size, int stride, int dilation)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_neighbor_table,
    fake=_new_table,
)


def neighbor_table(
    coords: Tensor, queries: Tensor | None = None, *, kernel_size: int = 3, stride: int = 1, dilation: int = 1
) -> NeighborTable:
    """Which voxels a convolution over sparse voxels sums, for :func:`sparse_conv3d`.

    Offset k of a kernel of n voxels an axis is ``(k // n**2, k // n % n, k % n) - (n - 1) // 2``, times the
    dilation: around the middle for 3, from 0 for 2. Build a table once for all layers of one list of voxels.

    Args:
        coords: (N, 4) int32 or int64, contiguous: the voxels (batch, x, y, z) that features come from, in any
            order, none twice. N below 2^31.
        queries: (M, 4), dtype of ``coords``: the voxels that features go to, none twice; None for ``coords``
            themselves, a submanifold convolution. For a strided one those of :func:`downsample_voxels`.
        kernel_size: 1, 2 or 3 along each axis.
        stride: what the coordinates of a query are multiplied with; not for a batch.
        dilation: what an offset is multiplied with.

    Returns:
        ``rows`` (M, kernel_size^3) int32: the row of voxel ``stride * query + offset`` in ``coords``, or -1.
        ``inverse`` (N, kernel_size^3) int32: m at (n, k) where ``rows`` has n at (m, k), else -1; None
        without ``queries``, where it is ``rows`` with the columns reversed. ``order`` and ``inverse_order``
        are the order in which CUDA takes the rows.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, a voxel twice, a number that is not positive,
            or an even kernel without ``queries``.

    Gradient: none.

    Device: CPU and CUDA with equal results; one sync for each list of voxels, to tell of a voxel that is
    there twice. Beside the outputs 8 to 16 bytes a voxel.

    Reference: our own; the tables are those of Yan et al. 2018 (SECOND, spconv). Voxels are compared
    themselves, not as keys of so many bits, and those of a block share a cache line of the hash map.
    """
    if not 1 <= kernel_size <= 3:
        raise ValueError(f"`kernel_size` must be 1, 2 or 3, got {kernel_size}")
    if queries is None and (kernel_size == 2 or stride != 1):
        raise ValueError(
            "without `queries`, `kernel_size` must be odd and `stride` 1, "
            f"got a kernel of {kernel_size} and a stride of {stride}"
        )
    rows, inverse, order, inverse_order = _neighbor_table_op(coords, queries, kernel_size, stride, dilation)
    if queries is None:
        return NeighborTable(rows, None, order)
    return NeighborTable(rows, inverse, order, inverse_order)


# ---- lookup_voxels -----------------------------------------------------------------------------------------


def _lookup_voxels(coords: Tensor, queries: Tensor) -> Tensor:
    slots = _hash(coords, "coords", distinct=False)
    rows = _table_rows(queries, 1)
    backend().neighbor_table(coords, slots, queries, 1, 1, 1, rows)
    return rows.view(-1).long()


_lookup_voxels_op = define(
    "lookup_voxels(Tensor coords, Tensor queries) -> Tensor",
    implementation=_lookup_voxels,
    fake=lambda coords, queries: queries.new_empty(queries.shape[0], dtype=torch.int64),
)


def lookup_voxels(coords: Tensor, queries: Tensor) -> Tensor:
    """Where voxels are in a list.

    Args:
        coords: (N, 4) int32 or int64, contiguous, in any order: (batch, x, y, z). N below 2^31.
        queries: (M, 4), dtype of ``coords``, contiguous.

    Returns:
        (M,) int64: the row in ``coords``, the first of equal ones; -1 where there is none.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.

    Reference: our own; see :func:`neighbor_table`.
    """
    return _lookup_voxels_op(coords, queries)


# ---- unique_voxels, downsample_voxels ----------------------------------------------------------------------


class UniqueVoxels(NamedTuple):
    """Distinct voxels, and the rows of each, as :func:`unique_voxels` gives them."""

    coords: Tensor
    segments: Segments


def _key_bits(coords: Tensor, factor: int) -> list[int]:
    """How many bits batch, x, y and z take in a key."""
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.numel() == 0 or coords.is_floating_point():
        return [0, 0, 0, 0]  # nothing to count, or an error of the kernel's to tell
    low, high = torch.stack(coords.aminmax(dim=0)).tolist()  # the sync
    bits = [high[0].bit_length(), *((c // factor).bit_length() for c in high[1:])]
    if min(low) < 0 or sum(bits) > 64:
        raise ValueError(
            "`coords` must not be negative, and the bits of the largest ones at most 64 together, "
            f"got from {low} to {high}"
        )
    return bits


def _new_unique(coords: Tensor, num_unique: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        coords.new_empty(num_unique, 4),
        coords.new_empty(coords.shape[0], dtype=torch.int64),
        coords.new_empty(coords.shape[0], dtype=torch.int32),
        coords.new_empty(num_unique + 1, dtype=torch.int64),
    )


def _unique_voxels(coords: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module, workspace = backend(), None
    num_voxels = coords.shape[0] if coords.ndim else 0
    index = coords.new_empty(num_voxels, dtype=torch.int64)
    order = coords.new_empty(num_voxels, dtype=torch.int32)
    found = coords.new_empty(1, dtype=torch.int64)
    if coords.is_cuda or module.emulated:
        size = module.unique_voxels_workspace_bytes(num_voxels)
        workspace = torch.empty(size, dtype=torch.uint8, device=coords.device)
    module.unique_voxels_count(coords, factor, *_key_bits(coords, factor), workspace, index, order, found)
    num_unique = int(found)  # the sync
    voxels = coords.new_empty(num_unique, 4)
    offsets = coords.new_empty(num_unique + 1, dtype=torch.int64)
    module.unique_voxels_fill(coords, factor, index, order, voxels, offsets)
    return voxels, index, order, offsets


_unique_voxels_op = define(
    "unique_voxels(Tensor coords, int factor) -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_unique_voxels,
    fake=lambda coords, factor: _new_unique(coords, torch.library.get_ctx().new_dynamic_size()),
)


def unique_voxels(coords: Tensor) -> UniqueVoxels:
    """The distinct voxels of a list, in ascending order.

    Args:
        coords: (N, 4) int32 or int64, contiguous: (batch, x, y, z), none negative; the bits of the largest
            batch, x, y and z together at most 64, so that axes of up to 2^20 leave 16 batches. N below 2^31.

    Returns:
        ``coords`` (S, 4), in the order of (batch, x, y, z). ``segments``: of the rows by voxel;
        ``segments.ids`` (N,) says which of the distinct voxels a row is.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, coordinates out of range.

    Gradient: none.

    Device: CPU and CUDA with equal results; two syncs, for the largest coordinates and for S.

    Reference: our own; one sort of integers in place of unique rows.
    """
    voxels, *segments = _unique_voxels_op(coords, 1)
    return UniqueVoxels(voxels, Segments(*segments))


def downsample_voxels(coords: Tensor, factor: int = 2) -> UniqueVoxels:
    """The voxels of a coarser grid that voxels lie in, in ascending order.

    The mean of their features is ``segment_reduce(feats, coarse.segments)``, and ``gather_segments`` goes
    back; :func:`neighbor_table` of them with a stride is a strided convolution.

    Args:
        coords: as of :func:`unique_voxels`.
        factor: x, y and z are divided by it and rounded down.

    Returns, raises, gradient and device: as of :func:`unique_voxels`; ``ValueError`` too where ``factor`` is
    not positive.
    """
    if factor < 1:
        raise ValueError(f"`factor` must be positive, got {factor}")
    voxels, *segments = _unique_voxels_op(coords, factor)
    return UniqueVoxels(voxels, Segments(*segments))


# ---- subdivide_voxels --------------------------------------------------------------------------------------


def subdivide_voxels(coords: Tensor) -> Tensor:
    """The eight children of every voxel in a grid twice as fine.

    Args:
        coords: (N, 4) of any integer dtype: (batch, x, y, z).

    Returns:
        (8 N, 4), dtype of ``coords``: the children of a voxel behind each other, in the order 000, 001, 010,
        ..., 111 of what (x, y, z) have beyond twice the voxel's. Not sorted.

    Raises:
        ValueError: wrong shape.

    Gradient: none.

    Device: CPU and CUDA; no sync.

    Reference: He et al. 2025, "SparseFlex" (TripoSF), and Xiang et al. 2024 (TRELLIS): upsampling blocks.
    """
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"`coords` must have shape (N, 4), got {tuple(coords.shape)}")
    child = torch.arange(8, device=coords.device)
    steps = torch.stack([torch.zeros_like(child), child >> 2, child >> 1 & 1, child & 1], 1)
    doubled = torch.cat([coords[:, :1], coords[:, 1:] * 2], 1)
    return (doubled[:, None] + steps.to(coords.dtype)).flatten(0, 1)


def subdivide_features(feats: Tensor) -> Tensor:
    """The features of the children of :func:`subdivide_voxels`: each voxel's own.

    Args:
        feats: (N, C).

    Returns:
        (8 N, C).

    Gradient: the sum over the children, in their order.

    Device: CPU and CUDA; no sync.
    """
    return feats[:, None].expand(-1, 8, -1).flatten(0, 1)
