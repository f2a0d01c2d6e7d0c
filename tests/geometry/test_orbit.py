"""Pictures around a mesh, and sheets of meshes."""

from __future__ import annotations

import pytest
import torch

from fastshape import geometry
from fastshape.geometry import Mesh, mesh_sheet, orbit, shapes
from fastshape.testing import generator


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Mesh:
    corners = torch.cartesian_prod(*(torch.tensor([a, b]) for a, b in zip(low, high, strict=True)))
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return Mesh(corners, torch.tensor(faces))


def extent(cover: torch.Tensor) -> tuple[int, int, int, int]:
    """The first and last row and column with something."""
    rows, columns = cover.amax(1).nonzero().flatten(), cover.amax(0).nonzero().flatten()
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("mesh", [box((3.0, -1.0, 7.0), (4.0, 1.0, 7.5)), shapes.torus()])
@pytest.mark.parametrize("elevation", [-5.0, 30.0])
def test_the_mesh_fills_the_pictures_and_is_never_cut_off(mesh, elevation):
    found = orbit(mesh, frames=8, size=100, elevation=elevation)
    assert found.pictures.shape == (8, 4, 100, 100)
    assert found.azimuths.tolist() == [45.0 * i for i in range(8)]
    assert 0 <= float(found.pictures.min()) <= float(found.pictures.max()) <= 1
    places = torch.tensor([extent(cover) for cover in found.pictures[:, 3]])
    margin = torch.minimum(places, 99 - places).min()
    assert 0 <= margin <= 2  # the tightest of them
    assert bool((found.pictures[:, 3].flatten(1).mean(1) > 0.02).all())


def test_azimuth_turns_left_and_up_is_up():
    # A bar along x with a knob on the top of its right end.
    bar, knob = box((-1.0, -0.1, -0.1), (1.0, 0.1, 0.1)), box((0.7, -0.1, 0.1), (1.0, 0.1, 0.6))
    mesh = Mesh(torch.cat([bar.vertices, knob.vertices]), torch.cat([bar.faces, knob.faces + 8]))
    front, side, back, _ = orbit(mesh, frames=4, size=64, elevation=0.0).pictures[:, 3]
    top = int(front.amax(1).nonzero()[0])
    assert front[top].nonzero().float().mean() > 40  # right
    assert back[top].nonzero().float().mean() < 24
    assert side.sum() < 0.5 * front.sum()  # along the bar
    assert top < 31
    # The same with y up: x, y, z there are z, x, y here.
    turned = Mesh(mesh.vertices[:, [1, 2, 0]], mesh.faces)
    other = orbit(turned, frames=4, size=64, elevation=0.0, up="y").pictures[:, 3]
    torch.testing.assert_close(other[0], front, rtol=0, atol=1e-3)


def test_the_elevation_is_drawn_and_the_background_is_laid_under():
    drawn = [orbit(shapes.torus(), frames=1, size=32, generator=generator(seed)) for seed in range(20)]
    elevations = torch.tensor([found.elevation for found in drawn])
    assert -5.0 <= float(elevations.min()) < 5.0 < 20.0 < float(elevations.max()) <= 30.0
    again = orbit(shapes.torus(), frames=1, size=32, generator=generator(3))
    assert torch.equal(again.pictures, drawn[3].pictures)
    white = again.over()
    assert white.shape == (1, 3, 32, 32)
    cover = again.pictures[:, 3:].expand(-1, 3, -1, -1)
    assert bool((white[cover == 0] == 1.0).all())
    assert torch.equal(white[cover == 1], again.pictures[:, :3][cover == 1])
    assert bool((again.over(0.0)[cover == 0] == 0.0).all())


def test_wrong_input_is_named():
    mesh = shapes.torus(segments=8)
    for options in ({"frames": 0}, {"size": 0}, {"field_of_view": 180.0}, {"up": "x"}, {"elevation": 90.0}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
            orbit(mesh, **options)
    with pytest.raises(ValueError, match="a mesh without faces"):
        orbit(Mesh(torch.zeros(3, 3), torch.zeros(0, 3).long()))


def test_a_sheet_of_meshes(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    meshes = [shapes.torus(segments=8), None, shapes.torus(segments=12)]
    assert mesh_sheet(meshes, tmp_path / "sheet.png", columns=2, size=40) == 3
    picture = pillow.open(tmp_path / "sheet.png")
    assert picture.size == (80, 80)
    tiles = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(2, 40, 2, 40, 3)
    drawn = [bool((tiles[row, :, column] < 250).any()) for row in range(2) for column in range(2)]
    assert drawn == [True, False, True, False]
    with pytest.raises(ValueError, match="there are no shapes to draw"):
        mesh_sheet([], tmp_path / "none.png")
    assert geometry.contact_sheet is not None
