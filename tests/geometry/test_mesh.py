import subprocess
import sys

import pytest
import torch

from fastshape.geometry import Mesh, normalize, render

TETRAHEDRON = Mesh(
    torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


def test_measures_of_a_tetrahedron() -> None:
    assert TETRAHEDRON.area == pytest.approx(1.5 + 3**0.5 / 2)
    assert TETRAHEDRON.volume == pytest.approx(1 / 6)
    assert TETRAHEDRON.is_watertight
    torch.testing.assert_close(TETRAHEDRON.bounds, torch.tensor([[0.0, 0, 0], [1, 1, 1]]))
    torch.testing.assert_close(TETRAHEDRON.face_normals[3], torch.full((3,), 3**-0.5))
    assert TETRAHEDRON.flip().volume == pytest.approx(-1 / 6)


def test_open_doubled_and_turned_faces_are_not_watertight() -> None:
    mesh = TETRAHEDRON
    assert not Mesh(mesh.vertices, mesh.faces[:3]).is_watertight
    assert not Mesh(mesh.vertices, torch.cat([mesh.faces, mesh.faces[:1]])).is_watertight
    turned = torch.cat([mesh.faces[:3], mesh.faces[3:].flip(1)])
    assert not Mesh(mesh.vertices, turned).is_watertight


@pytest.mark.parametrize(
    ("vertices", "faces", "error", "message"),
    [
        ([[0.0, 0, 0]], torch.zeros(0, 3, dtype=torch.long), TypeError, "must be a torch.Tensor"),
        (torch.zeros(4, 2), torch.zeros(0, 3, dtype=torch.long), ValueError, r"shape \(V, 3\), got \(4, 2\)"),
        (torch.zeros(4, 3), torch.zeros(2, 4, dtype=torch.long), ValueError, r"shape \(F, 3\), got \(2, 4\)"),
        (torch.zeros(4, 3).half(), torch.zeros(0, 3, dtype=torch.long), TypeError, "float32 or float64"),
        (torch.zeros(4, 3), torch.zeros(0, 3, dtype=torch.int32), TypeError, "must be int64"),
        (torch.zeros(4, 3), torch.tensor([[0, 1, 2], [0, 1, 4]]), ValueError, r"face 1 is \[0, 1, 4\]"),
        (
            torch.full((4, 3), torch.nan),
            torch.zeros(0, 3, dtype=torch.long),
            ValueError,
            "4 rows that are not finite",
        ),
    ],
)
def test_wrong_input_is_refused(vertices, faces, error, message) -> None:
    with pytest.raises(error, match=message):
        Mesh(vertices, faces)


def test_transform_turns_a_mirrored_mesh_over() -> None:
    mirror = torch.diag(torch.tensor([-2.0, 1, 1, 1]))
    assert TETRAHEDRON.transform(mirror).volume == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="determinant 0"):
        TETRAHEDRON.transform(torch.diag(torch.tensor([0.0, 1, 1, 1])))


def test_join_keeps_order_and_offsets() -> None:
    joined = Mesh.join([TETRAHEDRON, TETRAHEDRON])
    assert joined.num_vertices == 8
    assert joined.volume == pytest.approx(2 / 6)


def test_normalize_fits_the_cube_and_leads_back() -> None:
    mesh = Mesh(TETRAHEDRON.vertices.double() * torch.tensor([4.0, 2, 1]) + 7, TETRAHEDRON.faces)
    normalized, normalization = normalize(mesh)
    assert normalized.vertices.dtype == torch.float32
    torch.testing.assert_close(normalized.bounds, torch.tensor([[-1, -0.5, -0.25], [1, 0.5, 0.25]]))
    torch.testing.assert_close(normalization.undo_mesh(normalized).vertices, mesh.vertices)


def test_normalize_keeps_the_detail_of_a_small_mesh_far_away() -> None:
    mesh = Mesh(TETRAHEDRON.vertices.double() * 1e-3 + 1e6, TETRAHEDRON.faces)
    normalized, _ = normalize(mesh)
    torch.testing.assert_close(normalized.vertices, TETRAHEDRON.vertices * 2 - 1, atol=1e-6, rtol=0)


def test_rows_in_another_order_of_memory_are_taken() -> None:
    columns = Mesh(TETRAHEDRON.vertices.T.contiguous().T, TETRAHEDRON.faces.T.contiguous().T)
    picture = render(columns, size=32)
    assert torch.equal(picture, render(TETRAHEDRON, size=32))
    assert picture.unique().numel() > 1


def test_a_vertex_that_no_face_uses_has_no_place_in_the_bounds() -> None:
    stray = Mesh(torch.cat([torch.full((1, 3), -100.0), TETRAHEDRON.vertices]), TETRAHEDRON.faces + 1)
    assert torch.equal(stray.used_vertices, TETRAHEDRON.vertices)
    assert torch.equal(stray.bounds, TETRAHEDRON.bounds)
    assert torch.equal(stray.compact().vertices, TETRAHEDRON.vertices)
    assert torch.equal(stray.compact().faces, TETRAHEDRON.faces)
    assert TETRAHEDRON.compact() is TETRAHEDRON
    points = Mesh(stray.vertices, stray.faces[:0])  # without faces all count
    assert torch.equal(points.used_vertices, stray.vertices)
    assert points.bounds[0].tolist() == [-100.0] * 3


def test_normalize_ignores_unused_vertices_and_refuses_a_point() -> None:
    vertices = torch.cat([TETRAHEDRON.vertices, torch.full((1, 3), 100.0)])
    normalized, _ = normalize(Mesh(vertices, TETRAHEDRON.faces))
    torch.testing.assert_close(normalized.vertices[:4], TETRAHEDRON.vertices * 2 - 1)
    with pytest.raises(ValueError, match="all points of the mesh are equal"):
        normalize(Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]])))


def test_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error'); import torch; import fastshape.geometry;"
        "heavy = ('trimesh', 'scipy', 'skimage', 'PIL', 'manifold3d', 'igl', 'rich');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
