"""FlexiCubes: dual surfaces of fields with weights, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastshape._library import backend, define
from fastshape.ops.dual_topology import Topology, bytes_like, dual_surface_op, rows_of

_LARGE = 4 << 20  # bytes, from which on numpy asks for large pages
_FACE_ORDERS = ("cube", "nv", "trellis")  # FaceOrder in csrc/isosurface/dual_surface.h


class DualSurface(NamedTuple):
    """What :func:`flexicubes` gives."""

    vertices: Tensor
    faces: Tensor
    deviation: Tensor
    features: Tensor | None
    vertex_cubes: Tensor


# ---- Vertices and faces ------------------------------------------------------------------------------------


def _new_surface(
    values: Tensor, features: Tensor | None, topology: Topology, centers: bool
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


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    """On the CPU memory that the system gives as zeros, in large pages, when it is first written to.

    Most of a lattice's gradients are zeros that nobody writes. torch.zeros writes all of them, in pages of
    4 KB that are new each time, which for weights of two million cubes takes longer than the rest.
    """
    if like.device.type != "cpu" or like.element_size() * math.prod(shape) < _LARGE:
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(tuple(shape), str(like.dtype).removeprefix("torch.")))


def _new_gradients(
    values: Tensor,
    positions: Tensor | None,
    features: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    gamma: Tensor | None,
    num_cubes: int,
    zeros: Callable[[Tensor, Sequence[int]], Tensor],
) -> tuple[Tensor, ...]:
    of_points = (values.new_empty(0) if t is None else zeros(values, t.shape) for t in (positions, features))
    weights = (alpha, beta, gamma)
    of_cubes = (values.new_empty(0) if t is None else zeros(values, (num_cubes, t.shape[1])) for t in weights)
    return (zeros(values, values.shape), *of_points, *of_cubes)


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
    num_cubes: int,
    activated: bool,
) -> tuple[Tensor, ...]:
    module = backend()
    inputs = (positions, features, alpha, beta, gamma)
    gradients = _new_gradients(values, *inputs, num_cubes, _zeros)
    to_values, to_positions, to_features, *to_weights = (
        None if t is None else grad for t, grad in zip((values, *inputs), gradients, strict=True)
    )
    width = 0 if features is None else features.shape[1]
    size = module.flexicubes_backward_workspace_bytes(
        len(topology[0]), values.numel(), width, positions is not None, centers, cubes is not None,
        values.dtype == torch.float64, values.is_cuda,
    )  # fmt: skip
    module.flexicubes_backward(
        values, cubes, positions, features, alpha, beta, gamma, *topology, level, centers,
        vertices, None if features is None else out_features,
        grad_vertices, None if features is None else grad_features, grad_deviation,
        activated, bytes_like(values, size),
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
    num_cubes: int,
    activated: bool,
) -> tuple[Tensor, ...]:
    return _new_gradients(values, positions, features, alpha, beta, gamma, num_cubes, Tensor.new_empty)


_flexicubes_backward_op = define(
    "flexicubes_backward(Tensor grad_vertices, Tensor grad_features, Tensor grad_deviation, Tensor vertices,"
    f" Tensor out_features, {_FIELD}, float level, bool centers, int num_cubes, bool activated) -> ("
    + ", ".join(["Tensor"] * 6)
    + ")",
    implementation=_flexicubes_backward,
    fake=_fake_flexicubes_backward,
)


# ---- Weights -----------------------------------------------------------------------------------------------


def _new_weights(raw: Tensor, rows: Tensor, sigmoid: bool) -> Tensor:
    return raw.new_empty(rows.shape[0], raw.shape[1])


def _flexicubes_weights(raw: Tensor, rows: Tensor, sigmoid: bool) -> Tensor:
    weights = _new_weights(raw, rows, sigmoid)
    if raw.is_contiguous():
        backend().flexicubes_weights(raw, rows, sigmoid, weights)
    else:  # columns of a network's output, of which few rows are asked for
        here = raw.index_select(0, rows)
        backend().flexicubes_weights(here, torch.arange(len(here), device=raw.device), sigmoid, weights)
    return weights


_flexicubes_weights_op = define(
    "flexicubes_weights(Tensor raw, Tensor rows, bool sigmoid) -> Tensor",
    implementation=_flexicubes_weights,
    fake=_new_weights,
)


def _weights_of(
    alpha: Tensor | None, beta: Tensor | None, gamma: Tensor | None, rows: Tensor, activate: bool
) -> list[Tensor | None]:
    """Those of the crossed cubes."""

    def here(raw: Tensor | None, sigmoid: bool) -> Tensor | None:
        if raw is None:
            return None
        return _flexicubes_weights_op(raw, rows, sigmoid) if activate else raw.index_select(0, rows)

    return [here(alpha, False), here(beta, False), here(gamma, True)]


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
        topology: Topology,
        level: float,
        activate: bool,
        centers: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = _weights_of(alpha, beta, gamma, topology[1], activate)
        result = _flexicubes_op(values, cubes, positions, features, *weights, list(topology), level, centers)
        vertices, faces, deviation, out = result
        ctx.save_for_backward(values, positions, features, cubes, *weights, vertices, out, *topology)
        raw = next((t for t in (alpha, beta, gamma) if t is not None), None)
        ctx.options = level, centers, 0 if raw is None else raw.shape[0], activate
        ctx.mark_non_differentiable(faces)
        return vertices, faces, deviation, out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_vertices: Tensor, _: Any, grad_deviation: Tensor, grad_features: Tensor
    ) -> tuple[Any, ...]:
        values, positions, features, cubes, *rest = ctx.saved_tensors
        weights, (vertices, out), topology = rest[:3], rest[3:5], rest[5:]
        gradients = _flexicubes_backward_op(
            grad_vertices.contiguous(), grad_features.contiguous(), grad_deviation.contiguous(),
            vertices, out,
            values, cubes, positions, features, *weights, topology, *ctx.options,
        )  # fmt: skip
        inputs = (values, positions, features, *weights)
        given = (None if t is None else grad for t, grad in zip(inputs, gradients, strict=True))
        return (*given, *[None] * 5)


# ---- The public function -----------------------------------------------------------------------------------


def surface_of(
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
    topology = dual_surface_op(values, cubes, level, manifold, _FACE_ORDERS.index(face_order))
    if cubes is None:
        num_cubes = (values.shape[0] - 1) * (values.shape[1] - 1) * (values.shape[2] - 1)
        num_cubes = num_cubes if min(values.shape) > 0 else 0
    else:
        num_cubes = cubes.shape[0]
    num_points = values.numel()
    positions = rows_of(positions, "positions", num_points, 3, "three numbers for each value")
    features = rows_of(features, "features", num_points, -1, "a row for each value")
    alpha = rows_of(alpha, "alpha", num_cubes, 8, f"8 numbers for each of {num_cubes} cubes")
    beta = rows_of(beta, "beta", num_cubes, 12, f"12 numbers for each of {num_cubes} cubes")
    gamma = rows_of(gamma, "gamma", num_cubes, None, f"a number for each of {num_cubes} cubes")
    inputs = (values, positions, features, alpha, beta, gamma)
    rows, vertex_cubes = topology[1], topology[5]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        vertices, faces, deviation, out = _FlexiCubes.apply(
            *inputs, cubes, topology, level, activate, centers
        )
    else:
        weights = _weights_of(alpha, beta, gamma, rows, activate)
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
    return surface_of(
        sdf, cubes, positions, features, alpha, beta, gamma, 0.0, activate, training, face_order, manifold
    )
