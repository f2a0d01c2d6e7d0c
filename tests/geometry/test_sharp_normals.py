"""The sharp-normal error and its parts."""

import math

import pytest
import torch
from known_meshes import ball, box, square

from fastshape.geometry import Mesh, sharp_normal_error
from fastshape.geometry.sharp_normals import canny, normal_maps, sharp_mask, sphere_directions


def test_directions_are_spread() -> None:
    directions = sphere_directions(22)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(22, dtype=torch.float64))
    assert float(directions.mean(0).norm()) < 0.05
    nearest = (directions @ directions.T - 2 * torch.eye(22)).amax(1)
    assert float(nearest.max()) < math.cos(math.radians(25))


def test_canny_of_a_step() -> None:
    picture = torch.zeros(20, 20)
    picture[:, 8:] = 1
    edges = canny(picture)
    assert edges.sum(1).tolist() == [1] * 20
    assert int(edges[10].nonzero()) in (7, 8)
    assert not bool(canny(0.1 * picture).any())  # 4 * 0.1 before the blur, under the upper threshold after it
    assert not bool(canny(torch.ones(20, 20)).any())


def test_weak_edges_stay_where_they_join_strong_ones() -> None:
    picture = torch.zeros(40, 40)
    picture[:, 20:] = torch.linspace(1, 0.1, 40)[:, None]  # a step that fades downwards
    assert bool(canny(picture)[37].any())
    picture[:, 20:] = 0.1
    weak = canny(picture, low=0.01, high=0.1)
    assert bool(weak[37].any())
    assert not bool(canny(picture, sigma=0.7).any())


def test_canny_is_scikit_images() -> None:
    feature = pytest.importorskip("skimage.feature")
    directions = sphere_directions(3)
    for mesh in (box((-1, -1, -1), (1, 0.5, 1)), ball(3)):
        maps = normal_maps(mesh, directions[1], torch.zeros(3, dtype=torch.float64), 1.8, 128)
        for component in ((maps + 1) / 2).unbind(2):
            ours = canny(component)
            theirs = torch.from_numpy(
                feature.canny(
                    component.numpy(), sigma=1, low_threshold=0.2, high_threshold=0.4, mode="nearest"
                )
            )
            # Thinning differs in how it interpolates, by a pixel here and there.
            for one, other in ((ours, theirs), (theirs, ours)):
                near = torch.nn.functional.max_pool2d(other[None].float(), 3, 1, 1)[0] > 0
                assert float((one & ~near).sum()) <= 0.03 * float(one.sum())


def test_normal_maps_see_the_faces() -> None:
    maps = normal_maps(square(2), torch.tensor([0.0, 0, 1]).double(), torch.zeros(3).double(), 2.0, 64)
    seen = maps.norm(dim=2) > 0
    assert float(seen.double().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(maps[seen], torch.tensor([[0.0, 0, 1]]).expand(int(seen.sum()), 3))
    below = normal_maps(square(2), torch.tensor([0.0, 0, -1]).double(), torch.zeros(3).double(), 2.0, 64)
    assert bool((below[..., 2] <= 0).all())  # turned towards the viewer
    mask = sharp_mask(maps)
    assert bool(mask.any())
    assert not bool(mask[28:36, 28:36].any())  # the middle of the face is not sharp


def test_equal_meshes_have_no_error() -> None:
    mesh = box((-1, -1, -1), (1, 1, 1))
    assert sharp_normal_error(mesh, mesh, views=4, size=64) == 0
    assert sharp_normal_error(mesh.flip(), mesh, views=4, size=64) == 0


def test_an_absent_surface() -> None:
    """A speck in place of the ball: in the mask, which follows the outline, the ball's part errs by 1/12."""
    target = ball(4)
    speck = Mesh(square(1e-6).vertices + 5, square().faces)
    error = sharp_normal_error(speck, target, views=5, size=128)
    share = []
    for direction in sphere_directions(5):
        maps = normal_maps(target, direction, torch.zeros(3, dtype=torch.float64), 1.0, 128)
        mask = sharp_mask(maps)
        share.append([float((maps.norm(dim=2) > 0)[mask].sum()), float(mask.sum())])
    inside, total = torch.tensor(share).sum(0).tolist()
    assert error == pytest.approx(inside / total / 12, rel=1e-2)
    assert 0.3 / 12 < error < 0.8 / 12


def test_more_rounding_is_more_error() -> None:
    errors = []
    sharp = rounded(1e6)
    for power in (40, 12, 4):
        errors.append(sharp_normal_error(rounded(power), sharp, views=3, size=96))
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.5 * errors[-1]


def rounded(power: float) -> Mesh:
    """The ball of the p-norm: a cube whose edges are rounder the smaller the power."""
    mesh = ball(4)
    ratio = mesh.vertices / mesh.vertices.abs().amax(1, keepdim=True)
    return Mesh(ratio / (ratio.abs() ** power).sum(1, keepdim=True) ** (1 / power), mesh.faces)


def test_wrong_inputs() -> None:
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="without faces"):
        sharp_normal_error(empty, square())
