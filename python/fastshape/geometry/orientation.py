"""Which way the faces of a mesh should be turned, however badly they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry.mesh import Mesh


def orient(mesh: Mesh) -> Mesh:
    """The mesh with its faces turned by the rule of :func:`oriented_faces`, and a note of how many were."""
    faces = oriented_faces(mesh.vertices.detach(), mesh.faces)
    turned = int((faces != mesh.faces).any(1).sum())
    if not turned:
        return mesh
    return replace(mesh, faces=faces, notes=(*mesh.notes, f"{turned} faces turned over"))


def oriented_faces(vertices: Tensor, faces: Tensor) -> Tensor:
    """The faces, some of them reversed, so that winding numbers mean inside and outside.

    1. Faces that share an edge (of exactly two faces; vertices at equal positions are one, duplicates of a
       face move together) are turned alike: across the edge they must run in opposite directions. Of the
       two ways to turn such a component, the one that leaves more of its area as it was is kept.
    2. A component that lies inside no other is turned so that its volume is positive.
    3. A component inside others keeps its turn in relation to theirs: a cavity stays a cavity, a solid in a
       solid stays solid, also where the whole mesh is inside out.

    Args:
        vertices: (V, 3), float32 or float64, finite.
        faces: (F, 3), int64.

    Returns:
        (F, 3) int64: each face as it was, or with its last two vertices exchanged.
    """
    if not len(faces):
        return faces
    points = vertices.double()
    corners = points[faces]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = 0.5 * cross.norm(dim=1)
    component, flip = face_components(row_numbers(points)[faces])

    # Of a component and its reverse, the one that flips less area.
    balance = area.new_zeros(len(faces)).index_add_(0, component, torch.where(flip, -area, area))
    flip ^= balance[component] < 0

    def turn(flip: Tensor) -> Tensor:
        return torch.where(flip[:, None], faces[:, [0, 2, 1]], faces)

    # Volumes about the components' own middles, so that holes matter little.
    total = torch.zeros_like(area).index_add_(0, component, area).clamp_min(1e-300)
    weighted = area[:, None] * corners.mean(1)
    middle = torch.zeros_like(corners[:, 0]).index_add_(0, component, weighted) / total[:, None]
    relative = (corners - middle[component][:, None]).unbind(1)
    volume = (relative[0] * torch.linalg.cross(relative[1], relative[2])).sum(1)
    volume = torch.zeros_like(area).index_add_(0, component, torch.where(flip, -volume, volume))
    outward = flip ^ (volume[component] < 0)

    if bool((component == component[0]).all()):
        return turn(outward)

    # Points just outside of each component, over the faces that lie farthest along the axes, either way:
    # others that hold them all hold the component.
    size = (points.amax(0) - points.amin(0)).max()
    normal = torch.nn.functional.normalize(cross, dim=1, eps=1e-300)
    outside = corners.mean(1) + 1e-6 * size * torch.where(outward[:, None], -normal, normal)
    roots = component.unique()
    samples = []
    for axis in range(3):
        for descending in (False, True):
            order = corners[:, :, axis].mean(1).sort(stable=True, descending=descending).indices
            samples.append(outside[_last_of_each(component[order], order, len(faces))[roots]])

    def holds(some: Tensor) -> Tensor:
        """(F,) bool: of each component, whether faces wind about all of its samples."""
        bvh = ops.build_bvh(points, some)
        found = torch.zeros(len(faces), dtype=torch.bool, device=faces.device)
        found[roots] = torch.stack([ops.winding_number(place, bvh) > 0.5 for place in samples]).all(0)
        return found[component]

    enclosed = holds(turn(outward))
    outermost = ~enclosed
    if not bool(outermost.any()):
        return turn(flip)
    # What lies inside, however deep, follows the outermost component around it.
    inside_out = holds(turn(~flip)[outermost])
    return turn(torch.where(enclosed, flip ^ inside_out, outward))


def closing_faces(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Faces that close the holes of a mesh: with them every edge is run through as often in one direction as
    in the other.

    Each connected piece of the border becomes a fan around the mean of its vertices. Vertices at equal
    positions are one. Edges of three faces and more need no closing if their faces balance.

    Args:
        vertices: (V, 3), float32 or float64, finite.
        faces: (F, 3), int64.

    Returns:
        (V + C, 3), the vertices and the middle of each fan; (K, 3) int64, the new faces, none for a mesh
        without a border.
    """
    first = first_at(vertices)
    start = first[faces].flatten()
    end = first[faces.roll(-1, 1)].flatten()
    keys = torch.minimum(start, end) * len(vertices) + torch.maximum(start, end)
    signs = (end > start).long() - (end < start).long()
    keys, order = keys.sort(stable=True)
    last = torch.ones_like(keys, dtype=torch.bool)
    last[:-1] = keys[1:] != keys[:-1]
    balance = signs[order].cumsum(0)[last].diff(prepend=signs.new_zeros(1))
    keys = keys[last]
    border = torch.repeat_interleave(balance.abs())  # rows, as often as they are missing
    low, high = keys[border] // len(vertices), keys[border] % len(vertices)
    up = balance[border] > 0
    tail, head = torch.where(up, high, low), torch.where(up, low, high)  # against the mesh's own direction

    _, piece = joined(tail, head, len(vertices))[tail].unique(return_inverse=True)
    count = int(piece.max()) + 1 if len(piece) else 0
    weight = vertices.new_zeros(count).index_add_(0, piece, vertices.new_ones(len(piece)))
    total = vertices.new_zeros(count, 3).index_add_(0, piece, vertices[tail])
    return torch.cat([vertices, total / weight[:, None]]), torch.stack([tail, head, len(vertices) + piece], 1)


def joined(u: Tensor, v: Tensor, count: int) -> Tensor:
    """(count,) int64: for each node the lowest one that the edges u-v join it with."""
    parent = torch.arange(count, device=u.device)
    while True:
        u, v = parent[u], parent[v]
        differ = u != v
        u, v = u[differ], v[differ]
        if not len(u):
            return parent
        parent.scatter_reduce_(0, torch.maximum(u, v), torch.minimum(u, v), "amin")
        while True:
            above = parent[parent]
            if torch.equal(above, parent):
                break
            parent = above


def first_at(vertices: Tensor) -> Tensor:
    """(V,) int64: for each vertex the first of those at its place."""
    number = row_numbers(vertices)
    rows = torch.arange(len(vertices), device=vertices.device)
    return torch.full_like(rows, len(vertices)).scatter_reduce(0, number, rows, "amin")[number]


def _last_of_each(keys: Tensor, values: Tensor, count: int) -> Tensor:
    """For every key below ``count`` the last of its values, -1 where there is none."""
    order = keys.sort(stable=True).indices
    keys, values = keys[order], values[order]
    last = torch.ones_like(keys, dtype=torch.bool)
    last[:-1] = keys[1:] != keys[:-1]
    return torch.full((count,), -1, dtype=torch.int64, device=keys.device).index_put_(
        (keys[last],), values[last]
    )


def row_numbers(rows: Tensor) -> Tensor:
    """(N,) int64: equal numbers for equal rows of (N, 3), ascending with the rows.

    Several times faster than ``torch.unique(dim=0)``.
    """
    order = torch.arange(len(rows), device=rows.device)
    for axis in (2, 1, 0):
        order = order[rows[order, axis].sort(stable=True).indices]
    ranked = rows[order]
    fresh = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(1).long()
    return torch.empty_like(fresh).index_put_((order,), fresh.cumsum(0))


def face_components(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Connected components of faces over their two-faced edges.

    Returns:
        (F,) int64, a face of the component, the same for all of it; (F,) bool, whether the face must be
        reversed to agree with that one. Around a loop that has no consistent turn (a Moebius strip) some
        edge stays wrong.
    """
    count = len(faces)
    device = faces.device
    # Copies of a face, turned either way, follow the first of them.
    ranked, place = faces.sort(dim=1)
    odd = (place[:, 0] > place[:, 1]) ^ (place[:, 1] > place[:, 2]) ^ (place[:, 0] > place[:, 2])
    proper = (ranked[:, 0] != ranked[:, 1]) & (ranked[:, 1] != ranked[:, 2])
    number = torch.arange(count, device=device)
    copies = row_numbers(ranked)
    first = torch.full_like(number, count).scatter_reduce(0, copies, number, "amin")[copies]
    single = proper & (first == number)

    # Edges of exactly two faces: they agree if one runs up (a < b) and the other down.
    kept = torch.nonzero(single).flatten()
    start = faces[kept]
    end = start.roll(-1, 1)
    top = int(faces.max()) + 1
    keys = (torch.minimum(start, end) * top + torch.maximum(start, end)).flatten()
    up = (start < end).flatten()
    keys, order = keys.sort(stable=True)
    same = keys[1:] == keys[:-1]
    edge = torch.zeros(len(keys), dtype=torch.int64, device=device)
    edge[1:] = (~same).long().cumsum(0)
    leads = torch.nonzero(same & (torch.bincount(edge)[edge[:-1]] == 2)).flatten()
    a, b = order[leads], order[leads + 1]
    u = torch.cat([kept[a // 3], torch.nonzero(~single & proper).flatten()])
    v = torch.cat([kept[b // 3], first[~single & proper]])
    differ = torch.cat([up[a] == up[b], (odd != odd[first])[~single & proper]])

    # Hook larger roots to smaller ones, compress, until no edge joins two roots. The lowest bit is the turn
    # in relation to the parent.
    parent = number
    turned = torch.zeros(count, dtype=torch.bool, device=device)
    while len(u):
        low, high = torch.minimum(parent[u], parent[v]), torch.maximum(parent[u], parent[v])
        open_edge = low != high
        u, v, differ, low, high = (
            u[open_edge],
            v[open_edge],
            differ[open_edge],
            low[open_edge],
            high[open_edge],
        )
        if not len(u):
            break
        code = 2 * low + (differ ^ turned[u] ^ turned[v]).long()
        hook = torch.full_like(parent, 2 * count).scatter_reduce(0, high, code, "amin")
        hooked = hook < 2 * count
        parent = torch.where(hooked, hook // 2, parent)
        turned = torch.where(hooked, hook % 2 == 1, turned)
        while True:
            above = parent[parent]
            if torch.equal(above, parent):
                break
            turned = turned ^ torch.where(parent == above, torch.zeros_like(turned), turned[parent])
            parent = above
    return parent, turned
