"""FlexiCubes in plain torch: the formulas of the paper over tables of all cubes and all edges."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastshape.reference.flexicubes_table import EDGES, ambiguous_cases, case_vertices


class Surface(NamedTuple):
    vertices: Tensor  # (V, 3), with training=True the quads' centers behind the dual vertices
    faces: Tensor  # (F, 3)
    deviation: Tensor  # (E,)
    features: Tensor | None  # as the vertices
    vertex_cubes: Tensor  # (V,) the row in `cubes` of each dual vertex


def activate(beta: Tensor, alpha: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights from a network's outputs."""
    return 0.99 * beta.tanh() + 1, 0.99 * alpha.tanh() + 1, 0.99 * gamma.sigmoid() + 0.005


def lattice(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The cubes of a lattice of points, (N, 8) flat indices, and its points (P, 3)."""
    points = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, 3)
    index = torch.arange(len(points)).view(shape)
    corners = [
        index[i & 1 : shape[0] - 1 + (i & 1)][:, i >> 1 & 1 : shape[1] - 1 + (i >> 1 & 1)][
            :, :, i >> 2 & 1 : shape[2] - 1 + (i >> 2 & 1)
        ].flatten()
        for i in range(8)
    ]
    return torch.stack(corners, 1), points


def voxel_corners(coords: Tensor) -> tuple[Tensor, Tensor]:
    """The corners (P, D) of voxels at coords (N, D), in order, and which of them are a voxel's: (N, 8)."""
    steps = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])
    steps = torch.nn.functional.pad(steps, (coords.shape[1] - 3, 0))
    all_corners = coords.long()[:, None] + steps
    corners, index = all_corners.view(-1, coords.shape[1]).unique(dim=0, return_inverse=True)
    return corners.to(coords.dtype), index.view(-1, 8)


def corner_mean(values: Tensor, index: Tensor, num_corners: int) -> Tensor:
    """(P, C): the mean of what the voxels (N, 8, C) say of each corner."""
    flat = index.flatten()
    sums = values.new_zeros(num_corners, values.shape[2]).index_add(0, flat, values.flatten(0, 1))
    return sums / torch.bincount(flat, minlength=num_corners)[:, None]


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """(256, 4, 7) edges of each case's vertices, -1 where there are no more; (256, 4): axis, direction, other
    case, is ambiguous."""
    edges, ambiguous = torch.full((256, 4, 7), -1), torch.zeros(256, 4, dtype=torch.long)
    for case in range(256):
        for vertex, group in enumerate(case_vertices(case)):
            edges[case, vertex, : len(group)] = torch.tensor(group)
    for case, row in ambiguous_cases().items():
        ambiguous[case] = torch.tensor([*row, 1])
    return edges, ambiguous


def resolved_cases(inside: Tensor, cubes: Tensor) -> Tensor:
    """The cases of the cubes; two that are ambiguous across their common face take their other ones."""
    cases = (inside[cubes] * (1 << torch.arange(8))).sum(1)
    axis, direction, other, ambiguous = _tables()[1][cases].unbind(1)
    at = torch.full((len(inside),), -1)
    at[cubes[:, 0]] = torch.arange(len(cubes))  # the cube whose lowest corner a point is
    neighbors = torch.full((len(cubes), 3, 2), -1)  # along each axis, up and down
    for k in range(3):
        above = at[cubes[:, 1 << k]]
        neighbors[:, k, 0] = above
        neighbors[above[above >= 0], k, 1] = (above >= 0).nonzero()[:, 0]
    there = neighbors[torch.arange(len(cubes)), axis, (direction < 0).long()]
    both = (ambiguous == 1) & (there >= 0) & (ambiguous[there.clamp_min(0)] == 1)
    return torch.where(both, other, cases)


def flexicubes(
    sdf: Tensor,
    cubes: Tensor,
    positions: Tensor,
    beta: Tensor | None = None,
    alpha: Tensor | None = None,
    gamma: Tensor | None = None,
    features: Tensor | None = None,
    *,
    training: bool = False,
    face_order: str = "nv",
    manifold: bool = True,
) -> Surface:
    """The dual surface of values (P,) at positions (P, 3); weights are positive; differentiable.

    ``cubes`` (N, 8) are in the order of their lowest corners, corners in the order of (x, y, z).
    """
    dtype, inside = sdf.dtype, sdf < 0
    cases = resolved_cases(inside, cubes) if manifold else (inside[cubes] * (1 << torch.arange(8))).sum(1)
    count = inside[cubes].sum(1)
    surface = ((count > 0) & (count < 8)).nonzero()[:, 0]
    cubes, cases = cubes[surface], cases[surface]
    ones = torch.ones(len(surface), 1, dtype=dtype)
    beta = ones.expand(-1, 12) if beta is None else beta[surface]
    alpha = ones.expand(-1, 8) if alpha is None else alpha[surface]
    gamma = ones[:, 0] if gamma is None else gamma[surface]

    # Dual vertices: those of cubes that have one, then of cubes that have two, ...
    groups = _tables()[0][cases]  # (S, 4, 7)
    used = groups[:, :, 0] >= 0
    number = used.sum(1)
    order = [((number == n)[:, None] & used).nonzero() for n in (1, 2, 3, 4)]
    cube, slot = torch.cat(order).unbind(1)
    edges = groups[cube, slot]  # (V, 7)
    vertex, k = (edges >= 0).nonzero(as_tuple=True)
    edge = edges[vertex, k]  # (E,): the pairs of a vertex and an edge
    pair_cube = cube[vertex]
    ends = torch.tensor(EDGES)[edge]  # (E, 2) corners of the cube
    points = cubes[pair_cube[:, None], ends]
    values, places = sdf[points], positions[points]
    weighted = values * alpha[pair_cube[:, None], ends]
    share = beta[pair_cube, edge]

    def crossing(values: Tensor, attributes: Tensor) -> Tensor:
        a, b = values[:, :1], values[:, 1:]
        return (attributes[:, 0] * b - attributes[:, 1] * a) / (b - a)

    def mean(attributes: Tensor, weight: Tensor) -> Tensor:
        zeros = attributes.new_zeros(len(cube), attributes.shape[1])
        sums = zeros.index_add(0, vertex, attributes * weight[:, None])
        return sums / attributes.new_zeros(len(cube)).index_add(0, vertex, weight)[:, None]

    vertices = mean(crossing(weighted, places), share)
    offset = crossing(values, places) - vertices[vertex]
    distance = offset.norm(dim=1)
    deviation = (distance - mean(distance[:, None], torch.ones_like(distance))[vertex, 0]).abs()
    painted = None if features is None else mean(crossing(weighted, features[points]), share)

    # Quads: the edges that four cubes share.
    key = points[:, 0] * len(sdf) + points[:, 1]
    by_edge = (key * len(cases) + pair_cube).argsort()
    sorted_key, counts = key[by_edge].unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    first = first[counts == 4]
    around = vertex[by_edge[first[:, None] + torch.arange(4)]]  # (Q, 4) in the order of the cubes
    flipped = ~inside[sorted_key[counts == 4] // len(sdf)]
    turn = torch.tensor([[2, 3, 1, 0], [0, 1, 3, 2]])[flipped.long()]
    quads = around.gather(1, turn)
    if face_order == "trellis":
        quads = torch.cat([quads[flipped], quads[~flipped]])
    elif face_order != "nv":
        raise ValueError(f"the reference has the orders nv and trellis, got {face_order}")

    corner_gamma = gamma[cube][quads]
    even, odd = corner_gamma[:, 0] * corner_gamma[:, 2], corner_gamma[:, 1] * corner_gamma[:, 3]
    if not training:
        split = torch.where(
            (even > odd)[:, None],
            quads[:, [0, 1, 2, 0, 2, 3]],
            quads[:, [0, 1, 3, 3, 1, 2]],
        )
        return Surface(vertices, split.view(-1, 3), deviation, painted, surface[cube])

    def center(attributes: Tensor) -> Tensor:
        corner = attributes[quads]
        sums = (
            even[:, None] * (corner[:, 0] + corner[:, 2]) / 2
            + odd[:, None] * (corner[:, 1] + corner[:, 3]) / 2
        )
        return torch.cat([attributes, sums / (even + odd + 1e-8)[:, None]])

    middle = (len(vertices) + torch.arange(len(quads)))[:, None].expand(-1, 4)
    fan = torch.stack([quads, quads.roll(-1, 1), middle], 2).view(-1, 3)
    painted = None if painted is None else center(painted)
    return Surface(center(vertices), fan, deviation, painted, surface[cube])
