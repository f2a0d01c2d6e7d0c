"""Depth carving of voxels, and dilation of voxel grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastshape import geometry, ops
from fastshape.reference import carving as reference

from .registry import Case, Peer, Target, row


def look_at_middle(azimuth: float, elevation: float, distance: float = 1.7, degrees: float = 40.0) -> Tensor:
    """World to clip (4, 4) of a camera that looks at the origin."""
    a, e = math.radians(azimuth), math.radians(elevation)
    outward = torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    right = torch.tensor([math.cos(a), 0.0, -math.sin(a)])
    view = torch.eye(4)
    view[:3, :3] = torch.stack([right, torch.linalg.cross(outward, right), outward])
    view[2, 3] = -distance
    k = 1 / math.tan(math.radians(degrees) / 2)
    return torch.tensor([[k, 0, 0, 0], [0, k, 0, 0], [0, 0, -1.2, -0.2], [0, 0, -1, 0]]) @ view


def ball_depth(matrix: Tensor, size: int, radius: float) -> Tensor:
    """Linear depth (H, W) of a ball in the origin."""
    pixel = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(-pixel, pixel, indexing="ij")
    inverse = torch.linalg.inv(matrix)
    ends = []
    for z in (-1.0, 1.0):
        clip = torch.stack([x, y, torch.full_like(x, z), torch.ones_like(x)], -1)
        world = clip @ inverse.T
        ends.append(world[..., :3] / world[..., 3:])
    eye = ends[0]  # on the near side
    direction = torch.nn.functional.normalize(ends[1] - ends[0], dim=-1)
    along = (eye * direction).sum(-1)
    root = along.square() - eye.square().sum(-1) + radius**2
    hit = eye + (-along - root.clamp_min(0).sqrt())[..., None] * direction
    depth = hit @ matrix[3, :3] + matrix[3, 3]
    return torch.where(root > 0, depth, torch.inf).contiguous()


def ball_shell(number: int, resolution: int, radius: float, shuffled: bool) -> Tensor:
    """`number` voxels near a sphere, in the order of (x, y, z) or in none."""
    points = torch.nn.functional.normalize(torch.randn(2 * number, 3), dim=1)
    points *= radius + 2.0 / resolution * (2 * torch.rand(2 * number, 1) - 1)
    coords = ((points + 0.5) * resolution).int()
    x, y, z = coords.long().T
    keys = ((x * resolution + y) * resolution + z).unique()
    keys = keys[torch.randperm(len(keys))[:number].sort().values]
    if shuffled:
        keys = keys[torch.randperm(len(keys))]
    parts = [keys // resolution**2, keys // resolution % resolution, keys % resolution]
    return torch.stack(parts, 1).int().contiguous()


def carve(
    device: torch.device, number: int, views: int, resolution: int, shuffled: bool, **options: Any
) -> Case:
    radius, size = 0.45, 512
    coords = ball_shell(number, resolution, radius, shuffled).to(device)
    matrices = torch.stack([look_at_middle(360.0 * v / views, 25.0 - 50.0 * (v % 2)) for v in range(views)])
    depth = torch.stack([ball_depth(matrix, size, radius) for matrix in matrices]).to(device)
    matrices = matrices.to(device)
    neighborhood = options.get("neighborhood", 1)
    any_view = options.get("combine") == "any"

    def vectorized() -> Any:
        return reference.depth_carve(
            coords,
            depth,
            matrices,
            resolution=resolution,
            threshold=ops.carve_threshold(resolution),
            neighborhood=neighborhood,
            any_view=any_view,
            keep_outside=views > 1 and not any_view,
        )

    expected = vectorized()
    return Case(
        run=lambda: ops.depth_carve(coords, depth, matrices, resolution=resolution, **options),
        reference=lambda: expected,
        peers={"torch": vectorized},
        bytes=coords.nbytes + depth.nbytes + 64.0 * views + len(coords) + 8.0 * len(expected[1]),
        flops=30.0 * len(coords) * views,
        target=Target("torch", 1 / 6) if number >= 1_000_000 else None,
    )


@row(family="carving", op="depth_carve", shape="100k x 8 views", number=100_000, views=8, resolution=256)
@row(family="carving", op="depth_carve", shape="1M x 1 view", number=1_000_000, views=1, resolution=1024)
@row(family="carving", op="depth_carve", shape="1M x 8 views", number=1_000_000, views=8, resolution=1024)
def depth_carve(device: torch.device, number: int, views: int, resolution: int) -> Case:
    """Any of the views, without the neighborhood; voxels in order, at 512^2."""
    return carve(device, number, views, resolution, False, combine="any", neighborhood=0)


@row(family="carving", op="depth_carve", shape="1M x 8 views, all", number=1_000_000)
def depth_carve_all(device: torch.device, number: int) -> Case:
    """All of the views: a voxel is done with at the first that hides it."""
    return carve(device, number, 8, 1024, False, combine="all", neighborhood=0)


@row(family="carving", op="depth_carve", shape="1M x 8 views, no order", number=1_000_000)
def depth_carve_shuffled(device: torch.device, number: int) -> Case:
    return carve(device, number, 8, 1024, True, combine="any", neighborhood=0)


@row(family="carving", op="depth_carve", shape="100k x 1 view, 3^3", number=100_000)
def depth_carve_neighborhood(device: torch.device, number: int) -> Case:
    """As it is trained: one view, then the neighborhood of what is kept."""
    return carve(device, number, 1, 256, False)


@row(family="carving", op="dilate", shape="128^3, 12%", dtype="bool", resolution=128, packed=False)
@row(family="carving", op="dilate", shape="256^3, 12%", dtype="bool", resolution=256, packed=False)
@row(family="carving", op="dilate_bits", shape="128^3, 12%", dtype="int64", resolution=128, packed=True)
def dilate(device: torch.device, resolution: int, packed: bool) -> Case:
    """Grid to grid: of truth values, or of bits that stay packed."""
    grid = (torch.rand(resolution, resolution, resolution) < 0.12).to(device)
    expected = reference.dilate(grid)
    bits = ops.pack_bits(grid)
    run: Callable[[], Tensor] = lambda: ops.dilate(grid)  # noqa: E731
    if packed:
        expected = ops.pack_bits(expected)
        run = lambda: ops.dilate_bits(bits, size_z=resolution)  # noqa: E731

    values = grid[None, None].float()

    def max_pool() -> Tensor:
        return torch.nn.functional.max_pool3d(values, 3, 1, 1)

    def as_result(pooled: Tensor) -> Tensor:
        return ops.pack_bits(pooled[0, 0] > 0) if packed else pooled[0, 0] > 0

    return Case(
        run=run,
        reference=lambda: expected,
        peers={"max_pool3d": Peer(max_pool, result=as_result, note="float in, float out")},
        bytes=float(2 * (bits if packed else grid).nbytes),
        target=Target("max_pool3d", 1 / 200) if resolution == 128 else None,
    )


@row(family="carving", op="dilate_coords", shape="27k in 64^3", dtype="int32", resolution=64, share=0.103)
@row(family="carving", op="dilate_coords", shape="82k in 128^3", dtype="int32", resolution=128, share=0.039)
@row(family="carving", op="dilate_coords", shape="271k in 128^3", dtype="int32", resolution=128, share=0.129)
def dilate_coords(device: torch.device, resolution: int, share: float) -> Case:
    """A list of voxels to the list of what touches them, in order and each once."""
    shape = (resolution,) * 3
    coords = (torch.rand(shape) < share).nonzero().int()
    coords = coords[torch.randperm(len(coords))].contiguous().to(device)
    expected = reference.dilate_coords(coords, shape)
    return Case(
        run=lambda: ops.dilate_coords(coords, shape=shape),
        reference=lambda: expected,
        peers={"27 + unique": lambda: reference.dilate_coords(coords, shape)},
        bytes=float(coords.nbytes + expected.nbytes),
        target=Target("27 + unique", 1 / 20),
    )


@row(family="carving", op="adaptive_zoom", shape="1M", number=1_000_000)
def adaptive_zoom(device: torch.device, number: int) -> Case:
    """The crop of the nearest voxels in the picture, beside sorting them all."""
    coords = ball_shell(number, 1024, 0.45, False).to(device)
    matrix = look_at_middle(30.0, 20.0).to(device)
    query = len(coords) // 3

    def run() -> Tensor:
        return geometry.adaptive_zoom(coords, matrix, resolution=1024, alpha=0.1, query=query).indices

    def by_sorting() -> Tensor:
        px, py, pz = (coords.T.contiguous().to(matrix.dtype) + 0.5) / 1024 - 0.5
        rows = (matrix[k] for k in (0, 1, 3))
        x, y, w = (row[0] * px + row[1] * py + row[2] * pz + row[3] for row in rows)
        x, y = x / w, y / w
        distance = (x - x[query]).square() + (y - y[query]).square()
        return distance.argsort(stable=True)[:15360].sort().values

    expected = by_sorting()
    return Case(
        run=run,
        reference=lambda: expected,
        peers={"sort": by_sorting},
        bytes=float(coords.nbytes + expected.nbytes),
    )
