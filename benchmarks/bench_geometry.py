"""Queries on a mesh of 100,000 faces, the building of the hierarchy included, beside libigl.

Half of the 200,000 points are uniform in [-1, 1]^3, half within about 0.01 of the surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastshape import geometry, ops
from fastshape.reference import mesh as reference

from .peers import installed
from .registry import Case, Peer, Target, row

_CHECKED = 50  # points compared with brute force
_FAR_FIELD = 0.01  # the largest error of a winding number


@dataclass
class Scene:
    vertices: Tensor
    faces: Tensor
    points: Tensor


def torus(rings: int, sides: int) -> tuple[Tensor, Tensor]:
    """A torus with ripples, (V, 3) float64 and 2 * rings * sides faces oriented outwards."""
    i, j = torch.meshgrid(torch.arange(rings), torch.arange(sides), indexing="ij")
    u, v = i.double() * (2 * math.pi / rings), j.double() * (2 * math.pi / sides)
    tube = 0.25 + 0.02 * (9 * u + 3 * v).sin() * (5 * v).cos()
    ring = 0.6 + tube * v.cos()
    vertices = torch.stack([ring * u.cos(), ring * u.sin(), tube * v.sin()], -1).view(-1, 3)

    def vertex(di: int, dj: int) -> Tensor:
        return ((i + di) % rings) * sides + (j + dj) % sides

    upper = torch.stack([vertex(0, 0), vertex(1, 0), vertex(1, 1)], -1)
    lower = torch.stack([vertex(0, 0), vertex(1, 1), vertex(0, 1)], -1)
    return vertices, torch.cat([upper.view(-1, 3), lower.view(-1, 3)])


def scene(
    device: torch.device, rings: int, sides: int, count: int, dtype: torch.dtype = torch.float32
) -> Scene:
    vertices, faces = torus(rings, sides)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(faces), (count // 2,), generator=generator)
    weights = -torch.rand(count // 2, 3, generator=generator, dtype=torch.float64).log()
    near = (vertices[faces[chosen]] * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1)
    near = near + 0.01 * torch.randn(near.shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(count - count // 2, 3, generator=generator, dtype=torch.float64) * 2 - 1
    points = torch.cat([uniform, near])[torch.randperm(count, generator=generator)]
    return Scene(vertices.to(device, dtype), faces.to(device), points.to(device, dtype))


def arrays(s: Scene) -> tuple[Any, Any, Any]:
    """As libigl takes them: vertices, faces, points in float64 and int64."""
    return s.vertices.double().numpy(), s.faces.numpy(), s.points.double().numpy()


def libigl(s: Scene, make: Callable[..., Peer]) -> Peer | None:
    package = installed("igl")
    if package is None or s.points.device.type != "cpu":
        return None
    return make(package, *arrays(s))


def close(tolerance: float) -> Callable[[Any, Any], None]:
    """The first points agree within ``tolerance``."""

    def check(result: Tensor, expected: Tensor) -> None:
        error = float((result[: len(expected)].double() - expected.double()).abs().max())
        assert error <= tolerance, f"differs by {error:.2g}"

    return check


@row(family="geometry", op="build_bvh", shape="100k faces", rings=500, sides=100)
@row(family="geometry", op="build_bvh", shape="500k faces", rings=1000, sides=250)
def build_bvh(device: torch.device, rings: int, sides: int) -> Case:
    s = scene(device, rings, sides, 2)

    def faces_held(result: Tensor, expected: Tensor) -> None:
        assert torch.equal(result[result >= 0].sort().values, expected)

    return Case(
        run=lambda: ops.build_bvh(s.vertices, s.faces).face_index,
        reference=lambda: torch.arange(len(s.faces), dtype=torch.int32, device=device),
        check=faces_held,
        bytes=s.vertices.nbytes + s.faces.nbytes + 60.0 * len(s.faces),
        memory=True,
    )


@row(family="geometry", op="closest_point", shape="100k faces, 200k points", rings=500, sides=100)
@row(
    family="geometry",
    op="closest_point",
    shape="100k faces, 200k points",
    dtype="float64",
    rings=500,
    sides=100,
    double=True,
)
def closest_point(device: torch.device, rings: int, sides: int, double: bool = False) -> Case:
    s = scene(device, rings, sides, 200_000, torch.float64 if double else torch.float32)
    return Case(
        run=lambda: ops.closest_point(s.points, ops.build_bvh(s.vertices, s.faces)).distance,
        reference=lambda: reference.closest_point(s.points[:_CHECKED].double(), s.vertices.double(), s.faces)[
            0
        ],
        check=close(1e-6),
        peers={
            "libigl": libigl(
                s,
                lambda igl, v, f, p: Peer(
                    lambda: igl.point_mesh_squared_distance(p, v, f),
                    result=lambda r: torch.from_numpy(r[0]).sqrt(),
                    note="float64",
                ),
            )
        },
        bytes=s.vertices.nbytes + s.faces.nbytes + s.points.nbytes * 3.0,
        target=Target("libigl", 1 / 2.7),
    )


@row(family="geometry", op="winding_number", shape="100k faces, 200k points", rings=500, sides=100)
def winding_number(device: torch.device, rings: int, sides: int) -> Case:
    s = scene(device, rings, sides, 200_000)
    return Case(
        run=lambda: ops.winding_number(s.points, ops.build_bvh(s.vertices, s.faces)),
        reference=lambda: reference.winding_number(
            s.points[:_CHECKED].double(), s.vertices.double(), s.faces
        ),
        check=close(_FAR_FIELD),
        peers={
            "libigl": libigl(
                s,
                lambda igl, v, f, p: Peer(
                    lambda: igl.fast_winding_number(v, f, p),
                    result=torch.from_numpy,
                    note="float64 in and out",
                ),
            )
        },
        bytes=s.vertices.nbytes + s.faces.nbytes + s.points.nbytes * 4.0 / 3,
        target=Target("libigl", 1 / 2),
    )


@row(
    family="geometry",
    op="signed_distance",
    shape="100k faces, 200k points",
    devices=("cpu",),
    rings=500,
    sides=100,
)
def signed_distance(device: torch.device, rings: int, sides: int) -> Case:
    s = scene(device, rings, sides, 200_000)

    def signed() -> Tensor:
        first, mesh = s.points[:_CHECKED].double(), (s.vertices.double(), s.faces)
        distance = reference.closest_point(first, *mesh)[0]
        return torch.where(reference.winding_number(first, *mesh) > 0.5, -distance, distance)

    return Case(
        run=lambda: geometry.signed_distance(s, s.points),
        reference=signed,
        check=close(1e-6),
        peers={
            "libigl": libigl(
                s,
                lambda igl, v, f, p: Peer(
                    lambda: igl.signed_distance(
                        p, v, f, sign_type=igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER
                    ),
                    result=lambda r: torch.from_numpy(r[0]),
                    note="scales the distance by 1 - 2 |w|",
                ),
            )
        },
        bytes=s.vertices.nbytes + s.faces.nbytes + s.points.nbytes * 4.0 / 3,
        target=Target("libigl", 1 / 2),
    )


@row(family="geometry", op="cast_rays", shape="100k faces, 512x512 picture", rings=500, sides=100, side=512)
def cast_rays(device: torch.device, rings: int, sides: int, side: int) -> Case:
    s = scene(device, rings, sides, 2)
    grid = torch.linspace(-1, 1, side, device=device)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    origins = torch.stack([x, y, torch.full_like(x, 2.0)], -1).view(-1, 3)
    directions = torch.tensor([0.1, 0.2, -1.0], device=device).expand_as(origins).contiguous()
    step = len(origins) // _CHECKED
    bvh = ops.build_bvh(s.vertices, s.faces)

    def every(result: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(result[::step].double(), expected, rtol=0, atol=1e-5)

    return Case(
        run=lambda: ops.cast_rays(origins, directions, bvh).t,
        reference=lambda: reference.cast_rays(
            origins[::step].double(), directions[::step].double(), s.vertices.double(), s.faces
        )[0],
        check=every,
        bytes=origins.nbytes * 2.0 + len(origins) * 24.0,
    )


@row(family="geometry", op="ray_parity", shape="100k faces, 200k points, 3 rays", rings=500, sides=100)
def ray_parity(device: torch.device, rings: int, sides: int) -> Case:
    s = scene(device, rings, sides, 200_000)
    bvh = ops.build_bvh(s.vertices, s.faces)

    def inside() -> Tensor:
        winding = reference.winding_number(s.points[:_CHECKED].double(), s.vertices.double(), s.faces)
        return 3.0 * winding.round()

    return Case(
        run=lambda: ops.ray_parity(s.points, bvh),
        reference=inside,
        check=close(0.0),
        bytes=s.points.nbytes * 4.0 / 3,
    )


@row(
    family="geometry", op="watertight shell", shape="100k faces, 256", devices=("cpu",), rings=500, sides=100
)
@row(
    family="geometry",
    op="watertight shell",
    shape="100k faces, 512",
    devices=("cpu",),
    rings=500,
    sides=100,
    resolution=512,
)
@row(
    family="geometry",
    op="watertight winding",
    shape="100k faces, 256",
    devices=("cpu",),
    rings=500,
    sides=100,
    method="winding",
)
@row(
    family="geometry",
    op="watertight winding",
    shape="100k faces, 512",
    devices=("cpu",),
    rings=500,
    sides=100,
    resolution=512,
    method="winding",
)
def watertight(
    device: torch.device,
    rings: int,
    sides: int,
    resolution: int = 256,
    method: Literal["shell", "winding"] = "shell",
) -> Case:
    """From the mesh to a checked, closed one."""
    mesh = geometry.Mesh(*torus(rings, sides))
    volume = mesh.volume

    def closed(result: geometry.Mesh, expected: float) -> None:
        assert result.is_watertight
        thick = mesh.area * 2 / resolution if method == "shell" else 0.0
        assert abs(result.volume - (expected + thick)) < 0.02 * expected

    return Case(
        run=lambda: geometry.watertight(mesh, resolution=resolution, method=method).mesh,
        reference=lambda: volume,
        check=closed,
    )


@row(family="geometry", op="voxelize_mesh", shape="100k faces, 256^3", rings=500, sides=100, resolution=256)
@row(family="geometry", op="voxelize_mesh", shape="1k faces, 1024^3", rings=50, sides=10, resolution=1024)
def voxelize_mesh(device: torch.device, rings: int, sides: int, resolution: int) -> Case:
    s = scene(device, rings, sides, 2)

    def touched(voxels: Tensor, samples: Tensor) -> None:
        """Every sample's voxel is there, and no voxel's center is farther off than half a diagonal."""
        keys, wanted = (
            (v[:, 0].long() * resolution + v[:, 1]) * resolution + v[:, 2] for v in (voxels, samples)
        )
        assert bool((keys.diff() > 0).all())
        assert bool(torch.isin(wanted, keys).all())
        every = voxels[:: max(1, len(voxels) // 20_000)].double()
        centers = (every + 0.5) * (2 / resolution) - 1
        found = ops.closest_point(centers, ops.build_bvh(s.vertices.double(), s.faces))
        assert float(found.distance.max()) <= math.sqrt(3) / resolution * (1 + 1e-9)

    def samples() -> Tensor:
        generator = torch.Generator().manual_seed(1)
        chosen = torch.randint(len(s.faces), (500_000,), generator=generator).to(device)
        weights = -torch.rand(500_000, 3, generator=generator, dtype=torch.float64).log().to(device)
        weights = weights / weights.sum(1, keepdim=True)
        return ops.voxelize_points(
            (s.vertices.double()[s.faces[chosen]] * weights[..., None]).sum(1), resolution
        )

    return Case(
        run=lambda: ops.voxelize_mesh(s.vertices, s.faces, resolution),
        reference=samples,
        check=touched,
        bytes=s.vertices.nbytes
        + s.faces.nbytes
        + 12.0 * len(ops.voxelize_mesh(s.vertices, s.faces, resolution)),
    )
