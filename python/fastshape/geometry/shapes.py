"""Procedural shapes, for demonstrations, tests and training without files.

Every shape is deterministic and normalized to [-1, 1]^3. A name is a shape ("torus"), or one of endlessly
many of its kind ("torus-7", "csg-12"). All are closed but the half pipe; `inside` tells which points a shape
encloses, without asking its triangles.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshape.geometry.damage import DAMAGES as DAMAGES
from fastshape.geometry.damage import damage as damage
from fastshape.geometry.mesh import Mesh
from fastshape.geometry.solids import (
    ROUNDING,
    Inside,
    Made,
    Solid,
    any_of,
    convex,
    finish,
    grid_faces,
    manifold_module,
    mesh_of,
    prism,
)

# ---- The shapes --------------------------------------------------------------------------------------------


def _csg(rng: np.random.Generator) -> Made:
    m = manifold_module().Manifold

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

    solid = convex(primitive())
    for _ in range(rng.integers(0, 4)):
        solid += convex(primitive().translate(tuple(rng.uniform(-0.45, 0.45, 3))))
    for _ in range(rng.integers(0, 4)):
        radius = rng.uniform(0.08, 0.22)
        hole = (
            m.cylinder(4, radius, radius, 48, True)
            if rng.random() < 0.7
            else m.cube((2 * radius, 1.6 * radius, 4), True)
        )
        turned = hole.rotate(tuple(rng.integers(0, 2, 3) * 90.0)).translate(tuple(rng.uniform(-0.3, 0.3, 3)))
        cut = solid - convex(turned)
        if cut.manifold.volume() > 0.3 * solid.manifold.volume():
            solid = cut
    return solid.made()


def csg(seed: int) -> Mesh:
    """A random solid: a union of 1 to 4 boxes, cylinders and balls, less up to 3 through holes."""
    return _csg(np.random.default_rng(seed)).mesh


def _blobs(rng: np.random.Generator) -> Made:
    m = manifold_module().Manifold
    parts: list[Solid] = []
    at, last = np.zeros(3), 0.0
    for _ in range(rng.integers(2, 15)):
        kind, size = rng.integers(4), rng.uniform(0.25, 0.8, 3)
        if kind == 0:
            block = m.cube(size, True)
        elif kind == 1:
            block = m.sphere(0.5, 32).scale(tuple(size))
        elif kind == 2:
            sides = int(rng.integers(3, 25))
            block = m.cylinder(size[2], 0.5 * size[0], 0.5 * size[0] * rng.uniform(0.2, 1.0), sides, True)
        else:
            block = m.hull_points(rng.uniform(-0.5, 0.5, (int(rng.integers(8, 25)), 3)) * size)
        direction = rng.normal(size=3)
        reach = 0.35 * (last + size.min())  # closer than the two would touch
        at = at + direction / np.linalg.norm(direction) * (reach if parts else 0.0)
        last = size.min()
        parts.append(convex(block.rotate(tuple(rng.uniform(0, 360, 3))).translate(tuple(at))))
    return finish(Mesh.join([part.mesh() for part in parts]), any_of([part.rule for part in parts]))


def blobs(seed: int = 0) -> Mesh:
    """2 to 14 convex blocks that overlap and are not united, as in pybullet's `random_urdfs`: each is closed,
    and the shape is their union."""
    return _blobs(np.random.default_rng(seed)).mesh


def _multi_part(seed: int, parts: int) -> Made:
    placed, rules, at = [], [], 0.0
    for part in range(parts):
        made = _csg(np.random.default_rng(1000 * (seed + 1) + part))
        mesh = made.mesh.to(torch.float64)
        low, high = mesh.bounds
        shift = torch.tensor([at - float(low[0]), 0.0, 0.0], dtype=torch.float64)
        placed.append(Mesh(mesh.vertices + shift, mesh.faces))
        assert made.inside is not None
        rules.append(lambda points, inside=made.inside, shift=shift: inside(points - shift))
        at += float(high[0] - low[0]) + 0.15
    return finish(Mesh.join(placed), any_of(rules), lambda: ROUNDING)


def multi_part(seed: int = 0, parts: int = 3) -> Mesh:
    """Random solids side by side that do not touch."""
    return _multi_part(seed, parts).mesh


def _torus(major: float, minor: float, segments: int) -> Made:
    around, across = segments, max(segments // 2, 3)
    u = np.arange(around)[:, None] * (2 * math.pi / around)
    v = np.arange(across)[None, :] * (2 * math.pi / across)
    radius = major + minor * np.cos(v)
    points = np.stack([radius * np.cos(u), radius * np.sin(u), minor * np.sin(v) + 0 * u], -1)
    faces = grid_faces(around, across, wrap_rows=True, wrap_columns=True)
    # Chords lie below their arcs by radius * (1 - cos(half the angle)), once along each direction.
    error = minor * (1 - math.cos(math.pi / across)) + (major + minor) * (1 - math.cos(math.pi / around))

    def rule(points: Tensor) -> Tensor:
        return torch.hypot(points[:, :2].norm(dim=1) - major, points[:, 2]) <= minor

    return finish(mesh_of(points.reshape(-1, 3), faces), rule, lambda: error)


def torus(major: float = 0.7, minor: float = 0.25, segments: int = 96) -> Mesh:
    """A ring around the z axis."""
    return _torus(major, minor, segments).mesh


def _knot(p: int, q: int, radius: float, segments: int) -> Made:
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
    mesh = mesh_of(points.reshape(-1, 3), grid_faces(segments, 32, wrap_rows=True, wrap_columns=True))
    mesh = mesh if mesh.volume > 0 else mesh.flip()

    start = torch.from_numpy(center)
    along = start.roll(-1, 0) - start
    squared = along.square().sum(1)

    def distance(points: Tensor) -> Tensor:
        """To the tube's middle line."""
        to = points @ along.T - (start * along).sum(1)
        t = (to / squared).clamp(0, 1)
        # |x - s - t a|^2, with the products written out so that no (N, segments, 3) array is made
        gap = points.square().sum(1, keepdim=True) - 2 * points @ start.T + start.square().sum(1)
        gap = gap - 2 * t * to + t.square() * squared
        return gap.amin(1).clamp_min(0).sqrt()

    def rule(points: Tensor) -> Tensor:
        return torch.cat([distance(part) <= radius for part in points.split(4096)])

    def error() -> float:
        """The facets are farthest from the tube in their middles and those of their edges."""
        corners = mesh.triangles[::13]
        places = torch.cat([corners.mean(1), *((corners[:, i] + corners[:, i - 1]) / 2 for i in range(3))])
        return 1.1 * max(float((distance(part) - radius).abs().max()) for part in places.split(4096))

    return finish(mesh, rule, error)


def knot(p: int = 2, q: int = 3, radius: float = 0.16, segments: int = 384) -> Mesh:
    """A tube along the (p, q) torus knot."""
    return _knot(p, q, radius, segments).mesh


def _plate(thickness: float, holes: int) -> Made:
    m = manifold_module().Manifold
    solid = convex(m.cube((2, 2, thickness), True))
    for hole in range(holes):
        angle = 2 * math.pi * (hole + 0.5) / holes
        at = (0.6 * math.cos(angle), 0.6 * math.sin(angle), 0)
        solid -= convex(m.cylinder(1, 0.22, 0.22, 64, True).translate(at))
    return solid.made()


def plate(thickness: float = 0.04, holes: int = 4) -> Mesh:
    """A thin square plate with round holes."""
    return _plate(thickness, holes).mesh


def _shells(count: int, wall: float, gap: float) -> Solid:
    """Hollow balls inside each other, from radius 1 inwards."""
    m = manifold_module().Manifold
    solid = None
    for shell in range(count):
        outer = 1 - (wall + gap) * shell
        ball = convex(m.sphere(outer, 96)) - convex(m.sphere(outer - wall, 96))
        solid = ball if solid is None else solid + ball
    if solid is None:
        raise ValueError(f"`count` must be at least 1, got {count}")
    return solid


def _nested_shells(count: int, wall: float = 0.15, gap: float = 0.25) -> Made:
    octant = manifold_module().Manifold.cube((2, 2, 2)).translate((0, -2, 0))
    return (_shells(count, wall, gap) - convex(octant)).made()


def nested_shells(count: int = 2) -> Mesh:
    """Hollow balls inside each other, with an octant cut away so that they show."""
    return _nested_shells(count).mesh


def _closed_shells(count: int, wall: float = 0.15, gap: float = 0.25) -> Made:
    return _shells(count, wall, gap).made()


def closed_shells(count: int = 2) -> Mesh:
    """Hollow balls inside each other, closed: cavities, and solids in them, that no outside view shows."""
    return _closed_shells(count).mesh


def _gear(teeth: int, thickness: float) -> Made:
    m = manifold_module().Manifold
    outline = []
    for tooth in range(teeth):
        for offset, radius in ((-0.30, 0.8), (-0.17, 1.0), (0.17, 1.0), (0.30, 0.8)):
            angle = 2 * math.pi * (tooth + offset) / teeth
            outline.append((radius * math.cos(angle), radius * math.sin(angle)))
    wheel = prism(outline, thickness)
    hub = convex(m.cylinder(1.8 * thickness, 0.36, 0.36, 64, True))
    recess = convex(m.cylinder(thickness, 0.66, 0.66, 96, True).translate((0, 0, 0.75 * thickness)))
    return (wheel - recess + hub - convex(m.cube((0.3, 0.3, 4), True))).made()


def gear(teeth: int = 12, thickness: float = 0.4) -> Mesh:
    """A gear wheel with a square bore and a hub."""
    return _gear(teeth, thickness).mesh


def _half_pipe(segments: int, turn: float = math.pi, length: float = 2.0) -> Made:
    angle = np.linspace(0, turn, segments)[:, None]
    along = np.linspace(-length / 2, length / 2, 9)[None, :]
    points = np.stack([np.cos(angle) + 0 * along, along + 0 * angle, np.sin(angle) + 0 * along], -1)
    faces = grid_faces(segments, 9, wrap_rows=False, wrap_columns=False)[:, ::-1]
    return finish(mesh_of(points.reshape(-1, 3), faces), None)


def half_pipe(segments: int = 48) -> Mesh:
    """Half of a cylinder's wall: an open surface without thickness."""
    return _half_pipe(segments).mesh


# ---- By name -----------------------------------------------------------------------------------------------

NAMES: dict[str, Callable[[], Mesh]] = {
    "torus": torus,
    "knot": knot,
    "gear": gear,
    "plate": plate,
    "nested_shells": nested_shells,
    "closed_shells": closed_shells,
    "multi_part": multi_part,
    "blobs": blobs,
    "half_pipe": half_pipe,
}

_PLAIN: dict[str, Callable[[], Made]] = {
    "torus": lambda: _torus(0.7, 0.25, 96),
    "knot": lambda: _knot(2, 3, 0.16, 384),
    "gear": lambda: _gear(12, 0.4),
    "plate": lambda: _plate(0.04, 4),
    "nested_shells": lambda: _nested_shells(2),
    "closed_shells": lambda: _closed_shells(2),
    "multi_part": lambda: _multi_part(0, 3),
    "blobs": lambda: _blobs(np.random.default_rng(0)),
    "half_pipe": lambda: _half_pipe(48),
}


def _rng(family: str, seed: int) -> np.random.Generator:
    return np.random.default_rng((zlib.crc32(family.encode()), seed))


def _seeded_knot(rng: np.random.Generator) -> Made:
    p, q = ((2, 3), (2, 5), (3, 2), (1, 3), (1, 5))[rng.integers(5)]
    return _knot(p, q, rng.uniform(0.06, 0.14), 384)


def _seeded_shells(rng: np.random.Generator) -> tuple[int, float, float]:
    count = int(rng.integers(1, 4))
    wall = rng.uniform(0.08, 0.5 / count)
    return count, wall, rng.uniform(0.08, 0.4 / count)


# Of a random generator, one of endlessly many; csg, blobs and multi_part count by their seeds alone.
_FAMILIES: dict[str, Callable[[np.random.Generator], Made]] = {
    "torus": lambda rng: _torus(0.7, rng.uniform(0.08, 0.5), 96),
    "knot": _seeded_knot,
    "gear": lambda rng: _gear(int(rng.integers(6, 33)), rng.uniform(0.15, 0.8)),
    "plate": lambda rng: _plate(rng.uniform(0.015, 0.2), int(rng.integers(0, 6))),
    "nested_shells": lambda rng: _nested_shells(*_seeded_shells(rng)),
    "closed_shells": lambda rng: _closed_shells(*_seeded_shells(rng)),
    "half_pipe": lambda rng: _half_pipe(48, rng.uniform(0.5, 1.8) * math.pi, rng.uniform(0.5, 4.0)),
}


def _make(name: str | int) -> Made:
    if isinstance(name, int):
        name = f"csg-{name}"
    if name in _PLAIN:
        return _PLAIN[name]()
    family, dash, digits = name.rpartition("-")
    if digits.isdecimal() and (family or not dash):
        seed, family = int(digits), family or "csg"
        if family in ("csg", "blobs"):
            return (_csg if family == "csg" else _blobs)(np.random.default_rng(seed))
        if family == "multi_part":
            return _multi_part(seed, 2 + seed % 3)
        if family in _FAMILIES:
            return _FAMILIES[family](_rng(family, seed))
    expected = f"a seed, 'csg-<seed>' or one of {', '.join(NAMES)}"
    raise ValueError(f"unknown shape {name!r}; expected {expected}, these also with '-<seed>'")


def make(name: str | int) -> Mesh:
    """A shape by its name: "torus", "gear", ...; "torus-7" for another of its kind; 12 or "csg-12" for the
    random solid of a seed.

    Raises:
        ValueError: unknown name; lists those that exist.
    """
    return _make(name).mesh


def inside(name: str | int) -> Inside | None:
    """What the shape of a name encloses, from its own rule and not from its triangles.

    Polyhedra (solids of boxes, prisms and faceted balls) are answered exactly, by the same boolean of the
    same half-spaces; the torus and the knot by the distance to their middle lines, which differs from the
    triangles within `band` of the surface.

    Args:
        name: as for :func:`make`.

    Returns:
        A function of points (N, 3) in the normalized frame, to (N,) bool, with its `band`; None for the
        half pipe, which encloses nothing.

    Raises:
        ValueError: unknown name.
    """
    return _make(name).inside


# How often each kind comes; the open one only if asked for.
_SHARES = {
    "csg": 0.45,
    "blobs": 0.2,
    "multi_part": 0.05,
    "torus": 0.05,
    "knot": 0.05,
    "gear": 0.05,
    "plate": 0.05,
    "nested_shells": 0.05,
    "closed_shells": 0.05,
}


def corpus(count: int, seed: int = 0, *, kinds: Sequence[str] | None = None) -> Iterator[tuple[str, Mesh]]:
    """Shapes to train on: `count` pairs of a name and its mesh, made one at a time.

    The name alone makes the shape again (:func:`make`, :func:`inside`). The first n of a longer corpus of
    the same seed are the corpus of n. About half are random solids, a fifth overlapping blocks, the rest all
    other closed kinds alike.

    Args:
        count: how many, at least 0.
        seed: which.
        kinds: only these, all alike: "csg" or names of :data:`NAMES`.

    Raises:
        ValueError: an unknown kind, or none.
    """
    known = ("csg", *NAMES)
    chosen = list(_SHARES if kinds is None else kinds)
    wrong = [kind for kind in chosen if kind not in known]
    if wrong or not chosen:
        raise ValueError(f"`kinds` must be some of {', '.join(known)}, got {', '.join(wrong) or 'none'}")
    shares = np.array([_SHARES[kind] if kinds is None else 1.0 for kind in chosen])

    def shapes() -> Iterator[tuple[str, Mesh]]:
        rng = _rng("corpus", seed)
        for _ in range(count):
            kind = chosen[int(rng.choice(len(chosen), p=shares / shares.sum()))]
            name = f"{kind}-{int(rng.integers(1 << 40))}"
            yield name, make(name)

    return shapes()
