"""Voxels that views see, and neighborhoods of voxels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fastshape._library import backend, define

_PIECE_WORDS = 128  # kPieceWords in csrc/carving/bit_grid.h

# ---- Grids of bits -----------------------------------------------------------------------------------------


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")


def _require_iterations(name: str, iterations: int) -> None:
    if iterations < 0:
        raise ValueError(f"`{name}` must be at least 0, got {iterations}")


def _as_batch(name: str, tensor: Tensor, axes: str) -> Tensor:
    """(X, Y, Z) as a batch of one."""
    _require_tensor(name, tensor)
    if tensor.ndim not in (3, 4):
        raise ValueError(f"`{name}` must have shape ({axes}) or (B, {axes}), got {tuple(tensor.shape)}")
    return tensor[None] if tensor.ndim == 3 else tensor


def _num_words(size_z: int) -> int:
    return (size_z + 63) // 64


def _new_bits(grid: Tensor) -> Tensor:
    return grid.new_empty(*grid.shape[:-1], _num_words(grid.shape[-1]), dtype=torch.int64)


def _dilated(bits: Tensor, size_z: int, iterations: int) -> Tensor:
    """Another tensor than `bits` if `iterations` is positive; `bits` may be written to from the second on."""
    module, spare = backend(), None
    for turn in range(iterations):
        result = torch.empty_like(bits) if spare is None else spare
        module.dilate_bits(bits, size_z, result)
        spare, bits = bits if turn else None, result
    return bits


def _pack_bits(grid: Tensor) -> Tensor:
    bits = _new_bits(grid)
    backend().pack_bits(grid, bits)
    return bits


_pack_bits_op = define("pack_bits(Tensor grid) -> Tensor", implementation=_pack_bits, fake=_new_bits)


def pack_bits(grid: Tensor) -> Tensor:
    """A grid of truth values as bits: 64 along z in a word.

    Args:
        grid: (X, Y, Z) or (B, X, Y, Z) bool, contiguous.

    Returns:
        The same axes, the last with ceil(Z / 64) words, int64: bit z % 64 of word z // 64. The bits behind Z
        are zero.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.
    """
    bits = _pack_bits_op(_as_batch("grid", grid, "X, Y, Z"))
    return bits if grid.ndim == 4 else bits[0]


def _new_grid(bits: Tensor, size_z: int) -> Tensor:
    return bits.new_empty(*bits.shape[:-1], size_z, dtype=torch.bool)


def _unpack_bits(bits: Tensor, size_z: int) -> Tensor:
    grid = _new_grid(bits, size_z)
    backend().unpack_bits(bits, grid)
    return grid


_unpack_bits_op = define(
    "unpack_bits(Tensor bits, int size_z) -> Tensor", implementation=_unpack_bits, fake=_new_grid
)


def unpack_bits(bits: Tensor, size_z: int) -> Tensor:
    """The grid of truth values that :func:`pack_bits` packed.

    Args:
        bits: (X, Y, W) or (B, X, Y, W) int64, contiguous, W = ceil(size_z / 64); bits behind ``size_z`` are
            not read.
        size_z: the grid's size along z.

    Returns:
        bool, the same axes, the last of size ``size_z``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.
    """
    grid = _unpack_bits_op(_as_batch("bits", bits, "X, Y, W"), size_z)
    return grid if bits.ndim == 4 else grid[0]


# ---- dilate ------------------------------------------------------------------------------------------------


def _dilate(grid: Tensor, iterations: int) -> Tensor:
    module, result = backend(), torch.empty_like(grid)
    if iterations == 1:
        module.dilate_values(grid, result)
        return result
    bits = _new_bits(grid)
    module.pack_bits(grid, bits)
    module.unpack_bits(_dilated(bits, grid.shape[-1], iterations), result)
    return result


_dilate_op = define(
    "dilate(Tensor grid, int iterations) -> Tensor",
    implementation=_dilate,
    fake=lambda grid, iterations: torch.empty_like(grid),
)


def dilate(grid: Tensor, *, iterations: int = 1) -> Tensor:
    """Every voxel whose 3 x 3 x 3 neighborhood holds one that is set.

    What lies beside the grid is not set.

    Args:
        grid: (X, Y, Z) or (B, X, Y, Z) bool, contiguous.
        iterations: how often, at least 0: a cube of side 2 * iterations + 1 around every voxel.

    Returns:
        bool, shape of ``grid``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, a negative number.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync. Beside the output a bit or two a voxel, nothing for one
    iteration.

    Reference: what ``max_pool3d(grid, 3, 1, 1)`` gives; here with 64 voxels in a word, by shifts along z and
    the OR of neighboring rows.
    """
    _require_iterations("iterations", iterations)
    result = _dilate_op(_as_batch("grid", grid, "X, Y, Z"), iterations)
    return result if grid.ndim == 4 else result[0]


def _dilate_bits(bits: Tensor, size_z: int, iterations: int) -> Tensor:
    return _dilated(bits, size_z, iterations) if iterations else bits.clone()


_dilate_bits_op = define(
    "dilate_bits(Tensor bits, int size_z, int iterations) -> Tensor",
    implementation=_dilate_bits,
    fake=lambda bits, size_z, iterations: torch.empty_like(bits),
)


def dilate_bits(bits: Tensor, *, size_z: int, iterations: int = 1) -> Tensor:
    """:func:`dilate` of packed bits, as :func:`pack_bits` gives them.

    Args:
        bits: (X, Y, W) or (B, X, Y, W) int64, contiguous, W = ceil(size_z / 64); bits behind ``size_z`` must
            be zero.
        size_z: the grid's size along z.
        iterations: how often, at least 0.

    Returns:
        int64, shape of ``bits``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, a negative number.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.
    """
    _require_iterations("iterations", iterations)
    result = _dilate_bits_op(_as_batch("bits", bits, "X, Y, W"), size_z, iterations)
    return result if bits.ndim == 4 else result[0]


def _raise_bad_row(coords: Tensor, row: int, batch_size: int, shape: tuple[int, int, int]) -> None:
    raise ValueError(
        f"`coords` must lie in a grid of shape {shape}"
        f"{f' and a batch of {batch_size}' if coords.shape[1] == 4 else ''}, "
        f"got {coords[row].tolist()} in row {row}"
    )


def _new_bad_row(coords: Tensor) -> Tensor:
    return torch.full((1,), len(coords), dtype=torch.int64, device=coords.device)


def _require_coords(coords: Tensor) -> None:
    _require_tensor("coords", coords)
    if coords.ndim != 2 or coords.shape[1] not in (3, 4):
        raise ValueError(
            "`coords` must have shape (N, 3), or (N, 4) with the number in the batch first, "
            f"got {tuple(coords.shape)}"
        )


def _dilate_coords(coords: Tensor, shape: list[int], batch_size: int, iterations: int) -> Tensor:
    module = backend()
    size_x, size_y, size_z = shape
    bits = coords.new_zeros(batch_size, size_x, size_y, _num_words(size_z), dtype=torch.int64)
    bad_row = _new_bad_row(coords)
    module.set_bits(coords, None, bits, size_z, bad_row)
    bits = _dilated(bits, size_z, iterations)
    workspace = None
    if coords.is_cuda or module.emulated:
        size = module.count_set_bits_workspace_bytes(bits.numel())
        workspace = torch.empty(size, dtype=torch.uint8, device=coords.device)
    first = bits.new_empty(-(-bits.numel() // _PIECE_WORDS) + 1)
    module.count_set_bits(bits, size_z, workspace, first)
    total, bad = torch.cat([first[-1:], bad_row]).tolist()  # the sync
    if bad < len(coords):
        _raise_bad_row(coords, bad, batch_size, (size_x, size_y, size_z))
    result = coords.new_empty(total, coords.shape[1])
    module.bit_coords(bits, size_z, first, result)
    return result


def _fake_dilate_coords(coords: Tensor, shape: list[int], batch_size: int, iterations: int) -> Tensor:
    return coords.new_empty(torch.library.get_ctx().new_dynamic_size(), coords.shape[1])


_dilate_coords_op = define(
    "dilate_coords(Tensor coords, int[3] shape, int batch_size, int iterations) -> Tensor",
    implementation=_dilate_coords,
    fake=_fake_dilate_coords,
)


def dilate_coords(
    coords: Tensor, *, shape: tuple[int, int, int], batch_size: int = 1, iterations: int = 1
) -> Tensor:
    """The voxels whose 3 x 3 x 3 neighborhood holds one of a list, as a list.

    Args:
        coords: (N, 3) int32, or (N, 4) with the number in the batch first, contiguous, in any order,
            duplicates allowed.
        shape: (X, Y, Z) of the grid; what lies beside it is left out.
        batch_size: numbers in the batch are below it.
        iterations: how often, at least 0; 0 sorts and removes duplicates.

    Returns:
        int32, the columns of ``coords``: ascending by them from the first to the last, each voxel once.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, coordinates beside the grid, a negative number.

    Gradient: none.

    Device: CPU and CUDA with equal results; one sync, as the number of voxels depends on the coordinates.
    A bit or two for every voxel of the grid, filled or not: 2 MB at 256^3, 128 MB at 1024^3.
    """
    _require_coords(coords)
    _require_iterations("iterations", iterations)
    if len(shape) != 3 or min(shape) < 0 or batch_size < 0:
        raise ValueError(
            "`shape` must be three numbers of at least 0 and `batch_size` at least 0, "
            f"got {tuple(shape)} and {batch_size}"
        )
    return _dilate_coords_op(coords, list(shape), batch_size, iterations)


# ---- depth_carve -------------------------------------------------------------------------------------------


def _depth_carve(
    coords: Tensor,
    depth: Tensor,
    matrices: Tensor,
    depth_rows: Tensor | None,
    resolution: int,
    low: float,
    voxel_size: float,
    threshold: float,
    near: float,
    far: float,
    any_view: bool,
    keep_outside: bool,
    keep_background: bool,
    keep_invalid: bool,
    bottom_up: bool,
    neighborhood: int,
) -> tuple[Tensor, Tensor]:
    module = backend()
    mask = torch.empty(len(coords), dtype=torch.bool, device=coords.device)
    bad_row = _new_bad_row(coords)
    module.depth_carve(
        coords,
        depth,
        matrices,
        depth_rows,
        resolution,
        low,
        voxel_size,
        threshold,
        near,
        far,
        any_view,
        keep_outside,
        keep_background,
        keep_invalid,
        bottom_up,
        mask,
        bad_row,
    )
    if neighborhood:
        sizes = (len(depth), resolution, resolution, _num_words(resolution))
        bits = coords.new_zeros(sizes, dtype=torch.int64)
        module.set_bits(coords, mask, bits, resolution, bad_row)
        module.get_bits(coords, _dilated(bits, resolution, neighborhood), resolution, mask)
    indices = mask.nonzero()[:, 0]  # the sync
    bad = int(bad_row)
    if bad < len(coords):
        _raise_bad_row(coords, bad, len(depth), (resolution,) * 3)
    return mask, indices


def _fake_depth_carve(coords: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    size = torch.library.get_ctx().new_dynamic_size()
    return coords.new_empty(len(coords), dtype=torch.bool), coords.new_empty(size, dtype=torch.int64)


_depth_carve_op = define(
    "depth_carve(Tensor coords, Tensor depth, Tensor matrices, Tensor? depth_rows, int resolution, float low,"
    " float voxel_size, float threshold, float near, float far, bool any_view, bool keep_outside,"
    " bool keep_background, bool keep_invalid, bool bottom_up, int neighborhood) -> (Tensor, Tensor)",
    implementation=_depth_carve,
    fake=_fake_depth_carve,
)

Vote = Literal["keep", "drop"]


def _keeps(name: str, vote: Vote) -> bool:
    if vote not in ("keep", "drop"):
        raise ValueError(f"`{name}` must be 'keep' or 'drop', got {vote!r}")
    return vote == "keep"


def carve_threshold(
    resolution: int, *, bounds: tuple[float, float] = (-0.5, 0.5), upsampling: int | None = None
) -> float:
    """The default threshold of :func:`depth_carve`, and the one that is written in the paper.

    A voxel's center can lie up to sqrt(3) / 2 voxels behind a surface that passes through the voxel, measured
    along the surface's normal, and farther behind it where it is seen at a slant. Over eight shapes of
    :mod:`fastshape.geometry.shapes` in 128^3, six views each (``scripts/carving_sweep.py``), two voxels keep
    44% of the voxels and lose 0.4% of those that a pixel shows, 1.2% at worst. Half a voxel, which is
    2 / resolution with the resolution of the decoded grid, keeps 43% and loses 2.8%, 10% at worst; without
    the neighborhood 30% and 23%, where two voxels keep 38% and lose 3%.

    Args:
        resolution: voxels along an axis.
        bounds: lowest and highest coordinate of the cube of voxels.
        upsampling: None for two voxels; for the paper's 2 / resolution read as that of the decoded grid, how
            many times finer this one is: 4.

    Returns:
        A length in the unit of ``bounds``.

    Reference: Focusing, section 3.2, 4.1 and figure 4, which has centers behind the surface in mind.
    """
    low, high = bounds
    return 2 * (high - low) / (resolution * (1 if upsampling is None else upsampling))


def depth_carve(
    coords: Tensor,
    depth: Tensor,
    matrices: Tensor,
    *,
    resolution: int,
    threshold: float | None = None,
    depth_rows: Tensor | None = None,
    bounds: tuple[float, float] = (-0.5, 0.5),
    near: float = 0.0,
    far: float = math.inf,
    combine: Literal["all", "any"] = "all",
    outside: Vote | None = None,
    background: Vote = "keep",
    invalid: Vote | None = None,
    origin: Literal["top", "bottom"] = "top",
    neighborhood: int = 1,
) -> tuple[Tensor, Tensor]:
    """The voxels that views see: those that do not lie behind the surface that the views' depth shows.

    A voxel's center p = (i + 0.5) * (high - low) / resolution + low is projected to ``clip = matrix (p, 1)``
    and ``x, y = clip[:2] / clip[3]``. A view sees it where ``clip[3] > 0``, ``near <= d <= far`` and its
    pixel, column ``floor((1 + x) / 2 * W)`` and row ``floor((1 - y) / 2 * H)``, is in the picture. A center
    that is seen is kept where ``d <= depth[pixel] + threshold``: before the surface, at it, or that little
    behind. Its own depth d is linear and grows away from the camera:

    - perspective: the clip vector's last component, which is the distance along the camera's axis for the
      usual matrices (the last row of the projection is (0, 0, -1, 0) or (0, 0, 1, 0));
    - orthographic cameras, whose last component is 1, and all others: ``depth_rows`` times (p, 1); for
      example the third row of the world-to-camera matrix, negated where the camera looks along -z.

    Depth along the ray, depth in [0, 1] of a z-buffer and inverse depth are other things: convert them.

    With several views a voxel is kept if every view keeps it ("all": carved by any view that sees it hidden,
    for one picture after the other of the same thing) or if one does ("any": what at least one of the views
    shows, for losses in all of them). At last the neighborhood of what is kept is kept too, in so far as it
    is in the list.

    Args:
        coords: (N, 3) int32, or (N, 4) with the number in the batch first, contiguous, each in
            [0, resolution), in any order.
        depth: (V, H, W), or (B, V, H, W) with (N, 4) coordinates; float32 or float64, contiguous, with
            V at least 1. +inf is background; 0 or less and NaN are no depth.
        matrices: (V, 4, 4) or (B, V, 4, 4), dtype of ``depth``, contiguous: from the world to clip
            coordinates, of column vectors, x to the right and y up.
        resolution: voxels along an axis.
        threshold: how far behind the surface a center may lie, at least 0, in the world's unit; None is two
            voxels. :func:`carve_threshold` has the paper's.
        depth_rows: (V, 4) or (B, V, 4), dtype of ``depth``, contiguous; None takes the last rows of
            ``matrices``.
        bounds: lowest and highest coordinate of the cube of voxels.
        near: least depth that is seen.
        far: largest depth that is seen.
        combine: "all" or "any", see above.
        outside: what a view says of a center that it does not see; None is "drop" for one view and for "any",
            and "keep" for several that must all keep it, so that a view carves only what it sees.
        background: what a view says where its pixel is background. "keep" keeps the voxels of a silhouette
            whose centers lie beside it.
        invalid: what a view says where its pixel has no depth; None is what ``background`` is.
        origin: whether the pictures' first row is at the "top" or, as OpenGL has it, at the "bottom".
        neighborhood: voxels of the list at most so many steps along each axis from one that is kept are kept
            too; 0 turns it off.

    Returns:
        ``mask`` (N,) bool, and ``indices`` (M,) int64, the rows that are kept, ascending.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, coordinates out of range, an option that is
            none.

    Gradient: none.

    Device: CPU and CUDA with equal results; syncs, as the number of rows depends on the values. The views of
    a voxel are looked at one after the other until they have decided. With a neighborhood two bits for each
    voxel of the grid, filled or not: 4 MB at 256^3.

    Reference: Focusing, section 3.2. Its formula, "filter all voxels where d > D - r", is right for depth
    that is negative before the camera and keeps what is hidden for one that is positive; figure 4 tells what
    is meant. Background, what is not seen and several views are not in it.
    """
    _require_coords(coords)
    _require_tensor("depth", depth)
    _require_tensor("matrices", matrices)
    low, high = bounds
    if not low < high:
        raise ValueError(f"`bounds` must ascend, got {tuple(bounds)}")
    if resolution < 1:
        raise ValueError(f"`resolution` must be positive, got {resolution}")
    if threshold is None:
        threshold = carve_threshold(resolution, bounds=bounds)
    if not threshold >= 0:
        raise ValueError(f"`threshold` must be at least 0, got {threshold}")
    if not near <= far:
        raise ValueError(f"`near` must be at most `far`, got {near} and {far}")
    if combine not in ("all", "any"):
        raise ValueError(f"`combine` must be 'all' or 'any', got {combine!r}")
    if origin not in ("top", "bottom"):
        raise ValueError(f"`origin` must be 'top' or 'bottom', got {origin!r}")
    _require_iterations("neighborhood", neighborhood)
    batched = coords.shape[1] == 4
    if depth.ndim != 3 + batched:
        wanted = "(B, V, H, W) with `coords` of shape (N, 4)" if batched else "(V, H, W)"
        raise ValueError(f"`depth` must have shape {wanted}, got {tuple(depth.shape)}")
    if not batched:
        depth, matrices = depth[None], matrices[None]
        depth_rows = None if depth_rows is None else depth_rows[None]
    if outside is None:
        outside = "keep" if combine == "all" and depth.shape[1] > 1 else "drop"
    return _depth_carve_op(
        coords,
        depth,
        matrices,
        depth_rows,
        resolution,
        float(low),
        (high - low) / resolution,
        float(threshold),
        float(near),
        float(far),
        combine == "any",
        _keeps("outside", outside),
        _keeps("background", background),
        _keeps("invalid", background if invalid is None else invalid),
        origin == "bottom",
        neighborhood,
    )
