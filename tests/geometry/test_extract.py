import pytest
import torch

from fastshape.geometry import NoSurfaceError, extract, extract_surface, grid_points
from fastshape.geometry.extract import SURFACES

CENTER = torch.tensor([0.1, -0.2, 0.05])
RADII = torch.tensor([0.8, 0.5, 0.3])


def ellipsoid(points: torch.Tensor) -> torch.Tensor:
    """Negative inside; different along every axis, so that a swapped axis shows."""
    return ((points - CENTER) / RADII).norm(dim=1) - 1


def test_grid_order_is_x_y_z() -> None:
    grid = grid_points(3).reshape(3, 3, 3, 3)
    assert grid[2, 1, 0].tolist() == [1, 0, -1]
    assert torch.equal(grid_points(5, bounds=1.1, begin=7, end=30), grid_points(5, bounds=1.1)[7:30])


@pytest.mark.parametrize("bounds", [1.0, 1.05])
@pytest.mark.parametrize("resolution", [33, 64])
def test_vertices_lie_on_the_ellipsoid(resolution: int, bounds: float) -> None:
    mesh = extract(ellipsoid, resolution, bounds=bounds)
    cell = 2 * bounds / (resolution - 1)
    # Linear interpolation errs by O(cell^2); a grid one too large or a half-cell shift would err by O(cell).
    assert float(ellipsoid(mesh.vertices).abs().max()) < 3 * cell**2
    torch.testing.assert_close(mesh.bounds.mean(0), CENTER, atol=cell**2, rtol=0)
    torch.testing.assert_close((mesh.bounds[1] - mesh.bounds[0]) / 2, RADII, atol=2 * cell**2, rtol=0)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * torch.pi * float(RADII.prod()), rel=0.03)


def test_dual_marching_cubes_lie_on_the_ellipsoid_too() -> None:
    mesh = extract(ellipsoid, 64, surface="dual_marching_cubes")
    cell = 2 / 63
    assert float(ellipsoid(mesh.vertices).abs().max()) < 3 * cell**2
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * torch.pi * float(RADII.prod()), rel=0.03)
    # A triangle of marching cubes may be as thin as it likes; two of a dual quad are not.
    thinnest = [extract(ellipsoid, 64, surface=kind).face_areas.min() for kind in SURFACES]
    assert thinnest[1] > 100 * thinnest[0]


def test_an_open_dual_surface_ends_half_a_cell_before_the_border() -> None:
    mesh = extract(lambda points: points[:, 1] - 0.3, 17, surface="dual_marching_cubes")
    torch.testing.assert_close(mesh.vertices[:, 1], torch.full((mesh.num_vertices,), 0.3), atol=1e-6, rtol=0)
    torch.testing.assert_close(mesh.bounds[:, [0, 2]], torch.tensor([[-1.0, -1], [1, 1]]) * (1 - 1 / 16))


def test_an_unknown_surface_is_refused() -> None:
    with pytest.raises(ValueError, match="`surface` must be 'marching_cubes' or 'dual_marching_cubes'"):
        extract_surface(torch.zeros(4, 4, 4), surface="cubes")  # type: ignore[arg-type]


def test_a_plane_is_met_exactly() -> None:
    mesh = extract(lambda points: points[:, 1] - 0.3, 17)
    torch.testing.assert_close(mesh.vertices[:, 1], torch.full((mesh.num_vertices,), 0.3), atol=1e-6, rtol=0)
    torch.testing.assert_close(mesh.bounds[:, [0, 2]], torch.tensor([[-1.0, -1], [1, 1]]))
    assert not mesh.is_watertight


def test_either_side_may_be_inside() -> None:
    values = ellipsoid(grid_points(40)).reshape(40, 40, 40)
    negative = extract_surface(values)
    positive = extract_surface(-values, inside="positive")
    assert negative.volume > 0
    assert positive.volume == pytest.approx(negative.volume)
    shrunk = extract_surface(1 / (1 + (4 * values).exp()), level=0.6, inside="positive")
    assert 0 < shrunk.volume < negative.volume


@pytest.mark.parametrize("sign", [1, -1])
def test_a_solid_that_reaches_the_border_can_be_closed(sign: int) -> None:
    values = ((grid_points(24)[:, :2]).norm(dim=1) - 0.5).reshape(24, 24, 24) * sign
    inside = "negative" if sign == 1 else "positive"
    mesh = extract_surface(values, inside=inside, closed=True)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(2 * torch.pi * 0.25, rel=0.02)
    torch.testing.assert_close(mesh.bounds[:, 2], torch.tensor([-1.0, 1]), atol=1e-6, rtol=0)
    assert not extract_surface(values, inside=inside).is_watertight


def test_as_scikit_image_extracts_it() -> None:
    """The same vertices: scikit-image sees the same edges crossed, and interpolates alike."""
    measure = pytest.importorskip("skimage.measure")
    values = ellipsoid(grid_points(40)).reshape(40, 40, 40)
    vertices = measure.marching_cubes(values.numpy(), 0.0)[0]
    theirs = torch.from_numpy(vertices.copy()).double() / 39 * 2 - 1
    ours = extract_surface(values).vertices.double()
    assert len(ours) == len(theirs)
    assert float(torch.cdist(ours, theirs).amin(1).max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_is_taken(dtype: torch.dtype) -> None:
    values = ellipsoid(grid_points(40)).reshape(40, 40, 40)
    mesh = extract_surface(values.to(dtype).transpose(0, 2).contiguous().transpose(0, 2))
    assert mesh.vertices.dtype == torch.float32
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(extract_surface(values).volume, rel=1e-2)


def test_random_signs_give_a_closed_surface() -> None:
    values = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(0))
    for inside in ("negative", "positive"):
        mesh = extract_surface(values, inside=inside, closed=True)
        assert mesh.is_watertight
        assert mesh.volume > 0


def test_chunks_do_not_matter() -> None:
    shares = []
    mesh = extract(ellipsoid, 20, chunk=333, progress=shares.append)
    assert torch.equal(mesh.vertices, extract(ellipsoid, 20).vertices)
    assert shares[-1] == 1
    assert len(shares) == 25


@pytest.mark.parametrize(("shift", "side"), [(10.0, "above"), (-10.0, "below")])
def test_no_surface_says_the_range(shift: float, side: str) -> None:
    with pytest.raises(
        NoSurfaceError, match=rf"no surface at level 0: the field lies between .* and .*, all {side}"
    ):
        extract(lambda points: ellipsoid(points) + shift, 16)


def test_a_level_that_rounds_to_the_end_of_the_range_has_no_surface() -> None:
    values = torch.full((3, 3, 3), 0.7)  # below the double 0.7
    values[1, 1, 1] = 1.0
    with pytest.raises(NoSurfaceError, match=r"no surface at level 0\.7"):
        extract_surface(values, level=0.7)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"shape \(R, R, R\)"):
        extract_surface(torch.zeros(4, 4, 5))
    with pytest.raises(ValueError, match="not finite"):
        extract_surface(torch.full((4, 4, 4), torch.nan))
    with pytest.raises(ValueError, match="1 of 64 entries that are not finite"):
        extract_surface(
            torch.ones(4, 4, 4)
            .index_fill_(2, torch.tensor(0), -1)
            .put_(torch.tensor(9), torch.tensor(torch.inf))
        )
    with pytest.raises(ValueError, match="'negative' or 'positive'"):
        extract_surface(torch.zeros(4, 4, 4), inside="out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one value per point"):
        extract(lambda points: points, 8)
