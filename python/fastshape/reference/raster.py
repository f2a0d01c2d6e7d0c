"""Rasterization by brute force: every pixel of one image against every face, one face after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FARTHEST = 2.0**32 - 1
_SNAP_LIMIT = 2.0**29

Place = tuple[int, int] | None  # in sub-pixels, x and y; None: behind the camera or too far off
Edge = tuple[int, int, int]  # a, b, c of a x + b y + c


def _place(vertex: list[float], width: int, height: int) -> Place:
    x, y, _, w = vertex
    if not w > 0:
        return None
    column, row = (x / w + 1) * (128 * width), (1 - y / w) * (128 * height)
    if not (abs(column) < _SNAP_LIMIT and abs(row) < _SNAP_LIMIT):
        return None
    return round(column), round(row)  # ties to even


def _scaled(numbers: list[float], largest: float, limit: float) -> list[float]:
    """By the power of two that brings ``largest`` to [limit / 2, limit)."""
    return [math.ldexp(n * limit, -math.frexp(largest)[1]) for n in numbers]


def _through(place: tuple[int, int], direction: tuple[int, int]) -> Edge:
    x, y = direction
    return -y, x, y * place[0] - x * place[1]


def _toward(place: tuple[int, int], far: tuple[float, float, float]) -> tuple[int, int] | None:
    x, y = far[0] - place[0] * far[2], far[1] - place[1] * far[2]
    largest = max(abs(x), abs(y))
    if not largest > 0:
        return None
    x, y = _scaled([x, y], largest, 2.0**29)
    return round(x), round(y)


def _far_edge(p: tuple[float, float, float], q: tuple[float, float, float]) -> Edge | None:
    a, b, c = p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]
    largest = max(abs(a), abs(b))
    if not largest > 0:
        return None if c == 0 else (0, 0, 1 if c > 0 else -1)
    a, b, c = _scaled([a, b, c], largest, 2.0**36)
    return round(a), round(b), round(max(min(c, 2.0**61), -(2.0**61)))


def _edges(vertices: list[list[float]], width: int, height: int) -> list[Edge] | None:
    """Three edges whose numbers are not negative at the sub-pixels that are covered."""
    places = [_place(v, width, height) for v in vertices]
    # x and y in sub-pixels times w, and w.
    far = [((v[0] + v[3]) * (128 * width), (v[3] - v[1]) * (128 * height), v[3]) for v in vertices]
    edges: list[Edge] = []
    for k in range(3):
        i, j = k, (k + 1) % 3
        p, q = places[i], places[j]
        edge: Edge | None
        if p is not None and q is not None:
            edge = _through(p, (q[0] - p[0], q[1] - p[1]))
        elif p is not None:
            direction = _toward(p, far[j])
            edge = None if direction is None else _through(p, direction)
        elif q is not None:
            direction = _toward(q, far[i])
            edge = None if direction is None else _through(q, (-direction[0], -direction[1]))
        else:
            edge = _far_edge(far[i], far[j])
        if edge is None:
            return None
        edges.append(edge)
    placed = [k for k in range(3) if places[k] is not None]
    if placed:
        ab, ca = edges[placed[0]], edges[placed[0] - 1]
        area: float = ab[1] * ca[0] - ab[0] * ca[1]
    else:
        area = float(torch.linalg.det(torch.tensor(far, dtype=torch.float64)))
    if area == 0:
        return None
    sign = 1 if area > 0 else -1
    turned = [(sign * a, sign * b, sign * c) for a, b, c in edges]
    return [(a, b, c if a > 0 or (a == 0 and b > 0) else c - 1) for a, b, c in turned]


def _covered(edges: list[Edge], height: int, width: int) -> Tensor:
    rows, columns = 256 * torch.arange(height) + 128, 256 * torch.arange(width) + 128
    inside = torch.ones(height, width, dtype=torch.bool)
    for a, b, c in edges:
        inside &= a * columns + b * rows[:, None] + c >= 0
    return inside


def _plane_depth(triangle: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    """z/w of a triangle's plane at pixels, through the rounded places of its vertices if all have one."""
    height, width = x.shape
    places = [_place(v, width, height) for v in triangle.tolist()]
    if any(place is None for place in places):
        # z = plane . (x, y, w)
        plane, singular = torch.linalg.solve_ex(triangle[:, [0, 1, 3]], triangle[:, 2])
        return None if singular else plane[0] * x + plane[1] * y + plane[2]
    own = triangle[:, 2] / triangle[:, 3]
    (ax, ay), (bx, by), (cx, cy) = (place for place in places if place is not None)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    column, row = (x + 1) * (128 * width) - ax, (1 - y) * (128 * height) - ay
    second = (column * (cy - ay) - row * (cx - ax)) / area
    third = (row * (bx - ax) - column * (by - ay)) / area
    depth = own[0] + second * (own[1] - own[0]) + third * (own[2] - own[0])
    return depth.clamp(own.min(), own.max())


def pixel_positions(height: int, width: int) -> tuple[Tensor, Tensor]:
    """x (H, W) and y (H, W) float64 of the centers, in [-1, 1], y up."""
    x = (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1
    y = 1 - (2 * torch.arange(height, dtype=torch.float64) + 1) / height
    return x.expand(height, width), y[:, None].expand(height, width)


def rasterize(
    vertices_clip: Tensor, faces: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """triangle_id (H, W), barycentrics (H, W, 3), depth (H, W), w (H, W) of one image; float64.

    Differentiable with respect to ``vertices_clip`` (V, 4), for fixed ``triangle_id``.
    """
    height, width = size
    corners = vertices_clip.detach().double()
    nearest = torch.full(size, torch.inf, dtype=torch.float64)
    triangle_id = torch.full(size, -1)
    x, y = pixel_positions(height, width)
    for number, face in enumerate(faces.tolist()):
        if not all(0 <= v < len(corners) for v in face):
            continue
        triangle = corners[face]
        edges = _edges(triangle.tolist(), width, height) if triangle.isfinite().all() else None
        if edges is None:
            continue
        depth = _plane_depth(triangle, x, y)
        if depth is None:
            continue
        rounded = ((depth + 1) * (_FARTHEST / 2)).round()
        seen = _covered(edges, height, width) & (depth >= -1) & (depth <= 1) & (rounded < nearest)
        nearest[seen] = rounded[seen]
        triangle_id[seen] = number
    return triangle_id, *_points(vertices_clip, faces, triangle_id, x, y)


def _points(
    vertices_clip: Tensor, faces: Tensor, triangle_id: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    seen = triangle_id >= 0
    shape = triangle_id.shape
    barycentrics = torch.zeros(*shape, 3, dtype=torch.float64)
    depth = torch.ones(shape, dtype=torch.float64)
    point_w = torch.zeros(shape, dtype=torch.float64)
    if seen.any():
        triangles = vertices_clip.double()[faces[triangle_id[seen]]]  # (N, 3, 4)
        center = torch.stack([x[seen], y[seen], torch.ones_like(x[seen])], 1)
        weights = torch.linalg.solve(triangles[:, :, [0, 1, 3]].mT, center)
        weights = weights.clamp(min=0)
        weights = weights / weights.sum(1, keepdim=True)
        point = (weights[:, :, None] * triangles).sum(1)
        barycentrics = barycentrics.index_put((seen,), weights)
        depth = depth.index_put((seen,), point[:, 2] / point[:, 3])
        point_w = point_w.index_put((seen,), point[:, 3])
    return barycentrics, depth, point_w


def interpolate(attributes: Tensor, faces: Tensor, triangle_id: Tensor, barycentrics: Tensor) -> Tensor:
    """(H, W, C): attributes (V, C) at the pixels of one image."""
    corners = attributes[faces[triangle_id.clamp(min=0)]]  # (H, W, 3, C)
    values = (corners * barycentrics[..., None]).sum(2)
    return torch.where((triangle_id >= 0)[..., None], values, torch.zeros_like(values))


def edge_twins(faces: Tensor) -> Tensor:
    """(F, 3): for edge k of a face, from corner k to the next, ``3 * face + edge`` of the only other."""
    places: dict[frozenset[int], list[int]] = {}
    for number, face in enumerate(faces.tolist()):
        for k in range(3):
            places.setdefault(frozenset((face[k], face[(k + 1) % 3])), []).append(3 * number + k)
    twins = [-1] * (3 * len(faces))
    for pair in places.values():
        if len(pair) == 2:
            twins[pair[0]], twins[pair[1]] = pair[1], pair[0]
    return torch.tensor(twins, dtype=torch.int64).view(-1, 3)


def _end_of_surface(
    vertices: Tensor,
    faces: list[list[int]],
    twins: list[list[int]],
    face: int,
    goal: int,
    near: Tensor,
    far: Tensor,
) -> tuple[Tensor, bool] | None:
    """Where the surface that begins in ``face`` at ``near`` (2,) ends before ``far``, as a share of the way,
    or before the face ``goal`` that is seen there; and whether the edge there is nearer to the vertical.
    Positions are in pixels, vertices (V, 3) are x w, y w and w."""
    way = far - near
    entry = None
    side_shown = torch.linalg.det(vertices[faces[face]]).sign()
    for _ in range(16):
        if face == goal:
            return None
        # Signed distances of the corners from the line through both centers, times w.
        corner = vertices[faces[face]]
        offset = corner[:, :2] - near * corner[:, 2:]
        side = way[0] * offset[:, 1] - way[1] * offset[:, 0]
        side = -side if way.sum() < 0 else side  # the same line from both of its ends
        side = -side if way[0] == 0 else side  # positive is the side of greater x, or of greater y
        found = []
        for k in range(3):
            a, b = corner[k], corner[(k + 1) % 3]
            if k == entry or bool(side[k] > 0) == bool(side[(k + 1) % 3] > 0):
                continue
            t = side[k] / (side[k] - side[(k + 1) % 3])
            crossing = a + t * (b - a)
            if crossing[2] > 0:
                found.append(((crossing[:2] / crossing[2] - near) @ way, k))
        if not found:
            return None
        reach, k = max(found, key=lambda item: item[0].item())
        if reach > 1 + 1 / 128:
            return None
        twin, a, b = twins[face][k], corner[k], corner[(k + 1) % 3]
        if twin >= 0:
            # Which side the next face must show to be of the surface.
            turned = faces[twin // 3][twin % 3] != faces[face][(k + 1) % 3]
            side_shown = -side_shown if turned else side_shown
            if side_shown * torch.linalg.det(vertices[faces[twin // 3]]) > 0:
                face, entry = twin // 3, twin % 3
                continue
        if reach < -1 / 128:
            return None
        normal = torch.linalg.cross(a, b)
        return reach, bool(normal[0].abs() >= normal[1].abs())
    return None


def antialias(
    image: Tensor, triangle_id: Tensor, depth: Tensor, vertices_clip: Tensor, faces: Tensor
) -> Tensor:
    """(H, W, C), pair by pair; differentiable with respect to ``image`` and ``vertices_clip`` (V, 4)."""
    height, width = triangle_id.shape
    x, y, w = vertices_clip[:, 0], vertices_clip[:, 1], vertices_clip[:, 3]
    vertices = torch.stack([(x + w) * (width / 2), (w - y) * (height / 2), w], 1).double()
    twins, rows = edge_twins(faces).tolist(), faces.tolist()
    ids, depths = triangle_id.tolist(), depth.tolist()
    change: dict[tuple[int, int], Tensor] = {}
    for row in range(height):
        for column in range(width):
            for down in (0, 1):
                first, second = (row, column), (row + down, column + 1 - down)
                if second[0] == height or second[1] == width:
                    continue
                one, two = (ids[r][c] for r, c in (first, second))
                if one == two:
                    continue
                keys = [(i < 0, depths[r][c], i) for i, (r, c) in ((one, first), (two, second))]
                near, far = (first, second) if keys[0] < keys[1] else (second, first)
                place, goal = (torch.tensor([c + 0.5, r + 0.5]).double() for r, c in (near, far))
                faces_seen = (one, two) if keys[0] < keys[1] else (two, one)
                end = _end_of_surface(vertices, rows, twins, *faces_seen, place, goal)
                if end is None or end[1] == bool(down):
                    continue
                into, source = (far, near) if end[0] > 0.5 else (near, far)
                step = (end[0] - 0.5).abs() * (image[source] - image[into])
                change[into] = change.get(into, torch.zeros_like(step)) + step
    if not change:
        return image.clone()
    places = torch.tensor(list(change)).T
    return image.index_put(tuple(places), torch.stack(list(change.values())).to(image), accumulate=True)
