import pytest
import torch

from fastshape.geometry import Mesh, compare_picture, render, save_png, shapes
from fastshape.geometry.render import look_at

SQUARE = Mesh(
    torch.tensor([[-1.0, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]), torch.tensor([[0, 1, 2], [0, 2, 3]])
)


def paper(image: torch.Tensor) -> torch.Tensor:
    """Where the background shows: it is gray."""
    return (image.amax(2) - image.amin(2)) == 0


def test_a_square_fills_the_picture_and_shades_evenly() -> None:
    image = render(SQUARE, size=64, views=[(0, 0)], occlusion=0)
    assert image.dtype == torch.uint8
    assert image.shape == (64, 64, 3)
    solid = ~paper(image)
    assert 0.8 < float(solid.float().mean()) < 0.95
    assert torch.equal(solid, solid.flip(0))
    assert torch.equal(solid, solid.flip(1))
    middle = image[10:54, 10:54].reshape(-1, 3).int()
    assert int((middle.amax(0) - middle.amin(0)).max()) <= 12


def test_back_faces_are_orange() -> None:
    front = render(SQUARE, size=16, views=[(0, 0)], occlusion=0)[8, 8]
    back = render(SQUARE.flip(), size=16, views=[(0, 0)], occlusion=0)[8, 8]
    assert front[2] > front[0]
    assert back[0] > back[2]


def test_edges_are_smoothed() -> None:
    ball = shapes.torus(segments=48)
    rough = render(ball, size=48, views=[(0, 60)], supersample=1, occlusion=0)
    smooth = render(ball, size=48, views=[(0, 60)], supersample=4, occlusion=0)
    tones = [len(image.reshape(-1, 3).unique(dim=0)) for image in (rough, smooth)]
    assert tones[1] > tones[0]
    inside = (rough.int() - smooth.int()).abs().amax(2) <= 2
    assert float(inside.float().mean()) > 0.6


def test_covered_places_are_darker() -> None:
    corner = Mesh(
        torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [-1, 1, 1], [1, 1, 1]]),
        torch.tensor([[0, 1, 2], [0, 2, 3], [3, 2, 5], [3, 5, 4]]),
    )
    bright = render(corner, size=64, views=[(0, 35)], occlusion=0).float().mean(2)
    dark = render(corner, size=64, views=[(0, 35)], occlusion=32).float().mean(2)
    change = bright[:, 32] - dark[:, 32]
    assert float(change.max()) > 15
    assert float(change.min()) > -2


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_unit_and_place_do_not_matter(scale: float) -> None:
    mesh = shapes.torus(segments=24)
    moved = Mesh(mesh.vertices.double() * scale + 1e3 * scale, mesh.faces)
    first, second = (render(m, size=32, occlusion=4).int() for m in (mesh, moved))
    assert float(((first - second).abs().amax(2) > 8).float().mean()) < 0.02


def test_all_views_share_a_scale_and_hold_the_mesh() -> None:
    mesh = Mesh(SQUARE.vertices * torch.tensor([1.0, 1, 0.2]), SQUARE.faces)
    image = render(mesh, size=64, views=[(0, 0), (70, 20)], occlusion=0)
    assert image.shape == (64, 128, 3)
    for part in image.split(64, 1):
        border = torch.cat([part[0], part[-1], part[:, 0], part[:, -1]])
        assert bool(paper(border[None]).all())
    cameras = look_at(mesh, [(0, 0), (70, 20)])
    assert cameras[0].extent == cameras[1].extent


def test_up_turns_the_mesh() -> None:
    tall = Mesh(SQUARE.vertices * torch.tensor([0.3, 1, 1]), SQUARE.faces)
    lying = Mesh(tall.vertices[:, [1, 2, 0]].contiguous(), tall.faces)
    first = render(tall, size=32, views=[(0, 0)], up="z", occlusion=0)
    second = render(lying, size=32, views=[(0, 0)], up="y", occlusion=0)
    assert torch.equal(first, second)


def test_a_comparison_is_written_and_read_back(tmp_path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    mesh = shapes.torus(segments=24)
    path = tmp_path / "compare.png"
    image = compare_picture(
        [("left\n12 faces", mesh), ("right", mesh)], path, size=96, title="t", occlusion=2
    )
    with image_module.open(path) as file:
        assert file.size == (image.shape[1], image.shape[0])
    # Both columns show the same mesh through the same camera.
    margin, gap = round(96 * 0.03), round(96 * 0.02)
    top = margin + round(round(96 * 0.058) * 1.4)
    columns = [image[top : top + 2 * 96 + gap, left : left + 96] for left in (margin, margin + 96 + gap)]
    assert torch.equal(*columns)
    save_png(image, tmp_path / "again.png")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.png", "compare.png"]


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="without faces"):
        render(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)))
    with pytest.raises(ValueError, match="at least 1"):
        render(SQUARE, size=0)
    with pytest.raises(ValueError, match="'y' or 'z'"):
        render(SQUARE, up="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is empty"):
        compare_picture([])
