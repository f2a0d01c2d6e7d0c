"""Surfaces of fields on lattices."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from fastshape import geometry, ops
from fastshape.models import VecSetVAE
from fastshape.reference import isosurface as reference

from .peers import installed
from .registry import Case, Peer, Target, row


def radius(points: Tensor, resolution: int) -> Tensor:
    """Distance of the points with flat indices of the (R + 1)^3 lattice from its middle, in cells."""
    count = resolution + 1
    axes = torch.stack([points // count**2, points // count % count, points % count])
    return (axes.double() - resolution / 2).norm(dim=0)


def ball_shell(resolution: int) -> Tensor:
    """Flat indices, ascending, of the points of the (R + 1)^3 lattice that lie within a cell of a sphere."""
    count, found = resolution + 1, []
    for x in range(count):
        points = torch.arange(x * count**2, (x + 1) * count**2)
        found.append(points[(radius(points, resolution) - 0.45 * resolution).abs() < 1])
    return torch.cat(found)


@row(family="isosurface", op="flood_fill", shape="shell in 257^3", dtype="int64", resolution=256)
@row(family="isosurface", op="flood_fill", shape="shell in 513^3", dtype="int64", resolution=512)
def flood_fill(device: torch.device, resolution: int) -> Case:
    """The neighbors of a spherical shell, beside labels on the dense grid."""
    count = resolution + 1
    solid = ball_shell(resolution)
    steps = torch.tensor([0, 1, -1, count, -count, count**2, -(count**2)])
    points = (solid[:, None] + steps).unique()
    outside = (radius(points, resolution) > 0.45 * resolution) & ~torch.isin(points, solid)
    solid, points, outside = solid.to(device), points.to(device), outside.to(device)

    def scipy() -> Peer | None:
        if installed("scipy") is None or device.type != "cpu":
            return None
        from scipy import ndimage

        shell, asked = solid.numpy(), points.numpy()

        def run() -> Any:
            free = torch.ones(count**3, dtype=torch.bool).numpy()
            free[shell] = False
            labels, _ = ndimage.label(free.reshape(count, count, count))
            return labels.ravel()[asked] == labels[0, 0, 0]

        return Peer(run, result=torch.from_numpy, note="dense grid")

    return Case(
        run=lambda: ops.flood_fill(points, solid, shape=(count, count, count), solid_is_sorted=True),
        reference=lambda: outside,
        peers={"scipy": scipy()},
        bytes=solid.nbytes + 9.0 * len(points),
        target=Target("scipy", 1 / 5),
    )


def field(kind: str, resolution: int) -> Tensor:
    """A sphere's distance, or a gyroid of two periods, on the R^3 lattice over [-1, 1]^3."""
    axis = torch.linspace(-1, 1, resolution)
    if kind == "sphere":
        square = axis * axis
        return (square[:, None, None] + square[:, None] + square).sqrt() - 0.7
    sin, cos = (2 * torch.pi * axis).sin(), (2 * torch.pi * axis).cos()
    return (sin[:, None, None] * cos[:, None] + sin[:, None] * cos + sin * cos[:, None, None]).contiguous()


def crossed_cells(values: Tensor) -> tuple[Tensor, Tensor]:
    """Corner values (N, 8) and coordinates (N, 3) of the cells that the surface at 0 crosses, in order."""
    corners = [
        values[i & 1 : values.shape[0] - 1 + (i & 1)][
            :,
            i >> 1 & 1 : values.shape[1] - 1 + (i >> 1 & 1),
            i >> 2 & 1 : values.shape[2] - 1 + (i >> 2 & 1),
        ]
        for i in range(8)
    ]
    number = torch.stack([corner < 0 for corner in corners]).sum(0)
    crossed = (number > 0) & (number < 8)
    cells = torch.stack([corner[crossed] for corner in corners], 1)
    return cells.contiguous(), crossed.nonzero().int().contiguous()


def same_size(result: Any, expected: Any) -> None:
    """As many vertices and faces: another triangulation of the same crossings."""
    assert [len(part) for part in result] == [len(part) for part in expected]


def nearly_as_many(result: Any, expected: Any) -> None:
    """Faces within a hundredth: other decisions in ambiguous cells, and about values at the level."""
    assert abs(len(result[1]) - len(expected[1])) <= 0.01 * len(expected[1])


@row(family="isosurface", op="marching_cubes", shape="sphere 128^3", kind="sphere", resolution=128)
@row(family="isosurface", op="marching_cubes", shape="gyroid 128^3", kind="gyroid", resolution=128)
@row(family="isosurface", op="marching_cubes", shape="sphere 256^3", kind="sphere", resolution=256)
@row(family="isosurface", op="marching_cubes", shape="gyroid 256^3", kind="gyroid", resolution=256)
def marching_cubes(device: torch.device, kind: str, resolution: int) -> Case:
    cpu = field(kind, resolution)
    values = cpu.to(device)
    expected = reference.marching_cubes_sparse(*crossed_cells(cpu))

    def skimage() -> Peer | None:
        if installed("skimage.measure") is None or device.type != "cpu":
            return None
        from skimage import measure

        array = cpu.numpy()
        return Peer(
            lambda: measure.marching_cubes(array, 0.0)[:2],
            check=same_size,
            note="Lewiner's cases, with normals",
        )

    def mcubes() -> Peer | None:
        module = installed("mcubes")
        if module is None or device.type != "cpu":
            return None
        array = cpu.numpy()
        return Peer(lambda: module.marching_cubes(array, 0.0), check=nearly_as_many)

    return Case(
        run=lambda: ops.marching_cubes(values),
        reference=lambda: expected,
        peers={"skimage": skimage(), "PyMCubes": mcubes()},
        bytes=values.nbytes + 12.0 * len(expected[0]) + 24.0 * len(expected[1]),
        target=Target("skimage", 1 / 10),
    )


@row(family="isosurface", op="marching_cubes_sparse", shape="sphere in 256^3", kind="sphere", resolution=256)
@row(family="isosurface", op="marching_cubes_sparse", shape="gyroid in 256^3", kind="gyroid", resolution=256)
def marching_cubes_sparse(device: torch.device, kind: str, resolution: int) -> Case:
    """The crossed cells alone, in a random order."""
    values, coords = crossed_cells(field(kind, resolution))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    values, coords = values[order], coords[order]
    expected = reference.marching_cubes_sparse(values, coords)
    values, coords = values.to(device), coords.to(device)
    return Case(
        run=lambda: ops.marching_cubes_sparse(values, coords),
        reference=lambda: expected,
        bytes=values.nbytes + coords.nbytes + 12.0 * len(expected[0]) + 24.0 * len(expected[1]),
    )


def distance(points: Tensor) -> Tensor:
    """Of a ball, three shells and a box, less than nothing inside: (N, 3) -> (N,)."""
    radius = points.norm(dim=1)
    shells = torch.minimum((radius - 0.6).abs() - 0.02, radius - 0.2)
    outside = (points.abs() - torch.tensor([0.75, 0.1, 0.1], device=points.device)).clamp_min(0)
    return torch.minimum(shells, outside.norm(dim=1) - 0.02)


def saturated(points: Tensor) -> Tensor:
    """The same as a truncated distance, of the width of Dora's."""
    return distance(points).clamp(-0.015, 0.015) / 0.015


def same_mesh(result: Any, expected: Any) -> None:
    """The same faces, the same bits of the vertices."""
    assert torch.equal(result.faces, expected.faces)
    assert torch.equal(result.vertices, expected.vertices)


def asked(report: geometry.ExtractionReport) -> str:
    """How many points were asked, for the note of a peer."""
    return f"asks all points; ours {report.queries:,}, 1/{1 / report.share:.1f}"


@row(family="isosurface", op="extract", shape="shells 256", kind="distance", resolution=256)
@row(family="isosurface", op="extract", shape="shells 512", kind="distance", resolution=512)
@row(family="isosurface", op="extract", shape="shells 512, saturated", kind="saturated", resolution=512)
@row(family="isosurface", op="extract", shape="shells 1024", kind="distance", resolution=1024)
def extract(device: torch.device, kind: str, resolution: int) -> Case:
    """Coarse-to-fine extraction of a cheap field, its own cost; beside the dense one where that has room."""
    field = {"distance": distance, "saturated": saturated}[kind]
    options: dict[str, Any] = {"closed": True, "device": device, "verify": 1000}
    mesh, report = geometry.extract(field, resolution, method="coarse_to_fine", return_report=True, **options)
    dense = Peer(lambda: geometry.extract(field, resolution, **options), note=asked(report))
    if resolution <= 512:
        mesh = geometry.extract(field, resolution, **options)
    return Case(
        run=lambda: geometry.extract(field, resolution, method="coarse_to_fine", **options),
        reference=lambda: mesh,
        check=same_mesh,
        peers={"dense": dense if resolution <= 512 else None},
        memory=True,
    )


@functools.cache
def small_model() -> tuple[VecSetVAE, Tensor]:
    """A VecSet autoencoder fitted to the same field's signs for some steps, and the features of its shape."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "num_latents": 32, "cross_heads": 4}
    options: dict[str, Any] = {**sizes, "latent_dim": 8, "drop_path": 0.0, "decoder_feed_forward": True}
    config = VecSetVAE.Config(**options)
    model = VecSetVAE(config)
    cloud = torch.nn.functional.normalize(torch.randn(1, 512, 3), dim=-1) * 0.6
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        points = torch.rand(1, 1024, 3) * 2 - 1
        logits = model(cloud, points, sample=False).values
        labels = (points.norm(dim=-1) < 0.6).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return model, model.decode(model.encode(cloud).mode())


@row(family="isosurface", op="extract", shape="VecSetVAE 128", resolution=128)
@row(family="isosurface", op="extract", shape="VecSetVAE 256", resolution=256)
def extract_model(device: torch.device, resolution: int) -> Case:
    """The same of a small network, where the queries are what costs."""
    model, features = small_model()
    model, features = copy.deepcopy(model).to(device), features.to(device)
    expected = model.extract(features, resolution, method="dense")
    _, report = model.extract(features, resolution, return_report=True)
    dense = Peer(lambda: model.extract(features, resolution, method="dense"), note=asked(report))
    return Case(
        run=lambda: model.extract(features, resolution),
        reference=lambda: expected,
        check=same_mesh,
        peers={"dense": dense},
    )
