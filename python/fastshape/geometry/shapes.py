"""Procedural solids, for demonstrations, tests and training without files.

Every shape is closed unless it says otherwise, deterministic, and normalized to [-1, 1]^3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastshape.geometry.mesh import Mesh, normalize
from fastshape.geometry.optional import require


def _manifold() -> Any:
    return require("manifold3d", "demo", "making solids")


def _from_manifold(solid: Any) -> Mesh:
    mesh = solid.to_mesh()
    vertices = np.asarray(mesh.vert_properties, np.float64)[:, :3]
    return _finish(vertices, np.asarray(mesh.tri_verts, np.int64))


def _finish(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return normalize(Mesh(torch.from_numpy(vertices.copy()), torch.from_numpy(faces.copy())))[0]


def _grid_faces(rows: int, columns: int, *, wrap_rows: bool, wrap_columns: bool) -> np.ndarray:
    """Triangles over a (rows, columns) grid of vertices."""
    i, j = np.meshgrid(
        np.arange(rows if wrap_rows else rows - 1),
        np.arange(columns if wrap_columns else columns - 1),
        indexing="ij",
    )
    a, b = i * columns + j, (i + 1) % rows * columns + j
    c, d = (i + 1) % rows * columns + (j + 1) % columns, i * columns + (j + 1) % columns
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


def csg(seed: int) -> Mesh:
    """A random solid: a union of 1 to 4 boxes, cylinders and balls, less up to 3 through holes."""
    m = _manifold().Manifold
    rng = np.random.default_rng(seed)

    def primitive() -> Any:
        kind = rng.integers(3)
        size = rng.uniform(0.3, 1.0, 3)
        if kind == 0:
            solid = m.cube(size * 1.4, True)
        elif kind == 1:
            taper = rng.choice([1.0, rng.uniform(0.3, 1.0)])
            solid = m.cylinder(1.6 * size[2], 0.6 * size[0], 0.6 * size[0] * taper, 64, True)
        else:
            solid = m.sphere(0.7 * size[0], 64).scale((1.0, rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0)))
        aligned = rng.random() < 0.5
        angles = rng.integers(0, 4, 3) * 90.0 if aligned else rng.uniform(0, 360, 3)
        return solid.rotate(tuple(angles))

    solid = primitive()
    for _ in range(rng.integers(0, 4)):
        solid += primitive().translate(tuple(rng.uniform(-0.45, 0.45, 3)))
    for _ in range(rng.integers(0, 4)):
        radius = rng.uniform(0.08, 0.22)
        hole = (
            m.cylinder(4, radius, radius, 48, True)
            if rng.random() < 0.7
            else m.cube((2 * radius, 1.6 * radius, 4), True)
        )
        turned = hole.rotate(tuple(rng.integers(0, 2, 3) * 90.0)).translate(tuple(rng.uniform(-0.3, 0.3, 3)))
        cut = solid - turned
        if cut.volume() > 0.3 * solid.volume():
            solid = cut
    return _from_manifold(solid)


def multi_part(seed: int = 0, parts: int = 3) -> Mesh:
    """Random solids side by side that do not touch."""
    placed, at = [], 0.0
    for part in range(parts):
        mesh = csg(1000 * (seed + 1) + part).to(torch.float64)
        low, high = mesh.bounds
        vertices = mesh.vertices + torch.tensor([at - float(low[0]), 0.0, 0.0], dtype=torch.float64)
        placed.append(Mesh(vertices, mesh.faces))
        at += float(high[0] - low[0]) + 0.15
    return normalize(Mesh.join(placed))[0]


def torus(major: float = 0.7, minor: float = 0.25, segments: int = 96) -> Mesh:
    """A ring around the z axis."""
    around, across = segments, max(segments // 2, 3)
    u = np.arange(around)[:, None] * (2 * math.pi / around)
    v = np.arange(across)[None, :] * (2 * math.pi / across)
    radius = major + minor * np.cos(v)
    points = np.stack([radius * np.cos(u), radius * np.sin(u), minor * np.sin(v) + 0 * u], -1)
    return _finish(points.reshape(-1, 3), _grid_faces(around, across, wrap_rows=True, wrap_columns=True))


def knot(p: int = 2, q: int = 3, radius: float = 0.16, segments: int = 384) -> Mesh:
    """A tube along the (p, q) torus knot."""
    t = np.arange(segments) * (2 * math.pi / segments)
    ring = 0.65 + 0.3 * np.cos(q * t)
    center = np.stack([ring * np.cos(p * t), ring * np.sin(p * t), 0.3 * np.sin(q * t)], 1)
    tangent = np.roll(center, -1, 0) - np.roll(center, 1, 0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    outward = np.stack([np.cos(p * t), np.sin(p * t), 0 * t], 1)
    side = np.cross(tangent, outward)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, tangent)
    v = np.arange(32)[None, :, None] * (2 * math.pi / 32)
    points = center[:, None] + radius * (np.cos(v) * up[:, None] - np.sin(v) * side[:, None])
    mesh = _finish(points.reshape(-1, 3), _grid_faces(segments, 32, wrap_rows=True, wrap_columns=True))
    return mesh if mesh.volume > 0 else mesh.flip()


def plate(thickness: float = 0.04, holes: int = 4) -> Mesh:
    """A thin square plate with round holes."""
    m = _manifold().Manifold
    solid = m.cube((2, 2, thickness), True)
    for hole in range(holes):
        angle = 2 * math.pi * (hole + 0.5) / holes
        drill = m.cylinder(1, 0.22, 0.22, 64, True).translate(
            (0.6 * math.cos(angle), 0.6 * math.sin(angle), 0)
        )
        solid -= drill
    return _from_manifold(solid)


def nested_shells(count: int = 2) -> Mesh:
    """Hollow balls inside each other, with an octant cut away so that they show."""
    m = _manifold().Manifold
    solid = m()
    for shell in range(count):
        outer = 1 - 0.4 * shell
        solid += m.sphere(outer, 96) - m.sphere(outer - 0.15, 96)
    return _from_manifold(solid - m.cube((2, 2, 2)).translate((0, -2, 0)))


def gear(teeth: int = 12, thickness: float = 0.4) -> Mesh:
    """A gear wheel with a square bore and a hub."""
    module = _manifold()
    outline = []
    for tooth in range(teeth):
        for offset, radius in ((-0.30, 0.8), (-0.17, 1.0), (0.17, 1.0), (0.30, 0.8)):
            angle = 2 * math.pi * (tooth + offset) / teeth
            outline.append((radius * math.cos(angle), radius * math.sin(angle)))
    wheel = module.CrossSection([outline]).extrude(thickness).translate((0, 0, -thickness / 2))
    hub = module.Manifold.cylinder(1.8 * thickness, 0.36, 0.36, 64, True)
    recess = module.Manifold.cylinder(thickness, 0.66, 0.66, 96, True).translate((0, 0, 0.75 * thickness))
    return _from_manifold(wheel - recess + hub - module.Manifold.cube((0.3, 0.3, 4), True))


def half_pipe(segments: int = 48) -> Mesh:
    """Half of a cylinder's wall: an open surface without thickness."""
    angle = np.linspace(0, math.pi, segments)[:, None]
    length = np.linspace(-1, 1, 9)[None, :]
    points = np.stack([np.cos(angle) + 0 * length, length + 0 * angle, np.sin(angle) + 0 * length], -1)
    return _finish(
        points.reshape(-1, 3), _grid_faces(segments, 9, wrap_rows=False, wrap_columns=False)[:, ::-1]
    )


NAMES: dict[str, Callable[[], Mesh]] = {
    "torus": torus,
    "knot": knot,
    "gear": gear,
    "plate": plate,
    "nested_shells": nested_shells,
    "multi_part": multi_part,
    "half_pipe": half_pipe,
}


def make(name: str | int) -> Mesh:
    """A shape by its name ("torus", "gear", ...), or the random solid of a seed (12 or "csg-12").

    Raises:
        ValueError: unknown name; lists those that exist.
    """
    if isinstance(name, int):
        return csg(name)
    if name in NAMES:
        return NAMES[name]()
    seed = name.removeprefix("csg-")
    if seed.isdigit():
        return csg(int(seed))
    raise ValueError(f"unknown shape {name!r}; expected a seed, 'csg-<seed>' or one of {', '.join(NAMES)}")
