"""Nearest neighbors between two samples of one surface, the tree included, beside SciPy's k-d tree.

That is what Chamfer distance and F-score spend their time on: 100,000 points in most papers, a million in
Dora-Bench.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastshape.geometry.nearest import nearest_points
from fastshape.reference import mesh as reference

from .bench_geometry import torus
from .peers import installed
from .registry import Case, Peer, Target, row

_CHECKED = 50  # points compared with brute force


def samples(count: int, seed: int) -> Tensor:
    """Points on a torus, uniform by area but for its ripples, (N, 3) float32."""
    vertices, faces = torus(500, 100)
    generator = torch.Generator().manual_seed(seed)
    corners = vertices[faces]
    sides = corners[:, 1:] - corners[:, :1]
    area = torch.linalg.cross(sides[:, 0], sides[:, 1]).norm(dim=1)
    chosen = torch.multinomial(area, count, replacement=True, generator=generator)
    weights = -torch.rand(count, 3, generator=generator, dtype=torch.float64).log()
    weights = weights / weights.sum(1, keepdim=True)
    return (corners[chosen] * weights[..., None]).sum(1).float()


@row(family="metrics", op="nearest_points", shape="100k points in 100k", devices=("cpu",), count=100_000)
@row(family="metrics", op="nearest_points", shape="1M points in 1M", devices=("cpu",), count=1_000_000)
def nearest(device: torch.device, count: int) -> Case:
    points, targets = samples(count, 0), samples(count, 1)
    package = installed("scipy.spatial")

    def brute_force() -> Tensor:
        every = torch.arange(count)[:, None].expand(-1, 3)
        return reference.closest_point(points[:_CHECKED].double(), targets.double(), every)[0]

    def check(result: Any, expected: Tensor) -> None:
        torch.testing.assert_close(result[:_CHECKED], expected, rtol=1e-6, atol=1e-9)

    def tree() -> Tensor:
        assert package is not None
        found = package.cKDTree(targets.numpy()).query(points.numpy(), workers=torch.get_num_threads())
        return torch.from_numpy(found[0])

    return Case(
        run=lambda: nearest_points(points, targets)[0],
        reference=brute_force,
        check=check,
        peers={"scipy.cKDTree": None if package is None else Peer(tree, note="float64")},
        bytes=points.nbytes + targets.nbytes + 16.0 * count,
        target=Target("scipy.cKDTree", 1.0),
    )
