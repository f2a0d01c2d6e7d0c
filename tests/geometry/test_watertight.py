import json
import math
import sys

import pytest
import torch

from fastshape import ops, testing
from fastshape.geometry import Mesh, WatertightError, sample_surface, shapes, watertight
from fastshape.geometry import union as parts

manifold3d = pytest.importorskip("manifold3d")


def box(low, high):
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    faces = torch.tensor(list(map(int, "013032467475045051237276026064157173"))).view(-1, 3)
    return Mesh(low + corners * (high - low), faces)


def ball(radius=1.0, center=(0.0, 0.0, 0.0), subdivisions=3):
    vertices, faces = testing.icosphere(subdivisions, radius)
    return Mesh(vertices + torch.tensor(center, dtype=torch.float64), faces)


def open_box():
    """Without its lid at z = 1."""
    mesh = box((-1, -1, -1), (1, 1, 1))
    return Mesh(mesh.vertices, mesh.faces[~(mesh.triangles[:, :, 2] == 1).all(1)])


def tilted(mesh):
    c, s = math.cos(0.4), math.sin(0.4)
    turn = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
    return Mesh(mesh.vertices @ turn.T @ turn[[1, 2, 0]][:, [1, 2, 0]].T, mesh.faces)


def thin_plate():
    """A tenth of a cell of 64, askew to the lattice."""
    return tilted(box((-1, -1, -1.5e-3), (1, 1, 1.5e-3)))


def far_part():
    """A ball of 0.3 cells of 64 that holds no lattice point, between larger ones that make the box."""
    tiny = ball(0.01, tuple((i + 0.5) * 2.1 / 64 - 1.05 for i in (41, 41, 38)), 1)
    return Mesh.join([ball(0.5, (-0.5, 0, 0)), ball(0.2, (0.8, 0, 0)), tiny])


def overlapping():
    rod = box((-1, -0.1, -0.1), (1, 0.1, 0.1))
    return Mesh.join([ball(0.6, (-0.4, 0, 0)), ball(0.6, (0.4, 0, 0)), rod])


def soup(mesh, seed=0):
    """Triangles of their own vertices, in any order."""
    order = torch.randperm(mesh.num_faces, generator=torch.Generator().manual_seed(seed))
    return Mesh(mesh.triangles[order].reshape(-1, 3), torch.arange(3 * mesh.num_faces).view(-1, 3))


def turn_some(mesh, share, seed=0):
    flips = torch.rand(mesh.num_faces, generator=torch.Generator().manual_seed(seed)) < share
    return Mesh(mesh.vertices, torch.where(flips[:, None], mesh.faces.flip(1), mesh.faces))


def without_faces(mesh, begin, end):
    return Mesh(mesh.vertices, torch.cat([mesh.faces[:begin], mesh.faces[end:]]))


def moebius(segments=60):
    u = torch.arange(segments, dtype=torch.float64) * (2 * math.pi / segments)
    rim = []
    for side in (-0.3, 0.3):
        radius = 0.8 + side * (u / 2).cos()
        rim.append(torch.stack([radius * u.cos(), radius * u.sin(), side * (u / 2).sin()], 1))
    faces = []
    for i in range(segments - 1):
        faces += [[i, i + 1, segments + i], [i + 1, segments + i + 1, segments + i]]
    last = segments - 1
    faces += [[last, segments, segments + last], [segments, 0, segments + last]]
    return Mesh(torch.cat(rim), torch.tensor(faces))


def sheets(count=6):
    """Parallel squares, each a part of its own, farther apart than the shell is thick."""
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    heights = torch.linspace(-1, 1, count)
    return Mesh.join([Mesh(square + torch.tensor([0, 0, float(z)]), faces) for z in heights])


SHAPES = {
    "torus": lambda: shapes.torus(segments=48),
    "knot": lambda: shapes.knot(segments=128),
    "gear": shapes.gear,
    "plate": shapes.plate,
    "nested_shells": shapes.nested_shells,
    "multi_part": shapes.multi_part,
    "half_pipe": shapes.half_pipe,
    "csg": lambda: shapes.csg(3),
    "overlapping": overlapping,
    "flipped": lambda: turn_some(ball(), 0.3),
    "inside_out": lambda: shapes.gear().flip(),
    "soup": lambda: soup(shapes.torus(segments=24)),
    "flipped_soup": lambda: turn_some(soup(shapes.torus(segments=24)), 0.5),
    "open_box": open_box,
    "thin_plate": thin_plate,
    "open_thin_plate": lambda: without_faces(thin_plate(), 0, 1),
    "plate_without_top": lambda: without_faces(thin_plate(), 8, 10),
    "far_part": far_part,
    "open_far_part": lambda: without_faces(far_part(), 0, 3),
    "floating": lambda: Mesh.join([box((-1,) * 3, (1,) * 3), box((-0.7,) * 3, (0.7,) * 3).flip(), ball(0.3)]),
    "holes": lambda: without_faces(ball(), 100, 103),
    "doubled": lambda: Mesh.join([ball(), ball()]),
    "moebius": moebius,
    "sheets": sheets,
    "triangle": lambda: Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])),
    "corner_to_corner": lambda: Mesh.join([box((-1, -1, -1), (0, 0, 0)), box((0, 0, -1), (1, 1, 0))]),
    "stacked": lambda: Mesh.join([box((-1, -1, -1), (1, 1, 0)), box((-1, -1, 0), (1, 1, 1))]),
}  # fmt: skip


def assert_covered(mesh, result, tolerance):
    """No part is lost: samples of the input lie inside the result or within `tolerance` of it."""
    samples = sample_surface(mesh, 4000, torch.Generator().manual_seed(5)).points
    samples = torch.cat([samples, mesh.vertices[mesh.faces.unique()].float()])
    bvh = ops.build_bvh(result.vertices.float(), result.faces)
    distance = ops.closest_point(samples, bvh).distance
    inside = ops.winding_number(samples, bvh) > 0.5
    assert float(distance[~inside].max() if (~inside).any() else 0.0) <= tolerance


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", ["auto", "shell", "winding"])
def test_closed_and_nothing_lost(name, method):
    mesh = SHAPES[name]()
    resolution = 64
    result, report = watertight(mesh, resolution=resolution, method=method)
    assert result.is_watertight
    assert result.volume > 0
    assert report.closed
    assert report.lost == 0
    assert report.lost_parts == 0
    assert report.parts_out >= 1
    assert_covered(mesh, result, 2 / resolution + 2.1 / resolution)
    if method == "shell":
        assert report.method == "shell"
        assert report.epsilon == pytest.approx(
            2 / resolution * float((mesh.bounds[1] - mesh.bounds[0]).max()) / 2
        )
        # Nothing of the result is farther from the input than the shell is thick.
        back = ops.closest_point(result.vertices.float(), ops.build_bvh(mesh.vertices.float(), mesh.faces))
        assert float(back.distance.max()) < report.epsilon + report.cell


@pytest.mark.parametrize(
    ("name", "method", "parts_out", "cavities"),
    [
        ("torus", "none", 1, 0),
        ("nested_shells", "none", 2, 0),
        ("multi_part", "none", 3, 0),
        ("thin_plate", "none", 1, 0),
        ("far_part", "none", 3, 0),
        ("floating", "none", 2, 1),
        ("flipped", "none", 1, 0),
        ("inside_out", "none", 1, 0),
        ("soup", "none", 1, 0),
        ("corner_to_corner", "none", 2, 0),
        ("overlapping", "union", 1, 0),
        ("stacked", "union", 1, 0),
        ("doubled", "union", 1, 0),
        ("holes", "winding", 1, 0),
        ("half_pipe", "shell", 1, 0),
        ("open_box", "shell", 1, 0),
        ("open_thin_plate", "winding", 1, 0),
        ("open_far_part", "winding", 3, 0),
        ("plate_without_top", "shell", 1, 0),
        ("sheets", "shell", 6, 0),
        ("moebius", "shell", 1, 0),
        ("triangle", "shell", 1, 0),
    ],
)
def test_the_method_that_auto_takes(name, method, parts_out, cavities):
    report = watertight(SHAPES[name](), resolution=64).report
    assert report.method == method, report.why
    assert (report.parts_out, report.cavities_out) == (parts_out, cavities)
    assert report.why


@pytest.mark.parametrize("resolution", [48, 64])
def test_vertices_lie_where_the_lattice_says(resolution):
    """A ball grows by epsilon and stays where it is: the published formula shifts and shrinks it."""
    result, report = watertight(ball(subdivisions=5), resolution=resolution, method="shell")
    cell, epsilon = 2.1 / resolution, 2 / resolution
    assert report.cell == pytest.approx(cell, rel=1e-3)
    center = (result.bounds[0] + result.bounds[1]) / 2
    assert float(center.abs().max()) < 0.01 * cell
    radius = result.vertices.norm(dim=1)
    assert abs(float(radius.mean()) - (1 + epsilon)) < 0.03 * cell
    assert float((radius - (1 + epsilon)).abs().max()) < 0.1 * cell
    index = (result.vertices + 1.05) / cell
    published = (index + 1) / (resolution + 1) * 2.1 - 1.05
    assert abs(float(published.norm(dim=1).mean()) - (1 + epsilon)) > 0.2 * cell
    assert float(published.mean(0).abs().max()) > 0.2 * cell


def test_shell_fills_what_it_encloses_and_keeps_every_outer_part():
    hollow = Mesh.join([ball(1), ball(0.7).flip(), ball(0.3), box((1.5, -0.2, -0.2), (1.9, 0.2, 0.2))])
    result, report = watertight(hollow, resolution=96, method="shell")
    assert (report.parts_out, report.cavities_out) == (2, 0)
    grown = report.epsilon
    expected = 4 / 3 * math.pi * (1 + grown) ** 3 + (0.4 + 2 * grown) ** 3
    assert result.volume == pytest.approx(expected, rel=0.01)
    assert report.enclosed > 0.2


def test_shell_does_not_leak():
    """However the surface lies, more than half a cell holds the water back."""
    for seed in range(6):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0].double()
        mesh = box((-1, -0.8, -0.6), (1, 0.8, 0.6))
        mesh = Mesh(mesh.vertices @ turn.T, mesh.faces)
        result, report = watertight(mesh, resolution=24, method="shell", epsilon=1.06 / 24)
        assert report.cavities_out == 0
        assert result.volume > abs(mesh.volume)


def test_winding_does_not_grow_and_closes_holes():
    mesh = without_faces(ball(subdivisions=4), 200, 230)
    result, report = watertight(mesh, resolution=96)
    assert report.method == "winding"
    assert report.epsilon == 0
    assert report.open_edges > 0
    assert report.doubt <= 0.01
    assert result.volume == pytest.approx(ball(subdivisions=4).volume, rel=0.01)
    assert report.largest_distance < 0.1 * report.cell + 1e-3
    assert float(result.vertices.norm(dim=1).max()) < 1 + 0.25 * report.cell


def test_winding_across_a_large_hole():
    """The film spans the half pipe's mouth, far from every face."""
    mesh = shapes.half_pipe()
    result, report = watertight(mesh, resolution=64, method="winding")
    assert result.is_watertight
    assert report.method == "winding"
    assert report.parts_out == 1
    far = ops.closest_point(result.vertices.float(), ops.build_bvh(mesh.vertices, mesh.faces)).distance
    assert float(far.max()) > 5 * report.cell


def test_winding_beyond_the_border_is_outside():
    """Caps inside each other count thrice, also in front of them: the film would leave the lattice."""
    cap = ball(subdivisions=4)
    cap = Mesh(cap.vertices, cap.faces[cap.triangles.mean(1)[:, 2] < -0.1])
    mesh = Mesh.join([Mesh(cap.vertices * s, cap.faces) for s in (1.0, 0.97, 0.94, 0.91)])
    result = watertight(mesh, resolution=48, method="winding").mesh
    assert result.is_watertight


def test_winding_keeps_cavities():
    hollow = without_faces(Mesh.join([ball(1), ball(0.6).flip()]), 40, 41)
    result, report = watertight(hollow, resolution=64)
    assert (report.method, report.parts_out, report.cavities_out) == ("winding", 1, 1)
    assert result.volume == pytest.approx(ball(1).volume - ball(0.6).volume, rel=0.02)


def test_winding_thickens_thin_parts_and_nothing_else():
    sheet = tilted(box((-0.95, -0.95, -1e-3), (0.95, 0.95, 1e-3)))
    solid = without_faces(box((-1, -1, -0.5), (1, -0.6, 0.5)), 0, 1)
    mesh = Mesh.join([sheet, Mesh(solid.vertices - torch.tensor([0, 0.9, 0.0]), solid.faces)])
    result, report = watertight(mesh, resolution=96, method="winding")
    assert 0.3 < report.thickened < 0.95
    assert (report.parts_out, report.cavities_out) == (2, 0)
    part, count = parts.connected_parts(result.faces, result.num_vertices)
    volumes = parts.part_volumes(result, part, count).sort().values
    assert float(volumes[1]) == pytest.approx(0.8, rel=0.02)
    side = 1.9 + 2 * report.epsilon
    assert float(volumes[0]) == pytest.approx(side**2 * 2 * (report.epsilon + 1e-3), rel=0.05)


@pytest.mark.parametrize("resolution", [40, 64])
def test_no_slits_in_a_wall_about_a_cell_thick(resolution):
    """A tube whose round wall passes between lattice points at every slant: a tunnel, and no other hole."""
    tube = manifold3d.Manifold.cylinder(1.6, 1.0, 1.0, 96, True) - manifold3d.Manifold.cylinder(
        2.0, 0.97, 0.97, 96, True
    )
    arrays = tube.rotate((20.0, 30.0, 40.0)).to_mesh()
    mesh = Mesh(
        torch.from_numpy(arrays.vert_properties[:, :3].astype("float64")),
        torch.from_numpy(arrays.tri_verts.astype("int64")),
    )
    result, report = watertight(mesh, resolution=resolution, method="winding")
    assert result.is_watertight
    assert report.lost == 0
    assert report.parts_out == 1
    assert result.num_vertices - result.num_faces // 2 == 0
    # No sample of the middle of the wall is farther than a cell inside or outside.
    assert report.largest_distance < 1.5 * report.cell


def test_a_wall_within_a_solid_leaves_no_trace():
    """Two boxes share a wall that lies on a plane of the lattice, where the winding number may be either."""
    upper = box((-1, -1, 0), (1, 1, 1))
    mesh = Mesh.join([box((-1, -1, -1), (1, 1, 0)), upper])
    result, report = watertight(mesh, resolution=64, method="winding")
    assert (report.parts_out, report.cavities_out) == (1, 0)
    assert report.thickened == 0
    assert result.volume == pytest.approx(8, rel=0.01)


def test_crumbs_are_dropped_and_parts_are_not():
    module = sys.modules["fastshape.geometry.watertight"]
    mesh = Mesh.join([ball(1), ball(0.1, (2, 0, 0)), ball(0.05, (3, 0, 0)), ball(0.05).flip()])
    small = 4 / 3 * math.pi * 0.08**3
    assert parts.count_parts(module._without_crumbs(mesh, 1, small)) == (2, 0)
    assert parts.count_parts(module._without_crumbs(mesh, 3, small)) == (3, 0)
    assert parts.count_parts(module._without_crumbs(mesh, 1, 10.0)) == (1, 0)
    assert module._without_crumbs(mesh, 4, 10.0) is mesh
    assert module._without_crumbs(mesh, 1, 1e-9) is mesh


@pytest.mark.parametrize("resolution", [63, 64])
def test_a_plate_of_no_thickness_on_the_lattice(resolution):
    """At 64 a layer of lattice points lies in the plate, by less than float32 tells."""
    result, report = watertight(box((-1, -1, -1e-9), (1, 1, 1e-9)), resolution=resolution, method="winding")
    assert report.thickened == 1
    assert result.volume == pytest.approx((2 + 2 * report.epsilon) ** 2 * 2 * report.epsilon, rel=0.05)


def test_what_winding_cannot_give_becomes_a_shell(monkeypatch):
    module = sys.modules["fastshape.geometry.watertight"]
    mesh = SHAPES["holes"]()
    monkeypatch.setattr(module, "follow", lambda *arguments, **options: None)
    report = watertight(mesh, resolution=32).report
    assert report.method == "shell"
    assert "winding: leads too far away from the mesh" in report.why
    with pytest.raises(WatertightError, match="leads too far away"):
        watertight(mesh, resolution=32, method="winding")
    monkeypatch.undo()
    monkeypatch.setattr(module, "grow", lambda lattice, indices, chosen, within, rounds: chosen & False)
    report = watertight(SHAPES["open_far_part"](), resolution=64).report
    assert report.method == "shell"
    assert any("would lose 1 part" in reason for reason in report.why)
    assert report.lost == 0


def test_union_of_boxes_is_exact():
    mesh = Mesh.join([box((0, 0, 0), (2, 2, 2)), box((1, 1, 1), (3, 3, 3)), box((0.5,) * 3, (1.0,) * 3)])
    result, report = watertight(mesh)
    assert report.method == "union"
    assert report.overlap > 0.02
    assert report.parts_in == 3
    assert report.parts_out == 1
    assert result.volume == pytest.approx(8 + 8 - 1, rel=1e-9)
    torch.testing.assert_close(result.bounds, torch.tensor([[0.0] * 3, [3.0] * 3], dtype=torch.float64))
    assert report.epsilon == 0
    assert report.largest_distance < 2e-4


@pytest.mark.parametrize(
    ("other", "volume"),
    [
        (((-0.25, -2, -0.25), (0.25, 2, 0.25)), 1 + 1 - 0.125),  # a cross
        (((-1, -1, -0.2), (1, 1, -0.15)), 1 + 0.2 - 0.5 * 2 * 0.05),  # a bar through a plate
        (((1.8, -0.1, -0.1), (2.1, 0.1, 0.1)), 1 + 0.2 * 0.2 * 0.1),  # a knob at its end
    ],
)
def test_overlaps_that_no_middle_of_a_face_shows(other, volume):
    mesh = Mesh.join([box((-2, -0.25, -0.25), (2, 0.25, 0.25)), box(*other)])
    result, report = watertight(mesh)
    assert report.method == "union"
    assert report.overlap > 1e-3
    assert report.parts_out == 1
    assert result.volume == pytest.approx(volume, rel=1e-9)


def test_overlap_is_a_share_of_the_area():
    bars = [box((-2, -0.25, -0.25), (2, 0.25, 0.25)), box((-0.25, -2, -0.2), (0.25, 2, 0.3))]
    # Of the first bar its top and both sides up to the other's walls, of the other the bottom and both sides.
    hidden = 2 * (0.5 * 0.5 + 2 * 0.5 * 0.45)
    assert parts.overlap(Mesh.join(bars)) == pytest.approx(hidden / 17, rel=0.05)
    assert parts.overlap(bars[0]) == 0


def test_union_keeps_a_cavity_except_where_another_part_reaches_into_it():
    outer, cavity = box((-1,) * 3, (1,) * 3), box((-0.5,) * 3, (0.5,) * 3).flip()
    rod = box((-2, -0.1, -0.1), (2, 0.1, 0.1))
    result, report = watertight(Mesh.join([outer, cavity, rod]))
    assert report.method == "union"
    assert (report.parts_in, report.cavities_in) == (2, 1)
    assert result.volume == pytest.approx(8 - 1 + 0.2 * 0.2 * (1 + 2), rel=1e-9)
    assert report.cavities_out == 1


def test_a_cavity_belongs_to_the_smallest_part_that_holds_it():
    small, cavity, large = ball(0.5), ball(0.2).flip(), box((-1, -1, -1), (0.2, 1, 1))
    merged = parts.union(Mesh.join([small, cavity, large]))
    # The large box reaches over half of the cavity and fills it.
    assert merged.is_watertight
    point = torch.tensor([[0.1, 0, 0], [0.25, 0.0, 0.0]], dtype=torch.float64)
    winding = ops.winding_number(point, ops.build_bvh(merged.vertices, merged.faces))
    torch.testing.assert_close(winding, torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)
    with pytest.raises(parts.UnionError, match="lies in no other"):
        parts.union(Mesh.join([small, ball(0.2, (0.9, 0, 0)).flip()]))


def test_without_manifold3d_the_winding_number_takes_over(monkeypatch):
    module = sys.modules["fastshape.geometry.watertight"]
    monkeypatch.setattr(module, "has_manifold3d", lambda: False)
    mesh = SHAPES["overlapping"]()
    expected = parts.union(mesh).volume
    result, report = watertight(mesh, resolution=64)
    assert report.method == "winding"
    assert "union: manifold3d is not installed" in report.why
    assert result.volume == pytest.approx(expected, rel=0.02)

    def refuse(mesh):
        raise parts.UnionError("a part of 12 faces was refused: NotManifold")

    monkeypatch.setattr(module, "has_manifold3d", lambda: True)
    monkeypatch.setattr(module, "union", refuse)
    again = watertight(mesh, resolution=64).report
    assert again.method == "winding"
    assert "union: a part of 12 faces was refused: NotManifold" in again.why
    with pytest.raises(WatertightError, match="NotManifold"):
        watertight(mesh, method="union")


def test_a_part_that_passes_through_itself_is_left_to_the_winding_number():
    """A tube along a curve that crosses itself."""
    mesh = shapes.knot(1, 2, radius=0.16, segments=96)
    t = torch.linspace(0, 2 * math.pi, 97, dtype=torch.float64)[:-1]
    center = torch.stack([t.sin(), t.sin() * t.cos(), 0.0 * t], 1)
    tangent = torch.stack([t.cos(), (2 * t).cos(), 0.0 * t], 1)
    tangent = tangent / tangent.norm(dim=1, keepdim=True)
    side = torch.linalg.cross(tangent, torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(96, 3))
    v = torch.arange(32, dtype=torch.float64) * (2 * math.pi / 32)
    up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    ring = side[:, None] * v.cos()[None, :, None] + up * v.sin()[None, :, None]
    crossing = Mesh((center[:, None] + 0.15 * ring).reshape(-1, 3), mesh.faces)
    result, report = watertight(crossing, resolution=64)
    assert report.overlap > 0.01
    assert report.method == "winding"
    assert result.is_watertight
    assert result.volume < 0.99 * abs(crossing.volume)


def test_an_input_that_needs_nothing_comes_back():
    mesh = shapes.gear()
    assert watertight(mesh).mesh is mesh
    far = Mesh(mesh.vertices, mesh.faces.flip(1))
    turned = watertight(far).mesh
    assert turned.vertices is mesh.vertices
    assert turned.volume == pytest.approx(mesh.volume)


@pytest.mark.parametrize("method", ["auto", "shell"])
def test_own_frame_and_dtype(method):
    """A thousandth of the size, a million away, in float64."""
    mesh = open_box()
    moved = Mesh(mesh.vertices * 1e-3 + 1e6, mesh.faces)
    here, there = (watertight(m, resolution=48, method=method) for m in (mesh, moved))
    assert there.mesh.vertices.dtype == torch.float64
    back = (there.mesh.vertices - 1e6) * 1e3
    assert abs(here.mesh.num_faces - there.mesh.num_faces) < 0.01 * here.mesh.num_faces
    torch.testing.assert_close(Mesh(back, there.mesh.faces).volume, here.mesh.volume, rtol=1e-3, atol=0)
    assert there.report.cell == pytest.approx(here.report.cell * 1e-3)
    assert watertight(mesh.to(torch.float32), resolution=16).mesh.vertices.dtype == torch.float32


def test_unused_vertices_do_not_count():
    mesh = open_box()
    stray = Mesh(torch.cat([mesh.vertices, torch.full((1, 3), 1e5, dtype=torch.float64)]), mesh.faces)
    expected, result = (watertight(m, resolution=32).mesh for m in (mesh, stray))
    assert torch.equal(result.vertices, expected.vertices)
    assert torch.equal(result.faces, expected.faces)


def test_what_was_repaired_is_counted():
    mesh = ball(subdivisions=2)
    degenerate = torch.tensor([[0, 0, 1], [5, 7, 5]])
    messy = soup(turn_some(Mesh(mesh.vertices, torch.cat([mesh.faces, mesh.faces[:10], degenerate])), 0.2))
    result, report = watertight(messy)
    assert report.method == "none"
    assert report.dropped_faces == 12
    assert report.merged_vertices == 3 * (mesh.num_faces + 12) - mesh.num_vertices
    assert 0 < report.flipped_faces < 0.5 * mesh.num_faces
    assert result.num_vertices == mesh.num_vertices
    assert result.volume == pytest.approx(mesh.volume)


def edge_counts(mesh):
    start, end = mesh.faces, mesh.faces.roll(-1, 1)
    key = torch.minimum(start, end) * mesh.num_vertices + torch.maximum(start, end)
    return key.flatten().unique(return_counts=True)[1]


def test_a_fold_is_dropped():
    """Two faces back to back on an edge of a closed surface, as decimation leaves them in scans."""
    mesh = ball(subdivisions=2)
    a, b = mesh.faces[0, :2].tolist()
    tip = mesh.vertices[a] * 1.3
    fin = torch.tensor([[a, b, mesh.num_vertices], [b, a, mesh.num_vertices]])
    folded = Mesh(torch.cat([mesh.vertices, tip[None]]), torch.cat([mesh.faces, fin]))
    assert edge_counts(folded).max() == 4
    result, report = watertight(folded)
    assert report.method == "none"
    assert report.dropped_faces == 2
    assert result.num_faces == mesh.num_faces
    assert result.volume == pytest.approx(mesh.volume)


def test_solids_that_share_an_edge_are_cut_apart():
    left, right = box((-1, -1, -1), (0, 0, 1)), box((0, 0, -1), (1, 1, 1))
    both = soup(Mesh.join([left, right]))
    result, report = watertight(both)
    assert report.method == "none"
    assert report.parts_out == 2
    assert result.num_vertices == 16
    assert result.volume == pytest.approx(4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_cut_apart_pairs_the_faces_with_solid_between_them(count):
    """Wedges around one common edge."""
    vertices, faces = [[0.0, 0, -1], [0, 0, 1]], []
    for wedge in range(count):
        begin = 2 * math.pi * wedge / count + 0.3
        c, d = len(vertices), len(vertices) + 1
        for angle in (begin, begin + math.pi / count):
            vertices.append([math.cos(angle), math.sin(angle), 0])
        faces += [[0, 1, d], [0, c, 1], [1, c, d], [0, d, c]]
    mesh = Mesh(torch.tensor(vertices, dtype=torch.float64), torch.tensor(faces))
    assert edge_counts(mesh).max() == 2 * count
    cut, origin = parts.cut_apart(mesh.vertices, mesh.faces)
    apart = Mesh(mesh.vertices[origin], cut)
    assert apart.is_watertight
    assert parts.count_parts(apart) == (count, 0)
    assert apart.num_vertices == 4 * count
    assert apart.volume == pytest.approx(mesh.volume)
    assert parts.cut_apart(mesh.vertices, mesh.faces[1:]) is None


def test_report_is_plain():
    report = watertight(shapes.half_pipe(), resolution=32).report
    as_dict = json.loads(json.dumps(report.to_dict()))
    assert as_dict["method"] == "shell"
    assert as_dict["seconds"].keys() >= {"prepare", "doubt", "band", "fill", "cells", "march", "check"}
    assert as_dict["open_edges"] > 0
    unchecked = watertight(shapes.half_pipe(), resolution=32, method="shell", check=False).report
    assert unchecked.closed is None
    assert unchecked.lost is None
    assert unchecked.parts_out is None


def test_number_of_threads_does_not_matter():
    results = []
    for threads in (1, 3):
        with testing.num_threads(threads):
            results.append(watertight(shapes.half_pipe(), resolution=48).mesh)
    assert torch.equal(results[0].vertices, results[1].vertices)
    assert torch.equal(results[0].faces, results[1].faces)


def test_wrong_input():
    mesh = ball(subdivisions=0)
    with pytest.raises(ValueError, match="`method` must be"):
        watertight(mesh, method="magic")
    with pytest.raises(ValueError, match="`resolution` must be at least 8, got 4"):
        watertight(mesh, resolution=4)
    for epsilon in (0.5 * 2.1 / 64, 1.0, -1.0):
        with pytest.raises(ValueError, match="`epsilon` must lie between"):
            watertight(mesh, resolution=64, epsilon=epsilon)
    with pytest.raises(ValueError, match="without faces"):
        watertight(Mesh(torch.rand(3, 3), torch.empty(0, 3, dtype=torch.int64)))
    with pytest.raises(WatertightError, match="no surface area"):
        watertight(Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), torch.tensor([[0, 1, 2]])))
    with pytest.raises(WatertightError, match="open edges"):
        watertight(open_box(), method="union")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torus", "open_box", "nested_shells", "multi_part", "thin_plate", "sheets"])
def test_resolution_of_the_papers(name):
    result, report = watertight(SHAPES[name](), method="shell")
    assert report.resolution == 256
    assert result.is_watertight
    assert report.lost == 0
    assert report.parts_out == {"nested_shells": 2, "multi_part": 3, "sheets": 6}.get(name, 1)
