"""Coarse-to-fine extraction gives the dense mesh, bit for bit, from few queries; and says what it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastshape.geometry import ExtractionReport, Mesh, NoSurfaceError, extract
from fastshape.geometry.bricks import Bricks
from fastshape.geometry.coarse_to_fine import SurfaceSearch
from fastshape.geometry.field_sampler import Sampler
from fastshape.geometry.refinement import may_hide
from fastshape.models import DoraVAE, LaGeM, VecSetVAE
from fastshape.models.field import FieldAutoencoder
from fastshape.testing import generator

Field = Callable[[Tensor], Tensor]


def sphere(points: Tensor, center: tuple[float, ...] = (0.0, 0.0, 0.0), radius: float = 0.7) -> Tensor:
    return (points - torch.tensor(center)).norm(dim=1) - radius


def box(points: Tensor, center: tuple[float, ...], half: tuple[float, ...]) -> Tensor:
    outside = (points - torch.tensor(center)).abs() - torch.tensor(half)
    return outside.clamp_min(0).norm(dim=1) + outside.amax(1).clamp_max(0)


def parts(points: Tensor, seed: int = 0, count: int = 10, least: float = 0.03, most: float = 0.16) -> Tensor:
    """Balls and boxes here and there."""
    draws = torch.rand(count, 2, 3, generator=generator(seed)).double()
    solids = []
    for i, (center, size) in enumerate(draws):
        place, half = tuple((center * 1.7 - 0.85).tolist()), tuple((least + (most - least) * size).tolist())
        solids.append(sphere(points, place, half[0]) if i % 2 else box(points, place, half))
    return torch.stack(solids).amin(0)


def concave(points: Tensor) -> Tensor:
    """A thick bowl with a narrow hole through it."""
    bowl = torch.maximum(sphere(points, radius=0.8), -sphere(points, (0.0, 0.0, 0.3), 0.6))
    return torch.maximum(bowl, 0.06 - points[:, :2].norm(dim=1))


def thin(points: Tensor) -> Tensor:
    """A hollow box with walls of about a cell at 128."""
    return box(points, (0.1, 0.05, 0.013), (0.7, 0.6, 0.4)).abs() - 0.009


def nested(points: Tensor) -> Tensor:
    radius = points.norm(dim=1)
    return torch.stack([(radius - 0.8).abs() - 0.03, (radius - 0.5).abs() - 0.02, radius - 0.15]).amin(0)


def waves(points: Tensor, seed: int, frequency: float, count: int = 6) -> Tensor:
    """A random Fourier net of one layer, of variance 1/2."""
    random = generator(seed)
    weights = torch.randn(3, count, generator=random) * frequency
    phases = torch.rand(count, generator=random) * 2 * math.pi
    amplitudes = torch.randn(count, generator=random) / count**0.5
    total = torch.zeros(len(points))
    for i in range(count):  # one product at a time: the same bits for a point in any company
        x, y, z = (points[:, axis] * weights[axis, i] for axis in range(3))
        total += amplitudes[i] * torch.sin(x + y + z + phases[i])
    return total


def gyroid(points: Tensor, frequency: float = 6.0) -> Tensor:
    scaled = points * frequency
    sheet = (scaled.sin() * scaled.roll(1, 1).cos()).sum(1).abs() / frequency - 0.03
    return torch.maximum(sheet, sphere(points, radius=0.9))


FIELDS: dict[str, Field] = {
    "closed": sphere,
    "parts": parts,
    "small parts": lambda points: parts(points, 5, 16, 0.02, 0.05),
    "concave": concave,
    "thin": thin,
    "nested": nested,
    "gyroid": gyroid,
    "noisy": lambda points: sphere(points, radius=0.6) + 0.02 * waves(points, 1, 25.0),
    "blobs": lambda points: waves(points, 2, 5.0) + 0.8,
}
# The outputs of the models: a distance, one that saturates, and logits that saturate and ripple far away.
HEADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sdf": lambda points, distance: distance,
    "tsdf": lambda points, distance: distance.clamp(-0.03, 0.03) / 0.03,
    "logits": lambda points, distance: torch.tanh(distance * 20) * (15 + 4 * waves(points, 3, 8.0)),
}


def both(
    field: Field, resolution: int, *, verify: int = 0, **options: object
) -> tuple[Mesh, Mesh, ExtractionReport]:
    """The dense mesh, the coarse-to-fine one and its report."""
    dense = extract(field, resolution, **options)  # type: ignore[call-overload]
    mesh, report = extract(
        field, resolution, method="coarse_to_fine", verify=verify, return_report=True, **options
    )  # type: ignore[call-overload]
    return dense, mesh, report


def assert_same(mesh: Mesh, dense: Mesh) -> None:
    """The same faces and, to the last bit, vertices, in the same order."""
    assert mesh.num_faces == dense.num_faces
    assert torch.equal(mesh.faces, dense.faces)
    assert torch.equal(mesh.vertices.view(torch.int32), dense.vertices.view(torch.int32))


@pytest.mark.parametrize(("head", "resolution"), [("sdf", 99), ("tsdf", 128), ("logits", 98)])
@pytest.mark.parametrize("name", FIELDS)
def test_the_dense_mesh_to_the_last_bit(name: str, head: str, resolution: int) -> None:
    dense, mesh, report = both(
        lambda points: HEADS[head](points, FIELDS[name](points)), resolution, closed=resolution == 128
    )
    assert_same(mesh, dense)
    assert not report.fell_back
    assert report.strides == (2, 1)
    assert report.share < 0.5


@pytest.mark.parametrize(
    ("name", "head"), [("parts", "tsdf"), ("concave", "logits"), ("thin", "sdf"), ("nested", "tsdf")]
)
def test_three_levels(name: str, head: str) -> None:
    dense, mesh, report = both(lambda points: HEADS[head](points, FIELDS[name](points)), 191, closed=True)
    assert_same(mesh, dense)
    assert report.strides == (4, 2, 1)
    assert report.share < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("surface", ["marching_cubes", "dual_marching_cubes"])
@pytest.mark.parametrize("name", ["closed", "thin", "noisy"])
def test_four_levels(name: str, surface: str) -> None:
    dense, mesh, report = both(FIELDS[name], 385, surface=surface)
    assert_same(mesh, dense)
    assert report.strides == (8, 4, 2, 1)
    assert report.share < 1 / 20


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("name", FIELDS)
def test_dual_marching_cubes_give_the_dense_mesh_too(name: str, closed: bool) -> None:
    """ "blobs" and "noisy" have the cubes that are ambiguous across a face, which look at each other."""
    head = HEADS["tsdf" if closed else "sdf"]
    dense, mesh, report = both(
        lambda points: head(points, FIELDS[name](points)), 99, closed=closed, surface="dual_marching_cubes"
    )
    assert_same(mesh, dense)
    assert not report.fell_back
    assert len(mesh.faces.unique()) == mesh.num_vertices  # none is left over
    if closed:
        assert mesh.is_watertight


@pytest.mark.parametrize("inside", ["negative", "positive"])
@pytest.mark.parametrize("closed", [True, False])
def test_dual_marching_cubes_at_the_border_of_the_cube(closed: bool, inside: str) -> None:
    options = {"closed": closed, "inside": inside, "level": 0.01, "surface": "dual_marching_cubes"}
    dense, mesh, _ = both(lambda points: (points[:, :2] - 0.5).norm(dim=1) - 0.7, 100, **options)
    assert_same(mesh, dense)
    assert mesh.is_watertight == closed
    if closed:  # the lids lie on the border
        assert mesh.bounds.abs().max() == 1


@pytest.mark.slow
def test_dual_marching_cubes_with_1024_points_along_an_axis() -> None:
    mesh, report = extract(
        sphere, 1024, method="coarse_to_fine", surface="dual_marching_cubes", verify=100, return_report=True
    )
    assert mesh.is_watertight
    assert report.share < 1 / 50
    assert float((mesh.vertices.norm(dim=1) - 0.7).abs().max()) < (2 / 1023) ** 2
    assert mesh.num_vertices == mesh.num_faces // 2 + 2  # Euler: a sphere


def test_single_points_beside_the_surface() -> None:
    """As the high frequencies of networks make them: a cell from the surface, where no other shows."""

    def field(points: Tensor) -> Tensor:
        x, y, z = ((points + 1) * 60).round().long().unbind(1)
        planted = (x == 61) & (y % 20 == 11) & (z % 20 == 11)
        return torch.where(planted, -0.1, (points[:, 0] + 1) * 60 - 59.9)

    dense, mesh, report = both(field, 121)
    assert_same(mesh, dense)
    assert mesh.num_faces == 2 * 120**2 + 36 * 8
    assert not report.fell_back


@pytest.mark.parametrize("seed", range(6))
def test_random_fields(seed: int) -> None:
    """Solids, sheets and noise added up, saturated as a random head does it."""
    weight = torch.rand(5, generator=generator(100 + seed)).tolist()

    def field(points: Tensor) -> Tensor:
        solid = torch.minimum(parts(points, seed, 8, 0.05, 0.3), gyroid(points, 3 + 4 * weight[0]))
        rough = solid + 0.03 * weight[1] * waves(points, seed, 5 + 20 * weight[2])
        return torch.tanh(rough * (1 + 30 * weight[3])) * (1 + 10 * weight[4])

    dense, mesh, _ = both(
        field, 97 + 3 * seed, closed=seed % 2 == 0, inside=("negative", "positive")[seed // 4]
    )
    assert_same(mesh, dense)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_any_first_lattice(stride: int) -> None:
    dense, mesh, report = both(sphere, 61, stride=stride)
    assert_same(mesh, dense)
    assert report.strides[0] == stride


@pytest.mark.parametrize("inside", ["negative", "positive"])
@pytest.mark.parametrize("closed", [True, False])
def test_the_border_of_the_cube(closed: bool, inside: str) -> None:
    """A cylinder through the cube, its walls cut by all kinds of border cells, and all around it."""
    dense, mesh, _ = both(
        lambda points: (points[:, :2] - 0.5).norm(dim=1) - 0.7, 100, closed=closed, inside=inside, bounds=1.05
    )
    assert_same(mesh, dense)
    assert mesh.is_watertight == closed


def test_a_level_that_is_not_zero() -> None:
    dense, mesh, _ = both(lambda points: parts(points) * 3, 110, level=0.123, closed=True)
    assert_same(mesh, dense)
    dense, mesh, _ = both(lambda points: 1 - parts(points), 110, level=0.9, inside="positive")
    assert_same(mesh, dense)


def steep(*solids: Field, at: float = 400.0) -> Field:
    """Of the union of solids, saturated so near that from afar nothing shows that it is there."""
    return lambda points: (torch.stack([solid(points) for solid in solids]).amin(0) * at).clamp(-1, 1)


def test_a_surface_is_followed_to_its_end() -> None:
    """A rod that passes between the points of the first lattice, but for its thick end."""
    axis = torch.linspace(-1, 1, 129)
    middle = tuple(((axis[20] + axis[21]) / 2 + (axis[20] - axis[19])).expand(3).tolist())
    field = steep(
        lambda points: box(points, (0.0, *middle[1:]), (0.8, 0.018, 0.018)),
        lambda points: sphere(points, (0.7, *middle[1:]), 0.2),
    )
    dense, mesh, report = both(field, 129, stride=8)
    assert_same(mesh, dense)
    assert report.share < 0.05


def test_a_wall_between_the_planes_of_the_first_lattice_is_met_by_the_probes() -> None:
    axis = torch.linspace(-1, 1, 129)
    field = steep(lambda points: box(points, (0.0, 0.0, float(axis[67])), (0.6, 0.6, 0.015)))
    assert float(field(torch.cartesian_prod(axis[::8], axis[::8], axis[::8])).min()) == 1  # nothing shows
    dense, mesh, _ = both(field, 129, stride=8)
    assert_same(mesh, dense)


def test_a_solid_that_fills_the_cube_but_for_a_cavity() -> None:
    """All of the border is surface, and no value on it shows that."""
    ball = steep(lambda points: sphere(points, radius=0.3))
    dense, mesh, _ = both(ball, 66, stride=8, closed=True, inside="positive")
    assert_same(mesh, dense)
    assert mesh.volume == pytest.approx(8 - 4 / 3 * math.pi * 0.3**3, rel=1e-2)


ISLAND = 6 / 128  # radius: three cells


def island(points: Tensor) -> Tensor:
    """A ball, and a small one that neither the first lattice of stride 8 nor its probes meet."""
    axis = torch.linspace(-1, 1, 129)
    return steep(
        lambda p: sphere(p, (-0.3, 0.0, 0.0), 0.4), lambda p: sphere(p, (float(axis[100]),) * 3, ISLAND)
    )(points)


def test_verification_finds_a_planted_island() -> None:
    dense, missed, report = both(island, 129, stride=8)
    assert missed.num_faces < dense.num_faces  # or this test says nothing
    assert report.bound is None
    assert (report.verified, report.found) == (0, 0)
    dense, mesh, report = both(island, 129, stride=8, verify=30_000)
    assert_same(mesh, dense)
    assert report.found > 0
    assert "followed" in report.why
    assert not report.fell_back
    assert report.verified == 30_000
    assert report.bound == pytest.approx(1e-4)


def test_what_verification_does_not_find_is_within_its_bound() -> None:
    dense, mesh, report = both(island, 129, stride=8, verify=50)
    assert (report.found, report.verified) == (0, 50)
    assert report.bound == pytest.approx(0.06)
    assert mesh.num_faces < dense.num_faces
    crossed = (2 * ISLAND * 64 + 2) ** 3  # cells around the island, at most
    assert crossed / 128**3 < report.bound


def test_the_rule_of_three_holds() -> None:
    """What takes a share of 3 / n of the skipped cells is missed by n of them in 5 % of all draws."""
    axis = torch.linspace(-1, 1, 129)
    number = 55
    hidden = False

    def field(points: Tensor) -> Tensor:
        # Once the search is over, seven of the 128 layers of cells turn out to be inside or at the surface.
        return torch.where((points[:, 0] > axis[64]) & (points[:, 0] < axis[71]) & hidden, -1.0, 1.0)

    search = SurfaceSearch(Sampler(field, axis, 65536, None), 0.0, 1, False, 8)
    assert search.run()
    hidden = True
    search._ask = lambda coords: coords  # type: ignore[method-assign, assignment]
    search._follow = lambda slots, stride: None  # type: ignore[method-assign]
    assert 3 / number < 7 / 128
    silent = sum(search.verify(number, generator(seed))[1] == 0 for seed in range(400))
    assert 6 <= silent <= 34  # 18 +- 4 are expected


def test_islands_everywhere_end_in_the_dense_answer() -> None:
    axis = torch.linspace(-1, 1, 129)
    centers = axis[4:125:8]  # of all cells of the first lattice
    hidden = torch.cartesian_prod(*[torch.arange(len(centers))] * 3).sum(1) % 3 == 0

    def field(points: Tensor) -> Tensor:
        place = ((points - axis[4]) / (axis[12] - axis[4])).round().clamp(0, len(centers) - 1).long()
        flat = (place[:, 0] * len(centers) + place[:, 1]) * len(centers) + place[:, 2]
        away = (points - centers[place]).norm(dim=1) - 0.02
        return torch.where(hidden[flat] & (away < 0), -1.0, 1.0)

    dense, mesh, report = both(field, 129, stride=8, verify=2000)
    assert_same(mesh, dense)
    assert report.fell_back
    assert report.found > 4
    assert "verifications in a row" in report.why
    assert report.bound == 0


def test_noise_falls_back_to_all_points() -> None:
    values = torch.randn(100, 100, 100, generator=generator(0))

    def field(points: Tensor) -> Tensor:
        x, y, z = ((points + 1) / 2 * 99).round().long().unbind(1)
        return values[x, y, z]

    dense, mesh, report = both(field, 100, verify=10)
    assert_same(mesh, dense)
    assert report.fell_back
    assert "half" in report.why
    assert report.bound == 0
    assert report.queries > report.dense_queries


def test_few_points_are_all_asked() -> None:
    mesh, report = extract(sphere, 40, method="coarse_to_fine", verify=10, return_report=True)
    assert_same(mesh, extract(sphere, 40))
    assert report.fell_back
    assert report.queries == report.dense_queries == 64_000
    assert report.strides == (1,)


def test_the_report_counts() -> None:
    asked = []

    def field(points: Tensor) -> Tensor:
        asked.append(len(points))
        return sphere(points)

    mesh, report = extract(field, 128, method="coarse_to_fine", verify=100, chunk=10_000, return_report=True)
    assert report.queries == sum(asked)
    assert report.share == report.queries / 128**3
    assert max(asked) <= 10_000
    assert report.seconds > 0
    assert report.method == "coarse_to_fine"
    assert mesh.num_faces > 0
    _, report = extract(sphere, 20, return_report=True)
    assert (report.method, report.queries, report.bound, report.fell_back) == ("dense", 8000, 0, False)


def test_progress_ascends_and_may_interrupt() -> None:
    shares: list[float] = []
    mesh = extract(sphere, 128, method="coarse_to_fine", verify=10, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1

    class StopError(Exception):
        pass

    calls = []

    def field(points: Tensor) -> Tensor:
        calls.append(len(points))
        return sphere(points)

    def stop(share: float) -> None:
        if share > 0.3:
            raise StopError

    with pytest.raises(StopError):
        extract(field, 128, method="coarse_to_fine", progress=stop)
    assert len(calls) < len(shares)
    assert_same(extract(field, 128, method="coarse_to_fine"), mesh)


@pytest.mark.parametrize("verify", [0, 100])
def test_no_surface_says_the_range(verify: int) -> None:
    with pytest.raises(
        NoSurfaceError,
        match=r"no surface at level 0: the field lies between .*all above it.*asked.*Try a level",
    ):
        extract(lambda points: sphere(points) + 2, 128, method="coarse_to_fine", verify=verify)
    with pytest.raises(NoSurfaceError, match="all below it"):
        extract(lambda points: sphere(points) - 9, 128, method="coarse_to_fine", closed=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "`method` must be 'dense' or 'coarse_to_fine', got 'fast'"),
        (
            {"surface": "cubes"},
            "`surface` must be 'marching_cubes' or 'dual_marching_cubes', got 'cubes'",
        ),
        ({"stride": 3}, r"`stride` must be None or one of \(8, 4, 2\), got 3"),
        ({"verify": -1}, "`verify` must not be negative"),
        ({"inside": "out"}, "`inside` must be"),
        ({"resolution": 1}, "`resolution` must be at least 2"),
        ({"chunk": 0}, "`chunk` at least 1"),
    ],
)
def test_wrong_input(options: dict[str, object], message: str) -> None:
    arguments = {"resolution": 128, "method": "coarse_to_fine", **options}
    with pytest.raises(ValueError, match=message):
        extract(sphere, **arguments)  # type: ignore[call-overload]


def test_a_wrong_field() -> None:
    with pytest.raises(ValueError, match="`field` must return one value per point"):
        extract(lambda points: points, 128, method="coarse_to_fine")
    with pytest.raises(ValueError, match="not finite"):
        extract(lambda points: sphere(points).log(), 128, method="coarse_to_fine")


# ---- The parts ---------------------------------------------------------------------------------------------


def test_bricks_keep_what_is_written() -> None:
    bricks = Bricks(50, torch.device("cpu"))
    coords = torch.randint(50, (500, 3), generator=generator(0))
    addresses = bricks.addresses(coords)
    assert torch.equal(bricks.coords(addresses), coords)
    assert len(bricks.unknown(addresses)) == len(coords.unique(dim=0))
    assert not bricks.known(coords).any()
    bricks.write(addresses, (coords @ torch.tensor([10000, 100, 1])).float())
    assert len(bricks.unknown(addresses)) == 0
    assert bricks.known(coords).all()
    slot = torch.arange(1, bricks.count)
    around = bricks.around(slot, range(-4, 13, 4))
    origin = bricks.origins(slot)
    for row, x, y, z in (~around.isnan()).nonzero().tolist():
        place = origin[row] + torch.tensor([x, y, z]) * 4 - 4
        assert float(around[row, x, y, z]) == float(place @ torch.tensor([10000, 100, 1]))


def test_a_kink_between_samples_may_hide_and_a_plane_may_not() -> None:
    x = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 4) - 1.5
    assert may_hide(x.abs() + 0.6, 0).item() is False  # 1.1 at the corners, 0.6 in the middle
    assert may_hide(x.abs() - 0.1, 0).item() is True  # -0.1 in the middle, 0.4 at the corners
    assert may_hide(x + 2.5, 0).item() is False
    assert may_hide(x + 2.5, 1.1216).item() is False
    assert may_hide(x + 1.1, 1.1216).item() is True  # about a cell away
    assert may_hide(x + 1.2, 1.1216).item() is False


# ---- Models ------------------------------------------------------------------------------------------------


@torch.no_grad()
def tame(
    model: FieldAutoencoder, embedding: torch.nn.Linear, first: int, head: torch.nn.Linear, features
) -> None:
    """Gives random weights a surface as a trained model has one: low frequencies, and a field that passes 0.

    `embedding` takes the sines and cosines of 3 x 8 angles each from its input `first` on.
    """
    embedding.weight[:, first : first + 48].unflatten(1, (2, 3, 8))[..., 1:] = 0
    axis = torch.linspace(-1, 1, 10)
    values = model.query(torch.cartesian_prod(axis, axis, axis)[None], features)
    head.bias -= values.quantile(0.8)
    head.weight *= 5
    head.bias *= 5


def vecset() -> tuple[FieldAutoencoder, object]:
    sizes = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "num_latents": 12, "latent_dim": 4}
    model = VecSetVAE(VecSetVAE.Config(**sizes)).eval()
    features = model.decode(torch.randn(1, 12, 4))
    tame(model, model.point_embed.proj, 0, model.head.to_logits, features)
    return model, features


def dora() -> tuple[FieldAutoencoder, object]:
    sizes = {"dim": 32, "heads": 2, "encoder_depth": 1, "depth": 1, "latent_dim": 4, "num_latents": 12}
    model = DoraVAE(DoraVAE.Config(**sizes)).eval()
    features = model.decode(torch.randn(1, 12, 4))
    tame(model, model.head.query_proj, 3, model.head.to_values, features)
    return model, features


def lagem() -> tuple[FieldAutoencoder, object]:
    sizes = {
        "dim": 32,
        "heads": 2,
        "head_dim": 16,
        "num_latents": (12, 6),
        "latent_dims": (3, 4),
        "depths": (1, 1),
    }
    model = LaGeM(LaGeM.Config(**sizes)).eval()
    features = model.decode(model.encode(torch.rand(1, 80, 3) * 2 - 1).mode())
    tame(model, model.point_embed.proj, 0, model.to_logits, features)
    return model, features


@pytest.mark.parametrize("make", [vecset, dora, lagem])
@torch.no_grad()
def test_models(make: Callable[[], tuple[FieldAutoencoder, object]]) -> None:
    torch.manual_seed(0)
    model, features = make()
    dense, report = model.extract(features, 48, method="dense", return_report=True)
    assert report.queries == 48**3
    assert dense.num_faces > 1000
    mesh, report = model.extract(features, 48, stride=4, verify=100, return_report=True)
    assert_same(mesh, dense)
    assert report.bound == pytest.approx(0.03)
    assert report.share < 0.6
    assert_same(model.extract(features, 48, stride=4), dense)
