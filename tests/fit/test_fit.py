"""Fitting a mesh by differentiable rendering: the field, its refinement, and the whole job in small."""

from __future__ import annotations

import dataclasses
import signal

import pytest
import torch

from fastshape import fit, geometry, ops
from fastshape.fit.adam import RowAdam
from fastshape.fit.coverage import Coverage
from fastshape.fit.loop import _Run, centered_twins, distance_field, to_cube
from fastshape.fit.tables import holes
from fastshape.geometry import Mesh
from fastshape.runtime.files import CheckpointError, write_safetensors

CPU = torch.device("cpu")

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


@pytest.fixture
def usual_ctrl_c():
    """In a process that was started in the background it does nothing."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


# ---- Distances ---------------------------------------------------------------------------------------------


def test_distances_to_a_closed_mesh_are_those_of_the_solid():
    points = torch.rand(4000, 3) - 0.5
    box = (points.abs() - 0.3).clamp_min(0).norm(dim=1) + (points.abs() - 0.3).amax(1).clamp_max(0)
    assert torch.allclose(distance_field(cube_mesh())(points), box, atol=1e-6)


def test_a_fold_does_not_open_a_mesh():
    """A pair of faces on an edge has four faces there, but no rim: inside and outside stand."""
    mesh = cube_mesh()
    faces = torch.cat([mesh.faces, torch.tensor([[0, 1, 7], [0, 7, 1]])])
    folded = Mesh(mesh.vertices, faces)
    assert not folded.is_watertight
    assert distance_field(folded).sign == distance_field(mesh).sign == "auto"


def test_an_open_mesh_has_a_front_and_a_back_however_its_faces_are_turned():
    sheet = Mesh(
        torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * 0.4,
        torch.tensor([[0, 1, 2], [0, 3, 2]]),  # the second looks the other way
    )
    points = torch.tensor([[0.1, 0.05, 0.2], [0.1, 0.05, -0.2], [0.05, 0.1, 0.2], [0.05, 0.1, -0.2]])
    found = distance_field(sheet)(points)
    assert torch.allclose(found.abs(), torch.full((4,), 0.2))
    assert found[0] == found[2] == -found[1] == -found[3]


# ---- The field ---------------------------------------------------------------------------------------------


def test_voxels_near_hold_the_whole_surface():
    mesh, _ = to_cube(sphere())
    distance = distance_field(mesh)
    coords = fit.voxels_near(distance.bvh, 32)
    points = geometry.sample_surface(mesh, 20_000, generator=torch.Generator().manual_seed(0)).points
    held = {tuple(row) for row in coords.tolist()}
    assert {tuple(row) for row in ((points + 0.5) * 32).long().tolist()} <= held


def test_the_start_is_dual_marching_cubes_of_the_distances():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 32)
    vertices, faces = ops.dual_marching_cubes(
        field.corner_values[:, 0].contiguous(),
        cubes=field.corners.cubes,
        positions=field.corner_points(),
    )
    found = field.mesh()
    assert torch.equal(found.vertices, vertices)
    assert found.num_faces == len(faces)
    assert found.is_watertight


def test_the_mesh_is_the_surface_of_all_voxels():
    mesh, _ = to_cube(half_pipe())
    field = fit.start(mesh, 24)
    field.weights += torch.randn(field.weights.shape, generator=torch.Generator().manual_seed(0))
    whole = field.whole()
    surface = field.surface(whole, field.values(whole), training=False)
    found = field.mesh()
    assert torch.equal(found.vertices, surface.vertices)
    assert torch.equal(found.faces, surface.faces)


def test_a_part_of_all_voxels_is_the_whole():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 24)
    whole, part = field.whole(), field.part(torch.arange(field.num_voxels))
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a, b)


def test_a_part_is_that_of_its_voxels_alone():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 24)
    rows = torch.arange(50, 250, 3)
    part = field.part(rows)
    corners = ops.voxel_corners(field.coords[rows], resolution=24)
    assert torch.equal(part.cubes, corners.cubes)
    assert torch.equal(field.corners.coords[part.corner_rows], corners.coords)
    assert torch.equal(part.neighbors, ops.corner_neighbors(corners))


def test_a_step_moves_the_part_that_took_part():
    mesh, _ = to_cube(sphere())
    field = fit.start(mesh, 24)
    before = field.corner_values.clone(), field.weights.clone()
    part = field.part(torch.arange(50, 90))
    values = field.values(part)
    surface = field.surface(part, values, training=True)
    gradients = torch.autograd.grad(surface.vertices.square().sum(), list(values))
    optimizer = RowAdam([field.corner_values, field.weights])
    optimizer.step([part.corner_rows, part.rows], gradients, 0.01)
    moved = [
        (a != b).any(1).nonzero()[:, 0].tolist()
        for a, b in zip(before, (field.corner_values, field.weights), strict=True)
    ]
    assert moved[0]
    assert set(moved[0]) <= set(part.corner_rows.tolist())
    assert moved[1]
    assert set(moved[1]) <= set(range(50, 90))


def test_the_twins_of_centered_quads_are_those_of_their_triangles():
    mesh, _ = to_cube(half_pipe())
    field = fit.start(mesh, 24)
    part = field.whole()
    faces = field.surface(part, field.values(part), training=True).faces
    assert len(faces) > 1000
    assert bool((centered_twins(faces) < 0).any())  # the rims
    assert torch.equal(centered_twins(faces), ops.edge_twins(faces))
    assert centered_twins(faces[:0]).shape == (0, 3)


# ---- The optimizer -----------------------------------------------------------------------------------------


def test_adam_of_all_rows_is_torchs():
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    own, theirs = start.clone(), start.clone().requires_grad_()
    optimizer, torchs = RowAdam([own]), torch.optim.Adam([theirs], lr=0.1)
    for step in range(20):
        gradient = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        optimizer.step([torch.arange(6)], [gradient], 0.1)
        theirs.grad = gradient
        torchs.step()
    torch.testing.assert_close(own, theirs.detach())


def test_a_row_counts_its_own_steps():
    """One that comes late moves as it would have moved early, by one rate at first."""
    rows = torch.zeros(2, 1)
    optimizer = RowAdam([rows])
    for _ in range(500):
        optimizer.step([torch.tensor([0])], [torch.ones(1, 1)], 0.01)
    optimizer.step([torch.tensor([1])], [torch.full((1, 1), 7.0)], 0.01)
    assert float(rows[1]) == pytest.approx(-0.01, rel=1e-4)


# ---- What is looked at -------------------------------------------------------------------------------------


def cup() -> Mesh:
    """A box without a lid: its ground is seen through the opening alone."""
    box = cube_mesh(0.8)
    normals = box.face_normals
    return Mesh(box.vertices, box.faces[normals[:, 2] < 0.5])


def test_cameras_look_at_what_was_seen_least():
    mesh = cup()
    distance = distance_field(mesh)
    generator = torch.Generator().manual_seed(0)
    coverage = Coverage(mesh, distance.bvh, 2000, generator)
    ground = coverage.points[:, 2] < -0.4 + 1e-6

    def picture(camera):
        seen = geometry.render_views(mesh.vertices, mesh.faces, camera.matrix[None], 64)
        coverage.count(camera, torch.where(seen.triangle_id >= 0, seen.depth, torch.inf)[0], 0.01)

    for _ in range(40):
        picture(coverage.camera(generator)[0])
    from_within = (coverage.seen[ground] > 0).float().mean()
    assert from_within == 1  # from below, too, as an open sheet shows both sides
    assert coverage.seen.min() >= 5
    assert coverage.seen.max() < 40


def test_a_camera_sees_the_point_that_it_is_for():
    mesh = cup()
    distance = distance_field(mesh)
    generator = torch.Generator().manual_seed(1)
    coverage = Coverage(mesh, distance.bvh, 500, generator)
    for _ in range(10):
        camera, point = coverage.camera(generator)
        met = ops.cast_rays(camera.eye[None], (point - camera.eye)[None], distance.bvh).t
        assert float(met[0]) > 0.99
        before = coverage.seen.clone()
        seen = geometry.render_views(mesh.vertices, mesh.faces, camera.matrix[None], 128)
        depth = torch.where(seen.triangle_id >= 0, seen.depth, torch.inf)[0]
        coverage.count(camera, depth, 0.02)
        number = int((coverage.points == point).all(1).nonzero()[0])
        assert coverage.seen[number] == before[number] + 1


def test_rays_go_through_the_pixels():
    camera = fit.camera_at(torch.tensor([1.5, 0.4, -0.3]), torch.zeros(3), 40.0)
    rays = camera.rays(16)
    for row, column in ((0, 0), (3, 12), (15, 7)):
        x, y, _, w = camera.matrix @ torch.cat([camera.eye + rays[row, column], torch.ones(1)])
        assert float(x / w) == pytest.approx((column + 0.5) / 8 - 1, abs=1e-4)
        assert float(y / w) == pytest.approx(1 - (row + 0.5) / 8, abs=1e-4)


def test_refining_keeps_the_surface():
    mesh, _ = to_cube(sphere())
    distance = distance_field(mesh)
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


# ---- Going on ----------------------------------------------------------------------------------------------

RESUMED = dataclasses.replace(SMALL, steps=12)  # 6 at 16 voxels a side, then 12 at 32


def same(first: fit.Fit, second: fit.Fit) -> bool:
    """To the last bit, voxels and weights too."""
    pairs = [
        (first.mesh.vertices, second.mesh.vertices),
        (first.mesh.faces, second.mesh.faces),
        (first.field.corner_values, second.field.corner_values),
        (first.field.weights, second.field.weights),
    ]
    counts = (first.voxels_per_step, first.empty_steps) == (second.voxels_per_step, second.empty_steps)
    return counts and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("after", [4, 6, 7, 15])
def test_an_interrupted_fit_goes_on_bit_for_bit(tmp_path, usual_ctrl_c, after):
    """In the first level, at its end, and in the second."""
    whole = fit.fit_mesh(sphere(), RESUMED)
    file = tmp_path / "deep" / "checkpoint.safetensors"
    steps = []

    def interrupt(step):
        steps.append(step)
        if len(steps) == after - 1:
            signal.raise_signal(signal.SIGINT)  # acts after the step that follows

    with pytest.raises(fit.FitInterrupted, match=r"stopped after step \d+ of \d+; saved in .*checkpoint"):
        fit.fit_mesh(sphere(), RESUMED, checkpoint_file=file, checkpoint_every=0, on_step=interrupt)
    assert len(steps) == after
    rest = []
    found = fit.fit_mesh(sphere(), RESUMED, checkpoint_file=file, on_step=rest.append)
    assert len(rest) == 18 - after
    assert same(found, whole)


def test_a_killed_fit_goes_on_from_its_last_checkpoint(tmp_path):
    class KilledError(Exception):
        pass

    def kill(step):
        if step.resolution == 32 and step.number == 9:
            raise KilledError

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        fit.fit_mesh(sphere(), RESUMED, checkpoint_file=file, checkpoint_every=4, on_step=kill)
    rest = []
    found = fit.fit_mesh(sphere(), RESUMED, checkpoint_file=file, checkpoint_every=4, on_step=rest.append)
    assert (rest[0].resolution, rest[0].number) == (32, 9)
    assert same(found, fit.fit_mesh(sphere(), RESUMED))
    again = []
    fit.fit_mesh(sphere(), RESUMED, checkpoint_file=file, resume=False, on_step=again.append)
    assert len(again) == 18


def test_an_interrupt_without_a_file_says_where_it_stopped(usual_ctrl_c):
    def interrupt(step):
        if step.number == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(fit.FitInterrupted, match=r"stopped after step 2 of 6$"):
        fit.fit_mesh(sphere(), RESUMED, on_step=interrupt)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (sphere, {"seed": 3, "steps": 12}, r"with another configuration: seed \(0 -> 3\); use another file"),
        (cube_mesh, {}, "belongs to a fit of another mesh; use another file, or resume=False"),
    ],
)
def test_the_checkpoint_of_another_fit_is_refused(tmp_path, mesh, changes, message):
    file = tmp_path / "checkpoint.safetensors"
    config = dataclasses.replace(RESUMED, levels=1, steps=3)
    fit.fit_mesh(sphere(), dataclasses.replace(config, steps=12), checkpoint_file=file, checkpoint_every=3)
    with pytest.raises(CheckpointError, match=message):
        fit.fit_mesh(mesh(), dataclasses.replace(config, **{"steps": 12, **changes}), checkpoint_file=file)
    file.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        fit.fit_mesh(sphere(), config, checkpoint_file=file)
    write_safetensors(file, {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is not a checkpoint of a fit"):
        fit.fit_mesh(sphere(), config, checkpoint_file=file)


# ---- Its tables --------------------------------------------------------------------------------------------


def test_holes_are_counted():
    ring = geometry.shapes.torus(segments=16)
    assert holes(sphere()) == 0
    assert holes(ring) == 1
    apart = Mesh(ring.vertices + torch.tensor([5.0, 0, 0]), ring.faces)
    assert holes(Mesh.join([ring, apart, sphere()])) == 2
    assert holes(half_pipe()) is None


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"`names` must be of .*, got \['speed'\]"):
        next(fit.tables(sphere(), SMALL, ["speed"]))


# ---- Nothing to see ----------------------------------------------------------------------------------------


def emptied(**changes: object) -> _Run:
    """A fit of a sphere that begins with no corner inside."""
    run = _Run(sphere(), dataclasses.replace(SMALL, levels=1, distance_share=0.0, **changes), CPU)
    run.field.corner_values[:, 0].clamp_(min=0.1)
    return run


def steps_of(run: _Run) -> list[fit.Step]:
    steps = []
    while run.more():
        steps.append(run.step())
    return steps


def test_a_surface_that_is_gone_comes_back_by_the_distances():
    run = emptied(steps=40, learning_rate=0.1)
    with pytest.warns(
        fit.FitWarning, match="step 1 of 40 at 32 voxels a side: nothing of the field's"
    ) as notes:
        steps = steps_of(run)
    assert len(notes) == 1  # once, however many steps
    assert steps[0].num_faces == 0
    assert steps[-1].num_faces > 0
    assert 1 < run.result().empty_steps < 40
    assert run.result().empty_steps == sum(step.num_faces == 0 for step in steps)


@pytest.mark.filterwarnings("ignore::fastshape.fit.FitWarning")
def test_a_field_that_never_shows_a_surface_fails_clearly():
    with pytest.raises(ValueError, match="none of 3 pictures at 32 voxels a side showed a surface"):
        steps_of(emptied(steps=3, distance_weight=0.0))


def test_a_field_without_voxels():
    field = fit.SurfaceField(torch.empty(0, 3, dtype=torch.int32), 8)
    part = field.whole()
    surface = field.surface(part, field.values(part), training=True)
    assert surface.faces.shape == (0, 3)
    assert centered_twins(surface.faces).shape == (0, 3)
    assert field.mesh().num_faces == 0
    assert field.part(torch.empty(0, dtype=torch.int64)).cubes.shape == (0, 8)


def test_a_mesh_without_faces_is_refused():
    with pytest.raises(ValueError, match="without faces"):
        fit.fit_mesh(Mesh(torch.zeros(3, 3), torch.empty(0, 3, dtype=torch.int64)))


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
