"""Fitting a mesh by differentiable rendering: the field, its refinement, and the whole job in small."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastshape import fit, geometry, ops
from fastshape.fit.field import SignedDistance
from fastshape.fit.loop import to_cube
from fastshape.geometry import Mesh

SMALL = fit.FitConfig(resolution=32, levels=2, steps=60, image_size=96, zoom_limits=(256, 4096))


def away(points: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """Distances of points to a mesh."""
    bvh = ops.build_bvh(mesh.vertices.float().contiguous(), mesh.faces)
    return ops.closest_point(points.float().contiguous(), bvh).distance


def cube_mesh(size: float = 0.6) -> Mesh:
    """An axis-parallel box, two triangles a side, outward."""
    corners = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=torch.float64)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)]
    return Mesh(((corners - 0.5) * size).float(), torch.tensor(faces))


def sphere() -> Mesh:
    return geometry.extract(lambda p: p.norm(dim=1) - 0.7, 48)


def half_pipe(segments: int = 24) -> Mesh:
    """An open sheet, half a tube."""
    turn = torch.linspace(0, torch.pi, segments + 1)
    ring = torch.stack([turn.cos(), turn.sin()], 1)
    ends = [torch.cat([ring, torch.full((segments + 1, 1), z)], 1) for z in (-1.0, 1.0)]
    a = torch.arange(segments)
    b = a + segments + 1
    faces = torch.cat([torch.stack([a, a + 1, b], 1), torch.stack([a + 1, b + 1, b], 1)])
    return Mesh(torch.cat(ends), faces)


# ---- Distances ---------------------------------------------------------------------------------------------


def test_distances_to_a_closed_mesh_are_those_of_the_solid():
    points = torch.rand(4000, 3) - 0.5
    box = (points.abs() - 0.3).clamp_min(0).norm(dim=1) + (points.abs() - 0.3).amax(1).clamp_max(0)
    assert torch.allclose(SignedDistance(cube_mesh())(points), box, atol=1e-6)


def test_pseudonormals_tell_before_from_behind_at_edges_and_vertices():
    # The same box taken as an open surface: its sign comes from the nearest face, edge or vertex.
    points = torch.rand(4000, 3) - 0.5
    distance = SignedDistance(cube_mesh(), closed=False)
    assert torch.allclose(distance(points), SignedDistance(cube_mesh())(points), atol=1e-6)


def test_an_open_sheet_has_two_sides():
    sheet = Mesh(
        torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * 0.4,
        torch.tensor([[0, 1, 2], [0, 2, 3]]),
    )
    points = torch.tensor([[0.1, 0.1, 0.2], [0.1, 0.1, -0.2]])
    assert torch.allclose(SignedDistance(sheet)(points), torch.tensor([0.2, -0.2]))


# ---- The field ---------------------------------------------------------------------------------------------


def test_voxels_near_hold_the_whole_surface():
    mesh, _ = to_cube(sphere())
    distance = SignedDistance(mesh)
    coords = fit.voxels_near(distance.bvh, 32)
    points = geometry.sample_surface(mesh, 20_000, generator=torch.Generator().manual_seed(0)).points
    held = {tuple(row) for row in coords.tolist()}
    assert {tuple(row) for row in ((points + 0.5) * 32).long().tolist()} <= held


def test_the_start_is_dual_marching_cubes_of_the_distances():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 32)
    vertices, faces = ops.dual_marching_cubes(
        field.corner_values.detach()[:, 0].contiguous(),
        cubes=field.corners.cubes,
        positions=field.corner_points(),
    )
    found = field.mesh()
    assert torch.equal(found.vertices, vertices)
    assert found.num_faces == len(faces)
    assert found.is_watertight


def test_a_part_of_all_voxels_is_the_whole():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 24)
    whole, part = field.whole(), field.part(torch.arange(field.num_voxels))
    assert torch.equal(whole.corner_rows, part.corner_rows)
    assert torch.equal(whole.corners.cubes, part.corners.cubes)


def test_only_the_part_that_took_part_has_a_gradient():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 24)
    part = field.part(torch.arange(50, 90))
    surface = field.surface(part, field.values(part), training=True)
    surface.vertices.square().sum().backward()
    touched = field.corner_values.grad.coalesce().indices()[0]
    assert set(touched.tolist()) <= set(part.corner_rows.tolist())
    assert field.weights.grad.coalesce().indices()[0].tolist() == list(range(50, 90))


def test_refining_keeps_the_surface():
    mesh, _ = to_cube(sphere())
    distance = SignedDistance(mesh)
    coarse = fit.start(mesh, 32, distance=distance)
    with torch.no_grad():
        coarse.corner_values[:, 1:] = 0.3  # a shift that all corners share moves the whole surface
    fine = coarse.refined(fit.voxels_near(distance.bvh, 64))
    assert float(away(fine.mesh().vertices, coarse.mesh()).max()) < 0.15 / 32
    assert float(fine.mesh().vertices.mean(0).sub(coarse.mesh().vertices.mean(0)).abs().max()) < 1e-3


def test_refining_needs_the_coarser_voxels():
    field = fit.SurfaceField(torch.zeros(1, 3, dtype=torch.int32), 8)
    with pytest.raises(ValueError, match="`coords` must lie in the voxels of the coarser field"):
        field.refined(torch.tensor([[5, 5, 5]], dtype=torch.int32))


# ---- The whole job -----------------------------------------------------------------------------------------


def test_fitting_sharpens_a_box():
    mesh = cube_mesh()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)))[0]
    mesh = Mesh(mesh.vertices @ (rotation * rotation.det()).T, mesh.faces)
    before = fit.dual_marching_cubes_mesh(mesh, 32)
    steps = []
    found = fit.fit_mesh(mesh, dataclasses.replace(SMALL, steps=150), on_step=steps.append)

    # The corners, which dual marching cubes cut off.
    assert float(away(mesh.vertices, found.mesh).mean()) < 0.7 * float(away(mesh.vertices, before).mean())
    assert found.mesh.is_watertight
    assert [(s.resolution, s.of) for s in steps[:: len(steps) - 1]] == [(16, 75), (32, 150)]


@pytest.mark.parametrize(("carve", "zoom"), [(False, False), (True, False), (False, True)])
def test_the_savings_can_be_turned_off(carve, zoom):
    config = dataclasses.replace(SMALL, steps=6, levels=1, carve=carve, zoom=zoom)
    found = fit.fit_mesh(sphere(), config)
    share = found.voxels_per_step / found.num_voxels
    assert share == 1.0 if not (carve or zoom) else share < 0.9


def test_an_open_mesh_stays_open():
    found = fit.fit_mesh(half_pipe(), dataclasses.replace(SMALL, steps=20))
    assert not found.mesh.is_watertight
    # Within two voxels of the rims; the longest side of the sheet is 2, that of the cube 32 voxels.
    assert float(away(half_pipe().vertices, found.mesh).max()) < 2 * 2.1 / 32


def test_the_same_seed_gives_the_same_fit():
    config = dataclasses.replace(SMALL, steps=8)
    first, second = (fit.fit_mesh(sphere(), config) for _ in range(2))
    assert torch.equal(first.mesh.vertices, second.mesh.vertices)
    other = fit.fit_mesh(sphere(), dataclasses.replace(config, seed=1))
    assert not torch.equal(first.mesh.vertices, other.mesh.vertices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 0}, "`resolution` must be at least 1, got 0"),
        (
            {"resolution": 30, "levels": 3},
            "`resolution` must be at least 8 after 2 halvings, and whole, got 30",
        ),
        ({"zoom_share": (0.5, 0.1)}, r"`zoom_share` must ascend in \(0, 1\]"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
    ],
)
def test_a_bad_configuration_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
