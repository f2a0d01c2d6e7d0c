"""Farthest point sampling of surface points, beside the bucket implementations on PyPI; the sharp edges of a
mesh, beside trimesh and libigl."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastshape import geometry, ops
from fastshape.reference import sampling as reference

from .bench_geometry import torus
from .peers import installed
from .registry import Case, Peer, Target, row

_CHECKED = 200  # picks compared with the naive rule: all of them would take minutes at a million points


def surface_points(batch: int, count: int) -> Tensor:
    """Points of bumpy spheres, (B, N, 3): waves of six octaves whose amplitude halves, as a fractal's."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(batch, count, 3, generator=generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    radius = torch.ones(batch, count)
    for octave in range(6):
        for _ in range(4):
            wave = torch.randn(batch, 3, 1, generator=generator)
            wave = wave / wave.norm(dim=1, keepdim=True) * 2.0 ** (octave + 1)
            phase = torch.rand(batch, 1, generator=generator) * 6.28
            radius += 0.18 * 2.0**-octave * torch.sin((direction @ wave).squeeze(-1) + phase)
    return (direction * radius.unsqueeze(-1)).contiguous()


def same_first_picks(result: Tensor, expected: Tensor) -> None:
    """The first picks of every cloud equal the naive rule's."""
    assert torch.equal(result[:, : expected.shape[1]], expected), "other picks than the naive rule's"


def torch_quickfps(points: Tensor, num: int, height: int) -> Peer | None:
    package = installed("torch_quickfps")
    if package is None:
        return None
    return Peer(lambda: package.sample_idx(points, num, h=height, start_idx=0))


def torch_fps(points: Tensor, num: int) -> Peer | None:
    """Triton kernels, whose compiler may fuse a multiplication and an addition: near ties may fall otherwise,
    so only the first pick and the count are compared."""
    package = installed("torch_fps")
    if package is None or points.device.type != "cuda":
        return None
    valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    start = torch.zeros(len(points), dtype=torch.int64, device=points.device)

    def check(result: Tensor, expected: Tensor) -> None:
        assert result.shape == (len(points), num)
        assert torch.equal(result[:, 0], expected[:, 0]), "another start"

    options = {"start_idx": start, "random_start": False, "validate": False, "assume_finite": True}
    return Peer(
        lambda: package.farthest_point_sampling(points, valid, num, **options),
        check=check,
        note="rounds its own way",
    )


def fpsample(points: Tensor, num: int, name: str, *height: int) -> Peer | None:
    """One cloud after the other: it knows no batches. It starts elsewhere than asked for, so it is compared
    from the start that it took."""
    package = installed("fpsample")
    if package is None or points.device.type != "cpu":
        return None
    function: Callable[..., Any] = getattr(package, name)
    clouds = [cloud.numpy() for cloud in points]

    def check(result: list[Any], _: Tensor) -> None:
        indices = torch.stack([torch.from_numpy(r.astype("int64")) for r in result])
        expected = reference.farthest_point_sampling(points, min(num, _CHECKED), start=indices[:, 0])
        assert isinstance(expected, Tensor)
        same_first_picks(indices, expected)

    return Peer(
        lambda: [function(cloud, num, *height, start_idx=0) for cloud in clouds],
        check=check,
        note="starts where it likes",
    )


@row(
    family="sampling",
    op="farthest_point_sampling",
    shape="16384->2048",
    batch=1,
    count=16384,
    num=2048,
    height=5,
)
@row(
    family="sampling",
    op="farthest_point_sampling",
    shape="8x16384->2048",
    batch=8,
    count=16384,
    num=2048,
    height=5,
)
@row(
    family="sampling",
    op="farthest_point_sampling",
    shape="65536->4096",
    batch=1,
    count=65536,
    num=4096,
    height=7,
)
@row(  # what Dora's preparation thins the points of a surface to
    family="sampling",
    op="farthest_point_sampling",
    shape="200000->32768",
    batch=1,
    count=200_000,
    num=32_768,
    height=7,
)
@row(
    family="sampling",
    op="farthest_point_sampling",
    shape="1M->8192",
    batch=1,
    count=1 << 20,
    num=8192,
    height=9,
)
def farthest_point_sampling(device: torch.device, batch: int, count: int, num: int, height: int) -> Case:
    points = surface_points(batch, count).to(device)
    first = min(num, _CHECKED)
    return Case(
        run=lambda: ops.farthest_point_sampling(points, num),
        reference=lambda: reference.farthest_point_sampling(points, first),
        check=same_first_picks,
        peers={
            "torch_quickfps": torch_quickfps(points, num, height),
            "torch_quickfps, h - 1": torch_quickfps(points, num, height - 1),
            "torch_fps": torch_fps(points, num),
            "fpsample kdline": fpsample(points, num, "bucket_fps_kdline_sampling", height),
            "fpsample kdline, h - 1": fpsample(points, num, "bucket_fps_kdline_sampling", height - 1),
            "fpsample kdtree": fpsample(points, num, "bucket_fps_kdtree_sampling"),
        },
        bytes=points.nbytes + 8.0 * batch * num,
        target=Target("torch_quickfps", 1 / 3),
    )


@row(
    family="sampling",
    op="salient_edges",
    shape="100k faces, 2 degrees",
    devices=("cpu",),
    rings=500,
    sides=100,
    angle=2.0,
)
def salient_edges(device: torch.device, rings: int, sides: int, angle: float) -> Case:
    vertices, faces = torus(rings, sides)

    def by_unique_rows() -> Tensor:
        corners = vertices[faces]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals = normals / normals.norm(dim=1, keepdim=True)
        pairs = torch.stack([faces, faces.roll(-1, 1)], 2).view(-1, 2).sort(1).values
        edge = pairs.unique(dim=0, return_inverse=True)[1].argsort(stable=True).view(-1, 2) // 3
        return ((normals[edge[:, 0]] * normals[edge[:, 1]]).sum(1) < math.cos(math.radians(angle))).sum()

    def same_number(result: Tensor, expected: Tensor) -> None:
        # Nearly: an angle within 0.01 degrees of the threshold may fall otherwise.
        assert abs(int(result) - int(expected)) <= max(2, int(expected) // 500), "other edges"

    return Case(
        run=lambda: torch.tensor(geometry.count_salient_edges(geometry.Mesh(vertices, faces), angle)),
        reference=by_unique_rows,
        check=same_number,
        peers={
            "trimesh": trimesh_edges(vertices, faces, angle),
            "libigl": libigl_edges(vertices, faces, angle),
        },
        bytes=vertices.nbytes + faces.nbytes,
    )


def trimesh_edges(vertices: Tensor, faces: Tensor, angle: float) -> Peer | None:
    package = installed("trimesh")
    if package is None:
        return None

    def run() -> Tensor:
        mesh = package.Trimesh(vertices.numpy(), faces.numpy(), process=False)
        return torch.tensor(int((mesh.face_adjacency_angles > math.radians(angle)).sum()))

    return Peer(run, note="vertices not joined by position")


def libigl_edges(vertices: Tensor, faces: Tensor, angle: float) -> Peer | None:
    package = installed("igl")
    if package is None:
        return None
    v, f = vertices.numpy(), faces.numpy()
    return Peer(
        lambda: torch.tensor(len(package.sharp_edges(v, f, math.radians(angle)))),
        note="vertices not joined by position",
    )
