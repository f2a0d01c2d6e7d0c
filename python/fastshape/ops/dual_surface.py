"""Dual surfaces of fields on lattices and lists of cubes: FlexiCubes and dual marching cubes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define

_FACE_ORDERS = ("cube", "nv", "trellis")  # FaceOrder in csrc/isosurface/dual_surface.h
_NUM_TOPOLOGY = 9  # tensors of _Topology


class DualSurface(NamedTuple):
    """What :func:`flexicubes` gives."""

    vertices: Tensor
    faces: Tensor
    deviation: Tensor
    features: Tensor | None
    vertex_cubes: Tensor


def _bytes(size: int, like: Tensor) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=like.device)


# ---- The connectivity --------------------------------------------------------------------------------------

_Topology = tuple[
    Tensor, ...
]  # lowest, rows, cases, first_vertex, first_pair, vertex_cubes, pair_edges, quads, kinds


def _new_topology(values: Tensor, crossed: Any, vertices: Any, pairs: Any, quads: Any) -> _Topology:
    def new(*shape: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return values.new_empty(*shape, dtype=dtype)

    cubes = (new(crossed), new(crossed), new(crossed, dtype=torch.uint8), new(crossed), new(crossed))
    return (
        *cubes,
        new(vertices),
        new(pairs, dtype=torch.uint8),
        new(quads, 4),
        new(quads, dtype=torch.uint8),
    )


def _dual_surface(
    values: Tensor, cubes: Tensor | None, level: float, manifold: bool, face_order: int
) -> _Topology:
    module = backend()
    shape = values.shape if cubes is None and values.ndim == 3 else (0, 0, 0)
    size = module.dual_surface_workspace_bytes(values.numel(), *shape, cubes is not None, values.is_cuda)
    workspace, found = _bytes(size, values), values.new_empty(2, dtype=torch.int64)
    module.dual_surface_mark(values, cubes, level, workspace, found)
    num_crossed, bad_row = found.tolist()  # a sync
    if cubes is not None and bad_row < len(cubes):
        raise ValueError(
            f"`cubes` must lie in [0, {values.numel()}), got {cubes[bad_row].tolist()} in row {bad_row}"
        )
    crossed = _new_topology(values, num_crossed, 0, 0, 0)[:5]
    count_workspace = _bytes(module.dual_surface_count_workspace_bytes(num_crossed, values.is_cuda), values)
    totals = values.new_empty(3, dtype=torch.int64)
    module.dual_surface_count(values, cubes, manifold, workspace, count_workspace, *crossed, totals)
    mesh = _new_topology(values, 0, *totals.tolist())[5:]  # a sync
    fill_workspace = _bytes(module.dual_surface_fill_workspace_bytes(len(mesh[2]), values.is_cuda), values)
    module.dual_surface_fill(
        values, cubes, face_order, workspace, count_workspace, fill_workspace, *crossed, *mesh
    )
    return (*crossed, *mesh)


def _fake_dual_surface(
    values: Tensor, cubes: Tensor | None, level: float, manifold: bool, face_order: int
) -> _Topology:
    context = torch.library.get_ctx()
    return _new_topology(values, *(context.new_dynamic_size() for _ in range(4)))


_dual_surface_op = define(
    "dual_surface(Tensor values, Tensor? cubes, float level, bool manifold, int face_order)"
    " -> (" + ", ".join(["Tensor"] * _NUM_TOPOLOGY) + ")",
    implementation=_dual_surface,
    fake=_fake_dual_surface,
)


# ---- Vertices and faces ------------------------------------------------------------------------------------


def _new_surface(
    values: Tensor, features: Tensor | None, topology: _Topology, centers: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vertex_cubes, pair_edges, quads, _ = topology[5:]
    num_rows = vertex_cubes.shape[0] + (quads.shape[0] if centers else 0)
    return (
        values.new_empty(num_rows, 3),
        values.new_empty((4 if centers else 2) * quads.shape[0], 3, dtype=torch.int64),
        values.new_empty(pair_edges.shape[0]),
        values.new_empty(num_rows, features.shape[1] if features is not None else 0),
    )


_WEIGHTS = "Tensor? alpha, Tensor? beta, Tensor? gamma"
_FIELD = f"Tensor values, Tensor? cubes, Tensor? positions, Tensor? features, {_WEIGHTS}, Tensor[] topology"


def _flexicubes(
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    topology: list[Tensor],
    level: float,
    centers: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vertices, faces, deviation, out = _new_surface(values, features, tuple(topology), centers)
    backend().flexicubes(
        values, cubes, positions, features, alpha, beta, gamma, *topology, level, centers,
        vertices, None if features is None else out, deviation, faces,
    )  # fmt: skip
    return vertices, faces, deviation, out


_flexicubes_op = define(
    f"flexicubes({_FIELD}, float level, bool centers) -> (Tensor, Tensor, Tensor, Tensor)",
    implementation=_flexicubes,
    fake=lambda values, cubes, positions, features, alpha, beta, gamma, topology, level, centers: (
        _new_surface(values, features, tuple(topology), centers)
    ),
)


def _new_gradients(
    values: Tensor,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
) -> tuple[Tensor, ...]:
    others = (positions, features, alpha, beta, gamma)
    return (
        torch.empty_like(values),
        *(values.new_empty(0) if t is None else torch.empty_like(t) for t in others),
    )


def _flexicubes_backward(
    grad_vertices: Tensor,
    grad_features: Tensor,
    grad_deviation: Tensor,
    vertices: Tensor,
    out_features: Tensor,
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    topology: list[Tensor],
    level: float,
    centers: bool,
) -> tuple[Tensor, ...]:
    module = backend()
    inputs = (positions, features, alpha, beta, gamma)
    gradients = _new_gradients(values, *inputs)
    to_values, to_positions, to_features, *to_weights = (
        None if t is None else grad for t, grad in zip((values, *inputs), gradients, strict=True)
    )
    width = 0 if features is None else features.shape[1]
    size = module.flexicubes_backward_workspace_bytes(
        len(topology[0]), values.numel(), width, positions is not None, centers,
        values.dtype == torch.float64, values.is_cuda,
    )  # fmt: skip
    module.flexicubes_backward(
        values, cubes, positions, features, alpha, beta, gamma, *topology, level, centers,
        vertices, None if features is None else out_features,
        grad_vertices, None if features is None else grad_features, grad_deviation, _bytes(size, values),
        to_values, to_positions, to_features, *to_weights,
    )  # fmt: skip
    return gradients


def _fake_flexicubes_backward(
    grad_vertices: Tensor,
    grad_features: Tensor,
    grad_deviation: Tensor,
    vertices: Tensor,
    out_features: Tensor,
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    topology: list[Tensor],
    level: float,
    centers: bool,
) -> tuple[Tensor, ...]:
    return _new_gradients(values, positions, features, alpha, beta, gamma)


_flexicubes_backward_op = define(
    "flexicubes_backward(Tensor grad_vertices, Tensor grad_features, Tensor grad_deviation, Tensor vertices,"
    f" Tensor out_features, {_FIELD}, float level, bool centers) -> (" + ", ".join(["Tensor"] * 6) + ")",
    implementation=_flexicubes_backward,
    fake=_fake_flexicubes_backward,
)


# ---- Weights -----------------------------------------------------------------------------------------------

_SCALE = 0.99  # how far weights go from one; `activated` in csrc/isosurface/flexicubes_weights.h


def _flexicubes_weights(raw: Tensor, sigmoid: bool) -> Tensor:
    weights = torch.empty_like(raw)
    backend().flexicubes_weights(raw, sigmoid, weights)
    return weights


_flexicubes_weights_op = define(
    "flexicubes_weights(Tensor raw, bool sigmoid) -> Tensor",
    implementation=_flexicubes_weights,
    fake=lambda raw, sigmoid: torch.empty_like(raw),
)


def _weights(raw: Tensor | None, rows: Tensor, activate: bool, sigmoid: bool = False) -> Tensor | None:
    """Those of the crossed cubes."""
    if raw is None:
        return None
    here = raw.index_select(0, rows)
    return _flexicubes_weights_op(here, sigmoid) if activate else here


def _weights_backward(
    raw: Tensor | None,
    weights: Tensor | None,
    grad: Tensor,
    rows: Tensor,
    activate: bool,
    sigmoid: bool = False,
) -> Tensor | None:
    """The gradient of all cubes' weights: nothing where the surface does not pass."""
    if raw is None or weights is None:
        return None
    if activate and sigmoid:
        value = (weights - (1 - _SCALE) / 2) / _SCALE
        grad = grad * (_SCALE * value * (1 - value))
    elif activate:
        value = (weights - 1) / _SCALE
        grad = grad * (_SCALE * (1 - value * value))
    return torch.zeros_like(raw).index_copy_(0, rows, grad)


class _FlexiCubes(torch.autograd.Function):
    """Over flat inputs: values, positions (P, 3), features (P, F), weights of all cubes."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        positions: Tensor | None,
        features: Tensor | None,
        alpha: Tensor | None,
        beta: Tensor | None,
        gamma: Tensor | None,
        cubes: Tensor | None,
        topology: _Topology,
        level: float,
        activate: bool,
        centers: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = topology[1]
        weights = (
            _weights(alpha, rows, activate),
            _weights(beta, rows, activate),
            _weights(gamma, rows, activate, sigmoid=True),
        )
        result = _flexicubes_op(values, cubes, positions, features, *weights, list(topology), level, centers)
        vertices, faces, deviation, out = result
        ctx.save_for_backward(
            values, positions, features, alpha, beta, gamma, cubes, *weights, vertices, out, *topology
        )
        ctx.options = level, activate, centers
        ctx.mark_non_differentiable(faces)
        return vertices, faces, deviation, out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_vertices: Tensor, _: Any, grad_deviation: Tensor, grad_features: Tensor
    ) -> tuple[Any, ...]:
        values, positions, features, alpha, beta, gamma, cubes, *rest = ctx.saved_tensors
        weights, (vertices, out), topology = rest[:3], rest[3:5], rest[5:]
        level, activate, centers = ctx.options
        to_values, to_positions, to_features, *to_weights = _flexicubes_backward_op(
            grad_vertices.contiguous(), grad_features.contiguous(), grad_deviation.contiguous(),
            vertices, out,
            values, cubes, positions, features, *weights, topology, level, centers,
        )  # fmt: skip
        rows = topology[1]
        return (
            to_values,
            None if positions is None else to_positions,
            None if features is None else to_features,
            _weights_backward(alpha, weights[0], to_weights[0], rows, activate),
            _weights_backward(beta, weights[1], to_weights[1], rows, activate),
            _weights_backward(gamma, weights[2], to_weights[2], rows, activate, sigmoid=True),
            *[None] * 5,
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
    values: Tensor, cubes: Tensor | None, positions: Tensor | None, topology: _Topology
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
    topology: _Topology,
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


# ---- The public functions ----------------------------------------------------------------------------------


def _rows(tensor: Tensor | None, name: str, num_rows: int, width: int | None, rows: str) -> Tensor | None:
    """An attribute of points or cubes, given flat or in the lattice's shape, as (rows, width) or (rows,)."""
    if tensor is None:
        return None
    flat = tensor.reshape(-1) if width is None else tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    if flat.shape[0] != num_rows or (width is not None and width >= 0 and flat.shape[1] != width):
        raise ValueError(f"`{name}` must have {rows}, got {tuple(tensor.shape)}")
    return flat


def _surface(
    values: Tensor,
    cubes: Tensor | None,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    level: float,
    activate: bool,
    centers: bool,
    face_order: str,
    manifold: bool,
) -> DualSurface:
    if face_order not in _FACE_ORDERS:
        raise ValueError(f"`face_order` must be one of {', '.join(_FACE_ORDERS)}, got {face_order!r}")
    topology = _dual_surface_op(values, cubes, level, manifold, _FACE_ORDERS.index(face_order))
    if cubes is None:
        num_cubes = (values.shape[0] - 1) * (values.shape[1] - 1) * (values.shape[2] - 1)
        num_cubes = num_cubes if min(values.shape) > 0 else 0
    else:
        num_cubes = cubes.shape[0]
    num_points = values.numel()
    positions = _rows(positions, "positions", num_points, 3, "three numbers for each value")
    features = _rows(features, "features", num_points, -1, "a row for each value")
    alpha = _rows(alpha, "alpha", num_cubes, 8, f"8 numbers for each of {num_cubes} cubes")
    beta = _rows(beta, "beta", num_cubes, 12, f"12 numbers for each of {num_cubes} cubes")
    gamma = _rows(gamma, "gamma", num_cubes, None, f"a number for each of {num_cubes} cubes")
    inputs = (values, positions, features, alpha, beta, gamma)
    rows, vertex_cubes = topology[1], topology[5]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        vertices, faces, deviation, out = _FlexiCubes.apply(
            *inputs, cubes, topology, level, activate, centers
        )
    else:
        weights = (
            _weights(alpha, rows, activate),
            _weights(beta, rows, activate),
            _weights(gamma, rows, activate, sigmoid=True),
        )
        vertices, faces, deviation, out = _flexicubes_op(
            values, cubes, positions, features, *weights, list(topology), level, centers
        )
    return DualSurface(
        vertices, faces, deviation, None if features is None else out, rows.index_select(0, vertex_cubes)
    )


def flexicubes(
    sdf: Tensor,
    *,
    cubes: Tensor | None = None,
    positions: Tensor | None = None,
    features: Tensor | None = None,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    gamma: Tensor | None = None,
    activate: bool = True,
    training: bool = False,
    face_order: str = "cube",
    manifold: bool = True,
) -> DualSurface:
    """The FlexiCubes surface of signed distances on a lattice, or at the corners of a list of cubes.

    A corner is inside where its value is below nothing; nothing itself and NaN are outside. A cube's case
    gives it one to four dual vertices, each around some of its crossed edges. On an edge the surface
    crosses where the values at its ends, times the cube's ``alpha`` there, interpolate to nothing (in the
    middle where infinities or NaN leave it undefined); a dual vertex is the mean of its crossings, weighted
    by ``beta``. Each crossed edge that four crossed cubes share has a quad between their vertices, split
    along the diagonal whose two vertices have the larger product of ``gamma``; where a cube is missing
    there is no quad, and vertices without one stay.

    Two cubes that are ambiguous across the face between them (C16 and C19) take their other cases, without
    which four faces would meet in one edge.

    Dual vertices are ordered by how many their cube has, then by the cube, in the order of lowest corners.

    Args:
        sdf: (X, Y, Z) on a lattice, or (P,) beside ``cubes``: float32 or float64, contiguous.
        cubes: (N, 8) int64, the rows of ``sdf`` at corner (i & 1, i >> 1 & 1, i >> 2 & 1), i = 0..7, of each
            cube, as ``voxel_corners(...).cubes`` gives them: points in the order of (x, y, z). Cubes in any
            order, several shapes beside each other; of copies of a cube the last counts. N below 2^31.
        positions: of the points, (X, Y, Z, 3) or (P, 3), dtype of ``sdf``; must be given beside ``cubes``.
            The lattice's own, 0, 1, 2, ... along each axis, where None.
        features: of the points, (X, Y, Z, F) or (P, F), interpolated as the positions are.
        alpha: of the cubes' corners, (X - 1, Y - 1, Z - 1, 8) or (N, 8).
        beta: of the cubes' edges, (..., 12), in the order (0,1) (1,5) (4,5) (0,4) (2,3) (3,7) (6,7) (2,6)
            (2,0) (3,1) (7,5) (6,4) of their ends.
        gamma: of the cubes, (...).
        activate: the weights are a network's outputs: alpha, beta = 0.99 tanh(w) + 1 and
            gamma = 0.99 sigmoid(w) + 0.005, computed for the crossed cubes only. False: they are used as they
            are, and must be positive. Weights that are None are one.
        training: each quad becomes four triangles around a center, the mean of the middles of both diagonals
            weighted by their products of ``gamma``.
        face_order: "cube": by a quad's lowest cube; "nv": by the ends of its edge, as nv-tlabs' and kaolin's;
            "trellis": so, but those whose edge begins outside first, as TRELLIS' and TripoSF's. Quads are
            equal but for their order.
        manifold: resolve the ambiguity of C16 and C19.

    Returns:
        ``vertices`` (V, 3), dtype of ``sdf``; for training the centers follow in the order of the quads.
        ``faces`` (F, 3) int64, counterclockwise seen from outside. ``deviation``, the regularizer L_dev of
        the paper, (E,): for each pair of a dual vertex and one of its edges, in the order of vertices and
        of the case's table, by how much the distance of the vertex to the crossing (without alpha) differs
        from the vertex's mean. ``features`` (V, F) as vertices, or None. ``vertex_cubes`` (without
        centers,) int64: the cube of each dual vertex, as a row of ``cubes`` or a flat index of the
        lattice's cubes.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, corners that are not there.

    Gradient: of vertices, features and deviation with respect to ``sdf``, ``positions``, ``features``,
        ``alpha``, ``beta`` and ``gamma``, once. None through which edges are crossed.

    Device: CPU and CUDA; two syncs, as the sizes of the outputs depend on the values. The same bits for any
        number of threads, forward and backward.

    Reference: Shen et al. 2023, "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization"; cases
        of Nielson 2004 and Schaefer 2007 in NVIDIA's tables. Where a value is exactly nothing the published
        code turns a quad around, this does not.
    """
    return _surface(
        sdf, cubes, positions, features, alpha, beta, gamma, 0.0, activate, training, face_order, manifold
    )


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
    if gradient is not None:
        if not regularization > 0:
            raise ValueError(f"`regularization` must be positive, got {regularization}")
        with torch.no_grad():
            topology = _dual_surface_op(values, cubes, float(level), manifold, 0)
            positions = _rows(positions, "positions", values.numel(), 3, "three numbers for each value")
            if cubes is not None and positions is None:
                raise ValueError("`positions` must be given beside `cubes`")
            return _sharp_surface(
                values, cubes, positions, topology, float(level), gradient, float(regularization)
            )
    surface = _surface(
        values, cubes, positions, None, None, None, None, float(level), False, False, "cube", manifold
    )
    return surface.vertices, surface.faces
