"""Surfaces of fields on lattices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastshape._library import backend, define

# ---- flood_fill --------------------------------------------------------------------------------------------


def _new_flood_fill(points: Tensor, solid: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty_like(points, dtype=torch.bool)


def _flood_fill(points: Tensor, solid: Tensor, shape: Sequence[int]) -> Tensor:
    reached = _new_flood_fill(points, solid, shape)
    module = backend()
    workspace = None
    if points.is_cuda or module.emulated:
        size = module.flood_fill_workspace_bytes(solid.numel(), *shape)
        workspace = torch.empty(size, dtype=torch.uint8, device=points.device)
    module.flood_fill(points, solid, *shape, workspace, reached)
    return reached


_flood_fill_op = define(
    "flood_fill(Tensor points, Tensor solid, int[3] shape) -> Tensor",
    implementation=_flood_fill,
    fake=_new_flood_fill,
)


def flood_fill(
    points: Tensor, solid: Tensor, *, shape: tuple[int, int, int], solid_is_sorted: bool = False
) -> Tensor:
    """Which points of a lattice are reached from beyond its border without entering a solid point.

    Water flows along lattice edges, to six neighbors: solid points that touch across a cell already hold it
    back. A solid point is not reached; a point beyond the border is. Time and memory go with the number of
    solid points and of rows, X * Y, not with the number of lattice points.

    Args:
        points: (N,) int64, flat indices ``(x * Y + y) * Z + z`` of the points to be told about, in any order.
        solid: (M,) int64, flat indices of the solid points, in any order, duplicates allowed; those that are
            negative or not below X * Y * Z do nothing (a z that is too large reads as another point).
        shape: (X, Y, Z), points along each axis.
        solid_is_sorted: ``solid`` ascends, which is not checked; saves sorting it.

    Returns:
        (N,) bool.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, a size that is not positive, 2^31 rows and
            solid points or more.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync. 4 bytes for a solid point, 12 for a row; sorting takes
    more.

    Reference: runs of rows joined by union-find, as in Rosenfeld and Pfaltz 1966; the forest without locks is
    Jayanti and Tarjan's (2016), with the order of the nodes in place of a random one. Our runs are the gaps
    between the given points, numbered without being counted, and the border is a node.
    """
    if not solid_is_sorted:
        solid = solid.sort().values
    return _flood_fill_op(points, solid, list(shape))


# ---- Meshes ------------------------------------------------------------------------------------------------

_MAX_COORD = 2**20 - 2  # kMaxCellCoord in csrc/isosurface/marching_cubes_sparse.h
_NUM_COUNTS = 4  # MarchingCubesCounts


def _bytes(size: int, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def _new_mesh(
    values: Tensor, num_vertices: int | torch.SymInt, num_faces: int | torch.SymInt
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(num_vertices, 3),
        values.new_empty(num_faces, 3, dtype=torch.int64),
        values.new_empty(num_vertices, dtype=torch.int64),
    )


def _fake_mesh(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    return _new_mesh(values, context.new_dynamic_size(), context.new_dynamic_size())


# ---- marching_cubes ----------------------------------------------------------------------------------------


def _marching_cubes(values: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    module = backend()
    sizes = values.shape if values.ndim == 3 else (0, 0, 0)
    workspace = _bytes(module.marching_cubes_workspace_bytes(*sizes, values.is_cuda), values)
    totals = values.new_empty(2, dtype=torch.int64)
    module.marching_cubes_count(values, level, workspace, totals)
    mesh = _new_mesh(values, *totals.tolist())  # the sync
    module.marching_cubes_fill(values, level, workspace, *mesh)
    return mesh


_marching_cubes_op = define(
    "marching_cubes(Tensor values, float level) -> (Tensor, Tensor, Tensor)",
    implementation=_marching_cubes,
    fake=lambda values, level: _fake_mesh(values),
)


def _marching_cubes_backward(grad_vertices: Tensor, values: Tensor, source: Tensor, level: float) -> Tensor:
    grad_values = torch.empty_like(values)
    backend().marching_cubes_backward(grad_vertices, values, source, level, grad_values)
    return grad_values


_marching_cubes_backward_op = define(
    "marching_cubes_backward(Tensor grad_vertices, Tensor values, Tensor source, float level) -> Tensor",
    implementation=_marching_cubes_backward,
    fake=lambda grad_vertices, values, source, level: torch.empty_like(values),
)


class _MarchingCubes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, level: float) -> tuple[Tensor, Tensor]:
        vertices, faces, source = _marching_cubes_op(values, level)
        ctx.save_for_backward(values, source)
        ctx.level = level
        ctx.mark_non_differentiable(faces)
        return vertices, faces

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_vertices: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        values, source = ctx.saved_tensors
        return _marching_cubes_backward_op(grad_vertices.contiguous(), values, source, ctx.level), None


def marching_cubes(values: Tensor, *, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """The surface where a field that is sampled on a lattice crosses a level.

    The rules are those of :func:`marching_cubes_sparse`, and so are the results for all cells of the lattice
    in the order of (x, y, z). The surface is closed and oriented but for where it runs into the border of the
    lattice; pad the values with ones above the level to close it there.

    Args:
        values: (X, Y, Z), float32 or float64, contiguous. No surface where an axis has fewer than two points.
        level: the value on the surface, rounded to the dtype of ``values``.

    Returns:
        ``vertices`` (V, 3), dtype of ``values``, in units of the lattice, in the order of (x, y, z, axis) of
        their lattice edges; ``faces`` (F, 3) int64, counterclockwise seen from outside (values at or above
        the level), in the order of their cells.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous.

    Gradient: of ``vertices`` with respect to ``values``, once: a vertex moves along its edge with the values
    at both ends, and grows without bound where they are nearly equal. Zero where one of them is not finite
    and the vertex in the middle. None with respect to ``level``; none through which edges are crossed.

    Device: CPU and CUDA with equal results; one sync, as the sizes of the outputs depend on the values.
    Beside the outputs 24 bytes for 64 lattice points.

    Reference: Lorensen and Cline 1987; see :func:`marching_cubes_sparse`. Signs are kept as words of 64 bits,
    from which the places of all vertices follow.
    """
    if torch.is_grad_enabled() and values.requires_grad:
        return _MarchingCubes.apply(values, float(level))
    return _marching_cubes_op(values, float(level))[:2]


# ---- marching_cubes_sparse ---------------------------------------------------------------------------------


def _marching_cubes_sparse(values: Tensor, coords: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    module = backend()
    num_cells = values.shape[0] if values.ndim else 0
    workspace = _bytes(module.marching_cubes_sparse_workspace_bytes(num_cells, values.is_cuda), values)
    counts = values.new_empty(_NUM_COUNTS, dtype=torch.int64)
    module.marching_cubes_sparse_count(values, coords, level, workspace, counts)
    num_vertices, num_faces, num_crossed, bad_cell = counts.tolist()  # the sync
    if bad_cell < num_cells:
        raise ValueError(
            f"`coords` must lie in [0, {_MAX_COORD}], got {coords[bad_cell].tolist()} in cell {bad_cell}"
        )
    fill_workspace = _bytes(
        module.marching_cubes_sparse_fill_workspace_bytes(num_vertices, values.is_cuda), values
    )
    vertices, faces, source = _new_mesh(values, num_vertices, num_faces)
    module.marching_cubes_sparse_fill(
        values, coords, level, workspace, fill_workspace, num_crossed, vertices, faces, source
    )
    return vertices, faces, source


_marching_cubes_sparse_op = define(
    "marching_cubes_sparse(Tensor values, Tensor coords, float level) -> (Tensor, Tensor, Tensor)",
    implementation=_marching_cubes_sparse,
    fake=lambda values, coords, level: _fake_mesh(values),
)


def _marching_cubes_sparse_backward(
    grad_vertices: Tensor, values: Tensor, source: Tensor, level: float
) -> Tensor:
    module, grad_values, workspace = backend(), torch.empty_like(values), None
    if values.is_cuda or module.emulated:
        workspace = _bytes(module.marching_cubes_sparse_backward_workspace_bytes(values.shape[0]), values)
    module.marching_cubes_sparse_backward(grad_vertices, values, source, level, workspace, grad_values)
    return grad_values


_marching_cubes_sparse_backward_op = define(
    "marching_cubes_sparse_backward(Tensor grad_vertices, Tensor values, Tensor source, float level)"
    " -> Tensor",
    implementation=_marching_cubes_sparse_backward,
    fake=lambda grad_vertices, values, source, level: torch.empty_like(values),
)


class _MarchingCubesSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, coords: Tensor, level: float) -> tuple[Tensor, Tensor]:
        vertices, faces, source = _marching_cubes_sparse_op(values, coords, level)
        ctx.save_for_backward(values, source)
        ctx.level = level
        ctx.mark_non_differentiable(faces)
        return vertices, faces

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_vertices: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        values, source = ctx.saved_tensors
        grad_values = _marching_cubes_sparse_backward_op(
            grad_vertices.contiguous(), values, source, ctx.level
        )
        return grad_values, None, None


def marching_cubes_sparse(values: Tensor, coords: Tensor, *, level: float = 0.0) -> tuple[Tensor, Tensor]:
    """The surface where a field that is sampled at the corners of some lattice cells crosses a level.

    A corner is inside where its value is below ``level``. A value equal to the level is outside, as is NaN.
    An edge of a cell with one end inside has one vertex, where linear interpolation reaches the level: at a
    lattice point itself where the value there equals the level, so that triangles without area are possible;
    in the middle where an infinite value or NaN leaves it undefined.

    On every ambiguous face of a cell the inside corners are separated, by the face's four signs alone. So
    wherever a cell's neighbors are in the list too, the mesh is closed, and every edge has exactly two faces
    that run through it in opposite directions; elsewhere it is open, along cell faces. Up to five triangles
    a cell.

    Vertices are in the order of (x, y, z, axis) of their lattice edges, whichever cells the list has in
    which order; faces in the order of their cells in the list.

    Args:
        values: (N, 8), float32 or float64, contiguous: at the lattice points
            ``coords[n] + (i & 1, i >> 1 & 1, i >> 2 & 1)``, i = 0..7. Cells that share a lattice point must
            agree on its value. N at most 357,913,941.
        coords: (N, 3) int32, contiguous, each in [0, 1048574]; no cell twice, or its faces are there twice,
            between the same vertices.
        level: the value on the surface, rounded to the dtype of ``values``.

    Returns:
        ``vertices`` (V, 3), dtype of ``values``, in units of the lattice; ``faces`` (F, 3) int64,
        counterclockwise seen from outside (values at or above the level).

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, coordinates out of range.

    Gradient: as that of :func:`marching_cubes`. All of a vertex's goes to the values of one cell, the last in
    the order of (x, y, z) of those in the list that share its edge: scattered to the lattice, where cells
    that share a point are summed, it is the gradient with respect to the lattice's values.

    Device: CPU and CUDA with equal results; one sync, as the sizes of the outputs depend on the values.

    Reference: Lorensen and Cline 1987. The cases are derived from the signs, see ``fastshape.reference``,
    with triangles whose inner edges lie in no face of a cell.
    """
    if torch.is_grad_enabled() and values.requires_grad:
        return _MarchingCubesSparse.apply(values, coords, float(level))
    return _marching_cubes_sparse_op(values, coords, float(level))[:2]
