"""Dual surfaces: FlexiCubes forward and backward, corners of voxels, dual marching cubes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastshape import ops, testing
from fastshape.reference import flexicubes as reference

from .bench_isosurface import crossed_cells, field, nearly_as_many
from .peers import installed, load
from .registry import Case, Peer, Target, row

Inputs = dict[str, Any]


@functools.cache
def lattice_inputs(kind: str, resolution: int) -> tuple[Inputs, Tensor]:
    """A field with everything that a network gives beside it, and the cubes."""
    count = resolution + 1
    cubes, points = reference.lattice((count, count, count))
    sdf = field(kind, count)
    inputs = {
        "sdf": sdf,
        "positions": points + 0.4 * torch.rand(len(points), 3),
        "alpha": 0.3 * torch.randn(len(cubes), 8),
        "beta": 0.3 * torch.randn(len(cubes), 12),
        "gamma": torch.randn(len(cubes)),
    }
    return inputs, cubes


@functools.cache
def sparse_inputs(resolution: int) -> tuple[Inputs, Tensor, Tensor]:
    """A shell of voxels around a sphere with raw outputs of a decoder, its corners and voxels."""
    count = resolution + 1
    sdf, (cubes, points) = field("sphere", count).flatten(), reference.lattice((count, count, count))
    near = sdf[cubes].abs().amin(1) < 1.9 / resolution
    voxels = points[cubes[near, 0]].int()
    corners, index = reference.voxel_corners(voxels)
    here = sdf.view(count, count, count)[tuple(corners.long().T)]
    inputs = {
        "sdf": here.contiguous(),
        "positions": corners + 0.4 * torch.rand(len(corners), 3),
        "alpha": 0.3 * torch.randn(len(voxels), 8),
        "beta": 0.3 * torch.randn(len(voxels), 12),
        "gamma": torch.randn(len(voxels)),
    }
    return inputs, index, voxels


def same_surface(result: Any, expected: Any) -> None:
    """The same faces, and vertices and deviations against the formulas in float64.

    At 128^3 the formula in float32 has errors of some 1e-4 in deviations, from products of coordinates up to
    128 whose difference is a distance below one; ours interpolates with a weight in [0, 1] and is closer.
    """
    surface, exact = expected
    assert torch.equal(result[1].cpu(), surface[1])
    for k in (0, 2):
        testing.assert_accurate(result[k], exact[k], surface[k])


def same_gradients(result: Any, expected: Any) -> None:
    """Against those in float64; a few cubes whose beta is near its least, 0.01, have the largest errors."""
    for grad, wanted in zip(result, expected, strict=True):
        testing.assert_gradients_match(grad, wanted, tolerance=5e-4)


def torch_surface(inputs: Inputs, cubes: Tensor, training: bool) -> Any:
    weights = reference.activate(inputs["beta"], inputs["alpha"], inputs["gamma"])
    return reference.flexicubes(
        inputs["sdf"].flatten(), cubes, inputs["positions"], *weights, training=training
    )


def nv_surface(inputs: Inputs, cubes: Tensor, resolution: int, training: bool) -> Callable[[], Any] | None:
    """nv-tlabs' own code, by ``--peer flexicubes=flexicubes.py``."""
    module = load("flexicubes")
    if module is None:
        return None
    extractor = module.FlexiCubes("cpu")
    return lambda: extractor(
        inputs["positions"],
        inputs["sdf"].flatten(),
        cubes,
        resolution,
        beta_fx12=inputs["beta"],
        alpha_fx8=inputs["alpha"],
        gamma_f=inputs["gamma"],
        training=training,
    )


def gradients(
    surface: Callable[[], Any], inputs: Inputs, weights: tuple[Tensor, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward: a call that gives the gradients of all inputs, from those of the outputs."""
    for tensor in inputs.values():
        tensor.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        result = surface()
        return torch.autograd.grad((result[0], result[2]), tuple(inputs.values()), weights)

    return run


def in_double(inputs: Inputs) -> Inputs:
    return {name: None if tensor is None else tensor.detach().double() for name, tensor in inputs.items()}


def fastest(*peers: tuple[str, Any]) -> Target:
    """A sixtieth of the first peer that there is."""
    return Target(next(name for name, peer in peers if peer is not None), 1 / 60)


def on(device: torch.device, inputs: Inputs, *names: str) -> Inputs:
    """The named inputs, or all, apart from the others' gradients."""
    return {name: t.detach().to(device) for name, t in inputs.items() if not names or name in names}


@row(family="isosurface", op="flexicubes", shape="sphere 128^3", kind="sphere", resolution=128)
@row(family="isosurface", op="flexicubes", shape="gyroid 128^3", kind="gyroid", resolution=128)
def flexicubes(device: torch.device, kind: str, resolution: int) -> Case:
    """With positions and all weights, without gradients, beside the formulas in torch."""
    inputs, cubes = lattice_inputs(kind, resolution)
    ours, plain = on(device, inputs), on(torch.device("cpu"), inputs)
    on_cpu = device.type == "cpu"
    nv = nv_surface(plain, cubes, resolution, training=False) if on_cpu else None
    exact = torch_surface(in_double(plain), cubes, training=False)
    expected = torch_surface(plain, cubes, training=False), exact
    return Case(
        run=lambda: ops.flexicubes(**ours, face_order="nv"),
        reference=lambda: expected,
        check=same_surface,
        peers={
            "torch": (lambda: torch_surface(plain, cubes, training=False)) if on_cpu else None,
            "nv": nv,
        },
        memory=True,
        target=fastest(("nv", nv), ("torch", "")),
    )


@row(family="isosurface", op="flexicubes_gradients", shape="sphere 128^3, sdf and positions", kind="sphere")
@row(family="isosurface", op="flexicubes_gradients", shape="gyroid 128^3, sdf and positions", kind="gyroid")
@row(
    family="isosurface",
    op="flexicubes_gradients",
    shape="sphere 128^3, everything",
    kind="sphere",
    every=True,
)
@row(
    family="isosurface",
    op="flexicubes_gradients",
    shape="gyroid 128^3, everything",
    kind="gyroid",
    every=True,
)
def flexicubes_gradients(device: torch.device, kind: str, every: bool = False) -> Case:
    """Forward for training and backward; 21 weights for each of two million cubes are 176 MB of gradients."""
    inputs, cubes = lattice_inputs(kind, 128)
    names = () if every else ("sdf", "positions")
    ours, plain = on(device, inputs, *names), on(torch.device("cpu"), inputs, *names)
    filled: Inputs = {"alpha": None, "beta": None, "gamma": None, **plain}
    exact = in_double(plain)

    def in_torch(inputs: Inputs) -> Any:
        if every:
            return torch_surface(inputs, cubes, training=True)
        return reference.flexicubes(inputs["sdf"].flatten(), cubes, inputs["positions"], training=True)

    # A deviation is an absolute value: where it is nothing up to roundings of coordinates of 128, its
    # gradient has either sign, so nothing is asked of it there.
    with torch.no_grad():
        surface = in_torch(exact)
        weights = tuple(torch.randn_like(surface[k], dtype=torch.float32) for k in (0, 2))
        weights[1][surface[2] < 1e-4] = 0
    here = tuple(weight.to(device) for weight in weights)
    on_cpu = device.type == "cpu"
    nv = nv_surface(filled, cubes, 128, training=True) if on_cpu else None
    expected = gradients(lambda: in_torch(exact), exact, tuple(weight.double() for weight in weights))()
    return Case(
        run=gradients(lambda: ops.flexicubes(**ours, training=True, face_order="nv"), ours, here),
        reference=lambda: expected,
        check=same_gradients,
        peers={
            "torch": gradients(lambda: in_torch(plain), plain, weights) if on_cpu else None,
            "nv": None if nv is None else gradients(nv, plain, weights),
        },
        memory=True,
        target=fastest(("nv", nv), ("torch", "")),
    )


@row(family="isosurface", op="flexicubes", shape="sphere shell in 128^3", resolution=128)
def flexicubes_sparse(device: torch.device, resolution: int) -> Case:
    """From the list of voxels: their corners, then the surface; beside unique rows in torch."""
    inputs, index, voxels = sparse_inputs(resolution)
    ours, plain = on(device, inputs), on(torch.device("cpu"), inputs)
    here = voxels.to(device)
    expected = (
        torch_surface(plain, index, training=False),
        torch_surface(in_double(plain), index, training=False),
    )

    def run() -> Any:
        corners = ops.voxel_corners(here, resolution=resolution)
        return ops.flexicubes(**ours, cubes=corners.cubes, face_order="nv")

    return Case(
        run=run,
        reference=lambda: expected,
        check=same_surface,
        peers={
            "torch": (lambda: torch_surface(plain, reference.voxel_corners(voxels)[1], training=False))
            if device.type == "cpu"
            else None
        },
        memory=True,
        target=Target("torch", 1 / 60),
    )


@row(family="isosurface", op="voxel_corners", shape="sphere shell in 128^3", dtype="int32", resolution=128)
def voxel_corners(device: torch.device, resolution: int) -> Case:
    """The corners of voxels in a random order, beside torch.unique of rows."""
    _, _, voxels = sparse_inputs(resolution)
    voxels = voxels[torch.randperm(len(voxels), generator=torch.Generator().manual_seed(0))]
    expected = reference.voxel_corners(voxels)
    ours = voxels.to(device)
    return Case(
        run=lambda: ops.voxel_corners(ours, resolution=resolution)[:2],
        reference=lambda: expected,
        peers={"torch": (lambda: reference.voxel_corners(voxels)) if device.type == "cpu" else None},
        bytes=voxels.nbytes + expected[0].nbytes + expected[1].nbytes + 8.0 * len(expected[0]),
        target=Target("torch", 1 / 20),
    )


def mesh_peers(values: Tensor) -> dict[str, Peer | None]:
    """Marching cubes of others: of a dual form there is none on PyPI."""
    array = values.numpy()
    measure, mcubes = installed("skimage.measure"), installed("mcubes")
    return {
        "skimage": None
        if measure is None
        else Peer(
            lambda: measure.marching_cubes(array, 0.0)[:2],
            check=nearly_as_many,
            note="marching cubes, Lewiner's cases, with normals",
        ),
        "PyMCubes": None
        if mcubes is None
        else Peer(lambda: mcubes.marching_cubes(array, 0.0), check=nearly_as_many, note="marching cubes"),
    }


@row(family="isosurface", op="dual_marching_cubes", shape="sphere 128^3", kind="sphere", resolution=128)
@row(family="isosurface", op="dual_marching_cubes", shape="gyroid 128^3", kind="gyroid", resolution=128)
@row(family="isosurface", op="dual_marching_cubes", shape="sphere 256^3", kind="sphere", resolution=256)
@row(family="isosurface", op="dual_marching_cubes", shape="gyroid 256^3", kind="gyroid", resolution=256)
def dual_marching_cubes(device: torch.device, kind: str, resolution: int) -> Case:
    """The default order of faces is our own, so the reference's is compared after both are sorted."""
    cpu = field(kind, resolution)
    values = cpu.to(device)
    strides = torch.tensor([resolution**2, resolution, 1])
    lowest = crossed_cells(cpu)[1].long() @ strides
    steps = torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]) @ strides
    points = torch.cartesian_prod(*[torch.arange(float(resolution))] * 3)
    surface = reference.flexicubes(cpu.flatten(), lowest[:, None] + steps, points)
    expected = surface.vertices, surface.faces

    def check(result: Any, expected: Any) -> None:
        testing.assert_accurate(result[0], expected[0].double(), expected[0], floor=2e-5)
        assert torch.equal(result[1].cpu().sort(0).values, expected[1].sort(0).values)

    return Case(
        run=lambda: ops.dual_marching_cubes(values),
        reference=lambda: expected,
        check=check,
        peers=mesh_peers(cpu) if device.type == "cpu" else {},
        bytes=values.nbytes + 12.0 * len(expected[0]) + 24.0 * len(expected[1]),
        target=Target("skimage", 1 / 3),
    )
