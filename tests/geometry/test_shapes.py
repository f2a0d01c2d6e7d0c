"""The procedural corpus: closed where it says so, reproducible, and its own rule of inside agrees."""

import itertools

import pytest
import torch

from fastshape.geometry import DistanceField, Mesh, shapes
from fastshape.testing import generator, random_points

pytest.importorskip("manifold3d")

SEEDED = [f"{name}-{seed}" for name in ("torus", "gear", "plate", "nested_shells") for seed in (1, 2)]
SEEDED += ["knot-1", "closed_shells-1", "multi_part-1", "multi_part-2"]
RANDOM = [*(f"csg-{seed}" for seed in range(5)), *(f"blobs-{seed}" for seed in range(3))]
CLOSED = [name for name in shapes.NAMES if name != "half_pipe"] + SEEDED + RANDOM


@pytest.mark.parametrize("name", CLOSED)
def test_closed_shapes_and_their_rule(name: str) -> None:
    made = shapes._make(name)
    mesh, inside = made.mesh, made.inside
    assert mesh.vertices.dtype == torch.float32
    assert float(mesh.vertices.abs().max()) == pytest.approx(1)
    assert mesh.is_watertight
    assert mesh.volume > 0.002
    assert inside is not None
    assert inside.band < 5e-3

    # Off the surface the rule and the sign of the distance agree: everywhere, and close to the surface.
    field = DistanceField(mesh.to(torch.float64))
    uniform = 1.1 * random_points(800, seed=1, dtype=torch.float64)
    which = torch.randint(mesh.num_faces, (800,), generator=generator(2))
    middles = mesh.triangles[which].double().mean(1)
    offset = torch.rand(800, 1, generator=generator(3), dtype=torch.float64) - 0.5
    near = middles + mesh.face_normals[which].double() * offset * 8 * inside.band
    for points in (uniform, near):
        distance = field(points)
        clear = distance.abs() > inside.band
        assert clear.double().mean() > 0.3
        wrong = clear & (inside(points) != (distance < 0))
        assert not bool(wrong.any())


def test_the_rule_takes_any_points() -> None:
    inside = shapes.inside("torus")
    assert inside is not None
    assert inside(torch.zeros(0, 3)).shape == (0,)
    assert inside(torch.tensor([[0.7 / 0.95, 0, 0], [0, 0, 0]])).tolist() == [True, False]
    assert shapes.inside("half_pipe") is None
    assert shapes.inside("half_pipe-3") is None


def test_the_half_pipe_is_open() -> None:
    mesh = shapes.make("half_pipe")
    assert not mesh.is_watertight
    assert float(mesh.vertices.abs().max()) == pytest.approx(1)


def test_random_solids_differ_by_seed_only() -> None:
    assert torch.equal(shapes.csg(3).vertices, shapes.make(3).vertices)
    assert torch.equal(shapes.csg(3).vertices, shapes.make("csg-3").vertices)
    meshes = [shapes.csg(seed) for seed in range(20)]
    assert all(mesh.is_watertight and mesh.volume > 0.02 for mesh in meshes)
    assert len({mesh.num_faces for mesh in meshes}) > 15


@pytest.mark.parametrize("name", ["teapot", "csg", "csg-x", "teapot-3", "-3", ""])
def test_unknown_names(name: str) -> None:
    for function in (shapes.make, shapes.inside):
        with pytest.raises(
            ValueError, match=f"unknown shape '{name}'; expected a seed, 'csg-<seed>' or one of"
        ):
            function(name)


def test_torus_has_its_volume() -> None:
    scale = 1 / 0.95
    assert shapes.torus(segments=512).volume == pytest.approx(
        2 * 3.14159265**2 * 0.7 * 0.25**2 * scale**3, rel=1e-3
    )


def test_blobs_overlap_and_are_not_united() -> None:
    counts = set()
    for seed in range(16):
        mesh, inside = shapes.blobs(seed), shapes.inside(f"blobs-{seed}")
        assert inside is not None
        parts = inside.rule.__closure__  # one rule for each block
        assert parts is not None
        counts.add(len(parts[0].cell_contents))
        points = random_points(1500, seed=seed, dtype=torch.float64)
        union = 8 * float(inside(points).double().mean())
        assert mesh.volume > union  # what overlaps counts twice
    assert min(counts) >= 2
    assert max(counts) <= 14
    assert len(counts) > 6


def test_closed_shells_hide_their_inside() -> None:
    inside = shapes.inside("closed_shells")
    assert inside is not None
    along = torch.tensor([[r, 0, 0] for r in (0.95, 0.7, 0.5, 0.2)])
    assert inside(along).tolist() == [True, False, True, False]


def test_corpus() -> None:
    first = list(shapes.corpus(8, seed=5))
    assert [name for name, _ in shapes.corpus(6, seed=5)] == [name for name, _ in first[:6]]
    assert len({name for name, _ in first}) == 8
    for (name, mesh), (again, other) in zip(first[:4], shapes.corpus(4, seed=5), strict=True):
        assert name == again
        assert torch.equal(mesh.vertices, other.vertices)
        assert torch.equal(mesh.vertices, shapes.make(name).vertices)
        assert mesh.is_watertight
    assert [name for name, _ in shapes.corpus(4, seed=6)] != [name for name, _ in first[:4]]
    assert all(name.startswith("torus-") for name, _ in shapes.corpus(3, kinds=["torus"]))
    assert list(shapes.corpus(0)) == []
    endless = shapes.corpus(10**9, kinds=["half_pipe", "plate"])  # made one at a time
    assert len(list(itertools.islice(endless, 3))) == 3
    with pytest.raises(ValueError, match=r"`kinds` must be some of csg, torus, .* got teapot"):
        shapes.corpus(3, kinds=["teapot"])
    with pytest.raises(ValueError, match="got none"):
        shapes.corpus(3, kinds=[])


# ------------------------------------------------------------------------------------------- damage


def test_damage_does_what_it_says() -> None:
    mesh = shapes.torus(segments=32)
    count = mesh.num_faces
    made = {kind: shapes.damage(mesh, kind) for kind in shapes.DAMAGES}
    assert made["duplicates"].num_faces == round(1.2 * count)
    assert made["degenerate"].num_faces == round(1.4 * count)
    assert made["degenerate"].area == pytest.approx(mesh.area)
    assert made["hole"].num_faces == round(0.98 * count)
    assert made["soup"].num_vertices == 3 * count
    assert made["soup"].volume == pytest.approx(mesh.volume)
    turned = (made["flipped"].faces != mesh.faces).any(1)
    assert int(turned.sum()) == round(0.2 * count)
    assert made["inside_out"].volume == pytest.approx(-mesh.volume)
    assert made["double_wall"].num_faces == 2 * count
    assert mesh.volume < made["double_wall"].volume < 2 * mesh.volume
    assert float(made["unused"].vertices.max()) > 1000
    assert torch.equal(made["unused"].bounds, mesh.bounds)
    assert 0 < float((made["noise"].vertices - mesh.vertices).norm(dim=1).max()) < 0.05
    for kind in shapes.DAMAGES:
        again = shapes.damage(mesh, kind)
        assert torch.equal(made[kind].vertices, again.vertices)
        assert torch.equal(made[kind].faces, again.faces)
    assert not torch.equal(shapes.damage(mesh, "flipped", seed=1).faces, made["flipped"].faces)
    assert shapes.damage(mesh, "flipped", share=0.5).num_faces == count
    with pytest.raises(ValueError, match=r"`kind` must be one of duplicates, .*, got 'rust'"):
        shapes.damage(mesh, "rust")
    with pytest.raises(ValueError, match="`share` must lie in 0 to 1"):
        shapes.damage(mesh, "hole", share=2)


# At most so many wrong signs in percent, farther than 2e-3 from a torus of 9,600 faces, by "auto",
# "winding" and "parity". Elsewhere measured on a like torus: libigl's winding number .39 for the hole, 5.8
# flipped, 27.6 inside out; open3d's parity 3.5 for the hole; pseudonormals 19 flipped, 100 inside out.
WRONG = {
    "duplicates": (0, 0, 8),
    "degenerate": (0, 0, 0),
    "hole": (0.8, 0.8, 1.2),
    "soup": (0, 0, 0),
    "flipped": (0, 9, 0),
    "inside_out": (0, 0, 0),
    "double_wall": (0, 0, 7),
    "unused": (0, 0, 0),
}


@pytest.mark.parametrize("kind", WRONG)
def test_signs_of_a_damaged_torus(kind: str) -> None:
    mesh, inside = shapes.torus(segments=98), shapes.inside("torus")
    assert inside is not None
    points = random_points(3000, seed=0, dtype=torch.float64)
    surface = mesh.triangles.double().mean(1)
    surface = surface[torch.randint(mesh.num_faces, (3000,), generator=generator(1))]
    points = torch.cat([points, surface + 0.01 * random_points(3000, seed=2, dtype=torch.float64)])
    points = points[DistanceField(mesh.to(torch.float64)).unsigned(points) > 2e-3]
    damaged: Mesh = shapes.damage(mesh, kind).to(torch.float64)
    truth = inside(points)
    wrong = [
        100 * float((DistanceField(damaged, sign=sign).inside(points) != truth).double().mean())
        for sign in ("auto", "winding", "parity")
    ]
    assert all(found <= limit for found, limit in zip(wrong, WRONG[kind], strict=True)), wrong
