"""Dual marching cubes: meshes of fields, with creases where the field's gradient is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastshape._library import backend, define
from fastshape.ops.dual_surface import surface_of
from fastshape.ops.dual_topology import (
    Topology,
    bytes_like,
    dual_surface_op,
    fill_workspace,
    mark,
    rows_of,
)

# ---- Vertices and faces alone ------------------------------------------------------------------------------


def _new_mesh(values: Tensor, num_vertices: Any, num_quads: Any) -> tuple[Tensor, Tensor]:
    return values.new_empty(num_vertices, 3), values.new_empty(2 * num_quads, 3, dtype=torch.int64)


def _dual_mesh(
    values: Tensor, cubes: Tensor | None, positions: Tensor | None, level: float, manifold: bool
) -> tuple[Tensor, Tensor]:
    module = backend()
    num_crossed, *workspaces = mark(values, cubes, level)
    lowest, first_vertex = values.new_empty(2, num_crossed, dtype=torch.int64)
    rows = None if cubes is None else torch.empty_like(lowest)
    cases, totals = bytes_like(values, num_crossed), values.new_empty(3, dtype=torch.int64)
    module.dual_surface_count(
        values, cubes, manifold, *workspaces, lowest, rows, cases, first_vertex, None, totals
    )
    num_vertices, _, num_quads = totals.tolist()  # a sync
    vertices, faces = _new_mesh(values, num_vertices, num_quads)
    module.dual_mesh_fill(
        values, cubes, positions, level, *workspaces, fill_workspace(values, num_quads),
        lowest, rows, cases, first_vertex, vertices, faces,
    )  # fmt: skip
    return vertices, faces


def _fake_dual_mesh(
    values: Tensor, cubes: Tensor | None, positions: Tensor | None, level: float, manifold: bool
) -> tuple[Tensor, Tensor]:
    context = torch.library.get_ctx()
    return _new_mesh(values, context.new_dynamic_size(), context.new_dynamic_size())


_dual_mesh_op = define(
    "dual_mesh(Tensor values, Tensor? cubes, Tensor? positions, float level, bool manifold)"
    " -> (Tensor, Tensor)",
    implementation=_dual_mesh,
    fake=_fake_dual_mesh,
)


# ---- Sharp vertices ----------------------------------------------------------------------------------------


def _new_vertices(
    points: Tensor,
    normals: Tensor,
    crossing: Tensor,
    first: Tensor,
    lower: Tensor,
    upper: Tensor,
    regularization: float,
) -> Tensor:
    return torch.empty_like(lower)


def _sharp_vertices(
    points: Tensor,
    normals: Tensor,
    crossing: Tensor,
    first: Tensor,
    lower: Tensor,
    upper: Tensor,
    regularization: float,
) -> Tensor:
    vertices = torch.empty_like(lower)
    backend().sharp_vertices(points, normals, crossing, first, lower, upper, regularization, vertices)
    return vertices


_sharp_vertices_op = define(
    "sharp_vertices(Tensor points, Tensor normals, Tensor crossing, Tensor first, Tensor lower, Tensor upper,"
    " float regularization) -> Tensor",
    implementation=_sharp_vertices,
    fake=_new_vertices,
)

# Both ends of the cube's twelve edges, as in csrc/isosurface/flexicubes_table.h.
_EDGE_ENDS = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))
# What a quad's edge is to the cube of its first corner, by its kind: quad_edge, quad_turn in dual_surface.h.
_FIRST_EDGES = (2, 11, 7, 0, 6, 10, 5, 0)


def _corner_places(
    values: Tensor, cubes: Tensor | None, positions: Tensor | None, topology: Topology
) -> tuple[Tensor, Tensor]:
    """Rows of the crossed cubes' corners (S, 8) and their positions (S, 8, 3)."""
    lowest, rows = topology[:2]
    bits = torch.arange(8, device=values.device)
    steps = torch.stack([bits & 1, bits >> 1 & 1, bits >> 2], 1)
    if cubes is not None:
        corners = cubes.index_select(0, rows)
    else:
        size_y, size_z = values.shape[1:]
        corners = lowest[:, None] + (steps[:, 0] * size_y + steps[:, 1]) * size_z + steps[:, 2]
    if positions is not None:
        return corners, positions[corners]
    xy = lowest // size_z
    place = torch.stack([xy // size_y, xy % size_y, lowest % size_z], 1)
    return corners, (place[:, None] + steps).to(values.dtype)


def _sharp_surface(
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    topology: Topology,
    level: float,
    gradient: Callable[[Tensor], Tensor],
    regularization: float,
) -> tuple[Tensor, Tensor]:
    first_vertex, first_pair, vertex_cubes, pair_edges, quads, kinds = topology[3:]
    device, num_pairs = values.device, pair_edges.shape[0]
    corners, places = _corner_places(values, cubes, positions, topology)
    box = places.amin(1), places.amax(1)

    # Which cube a pair belongs to: a cube's pairs follow each other, from its first one.
    order = first_pair.argsort()
    starts = torch.zeros(num_pairs, dtype=torch.int64, device=device)
    starts[first_pair] = 1
    pair_cube = order[starts.cumsum(0) - 1] if num_pairs else starts
    edges = (pair_edges & 15).long()
    pair_vertex = first_vertex[pair_cube] + (pair_edges >> 4)
    ends = torch.tensor(_EDGE_ENDS, device=device)[edges]

    # Every crossing once, in the order of both ends.
    points = corners[pair_cube[:, None], ends].sort(1)
    keys = points.values[:, 0] * values.numel() + points.values[:, 1]
    _, crossing = keys.unique(return_inverse=True)
    num_crossings = int(crossing.max()) + 1 if num_pairs else 0
    one = torch.empty(num_crossings, dtype=torch.int64, device=device)
    one[crossing] = torch.arange(num_pairs, device=device)  # any of its pairs: all say the same
    begin, end = (
        (places[pair_cube, t.gather(1, points.indices)[:, k]])[one] for t, k in ((ends, 0), (ends, 1))
    )
    a, b = (values.reshape(-1)[points.values[one, k]] - level for k in (0, 1))
    weight = (b / (b - a)).nan_to_num(nan=0.5)[:, None]
    where = begin * weight + end * (1 - weight)
    normals = gradient(where)
    if tuple(normals.shape) != tuple(where.shape):
        raise ValueError(f"`gradient` must return shape {tuple(where.shape)}, got {tuple(normals.shape)}")

    # The pairs of each vertex follow each other, in the order of the vertices.
    counts = torch.bincount(pair_vertex, minlength=len(vertex_cubes))
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    vertices = _sharp_vertices_op(
        where.contiguous(), normals.to(values.dtype).contiguous(), crossing, first,
        box[0][vertex_cubes], box[1][vertex_cubes], regularization,
    )  # fmt: skip

    # The diagonal that passes the crossing more closely.
    slots = torch.full((12 * len(first_vertex),), -1, device=device)
    slots[12 * pair_cube + edges] = torch.arange(num_pairs, device=device)
    first_edge = torch.tensor(_FIRST_EDGES, device=device)[kinds.long()]
    on_edge = where[crossing[slots[12 * vertex_cubes[quads[:, 0]] + first_edge]]]
    corner = vertices[quads]
    distance = [_distance_to_segment(on_edge, corner[:, k], corner[:, k + 2]) for k in (0, 1)]
    even = quads[:, [0, 1, 2, 0, 2, 3]]
    odd = quads[:, [0, 1, 3, 3, 1, 2]]
    return vertices, torch.where((distance[0] < distance[1])[:, None], even, odd).view(-1, 3)


def _distance_to_segment(point: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    along = end - begin
    share = ((point - begin) * along).sum(1) / along.square().sum(1).clamp_min(1e-30)
    return (begin + share.clamp(0, 1)[:, None] * along - point).norm(dim=1)


# ---- The public function -----------------------------------------------------------------------------------


def dual_marching_cubes(
    values: Tensor,
    *,
    cubes: Tensor | None = None,
    positions: Tensor | None = None,
    level: float = 0.0,
    manifold: bool = True,
    gradient: Callable[[Tensor], Tensor] | None = None,
    regularization: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """The dual surface where a field crosses a level: a vertex in each cube, a quad around each crossed edge.

    :func:`flexicubes` with all weights one: a vertex is the mean of the crossings of its edges. Triangles are
    better shaped than those of :func:`marching_cubes`, and about as many.

    Args:
        values: (X, Y, Z), or (P,) beside ``cubes``: float32 or float64, contiguous.
        cubes: (N, 8) int64, see :func:`flexicubes`.
        positions: of the points; None for the lattice's own.
        level: the value on the surface, rounded to the dtype of ``values``.
        manifold: resolve the ambiguity of C16 and C19, without which some edges have four faces.
        gradient: keeps corners and creases sharp: called once with the places (M, 3) where lattice edges are
            crossed, each edge once, in the order of its ends; returns the field's gradients (M, 3) there, of
            any length. A vertex is then the point of its cube (of the box around its corners) with the least
            sum of squared distances to the crossings' tangent planes, and quads are split along the diagonal
            that passes their crossing more closely. Gradients that are nothing or NaN are left out.
        regularization: how much the squared distance to the mean of a vertex's crossings counts beside one
            plane's; positive.

    Returns:
        ``vertices`` (V, 3), dtype of ``values``; ``faces`` (F, 3) int64, counterclockwise seen from outside
        (values at or above the level), two for each crossed edge that four cubes share.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, corners that are not there.

    Gradient: of ``vertices`` with respect to ``values`` and ``positions``, once; none with ``gradient``.

    Device: CPU and CUDA; two syncs, as the sizes of the outputs depend on the values, more with ``gradient``.

    Reference: Nielson 2004, "Dual Marching Cubes"; manifold by Wenger's rule (2013), in FlexiCubes' tables.
    Sharp vertices: Ju et al. 2002, "Dual Contouring of Hermite Data", regularized as by Schmitz et al. 2009.
    """
    positions = rows_of(positions, "positions", values.numel(), 3, "three numbers for each value")
    if gradient is not None:
        if not regularization > 0:
            raise ValueError(f"`regularization` must be positive, got {regularization}")
        with torch.no_grad():
            topology = dual_surface_op(values, cubes, float(level), manifold, 0)
            if cubes is not None and positions is None:
                raise ValueError("`positions` must be given beside `cubes`")
            return _sharp_surface(
                values, cubes, positions, topology, float(level), gradient, float(regularization)
            )
    inputs = (values, positions)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)):
        return _dual_mesh_op(values, cubes, positions, float(level), manifold)
    surface = surface_of(
        values, cubes, positions, None, None, None, None, float(level), False, False, "cube", manifold
    )
    return surface.vertices, surface.faces
