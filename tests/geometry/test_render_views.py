import math

import pytest
import torch

from fastshape import geometry, ops, testing


def camera(distance=3.0, turn=0.0, field_of_view=45.0, near=0.5, far=20.0, dtype=torch.float64):
    """(4, 4): a camera on a circle around the y axis that looks at the origin."""
    scale = 1 / math.tan(math.radians(field_of_view) / 2)
    projection = torch.zeros(4, 4, dtype=torch.float64)
    projection[0, 0] = projection[1, 1] = scale
    projection[2, 2], projection[2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
    projection[3, 2] = -1
    c, s = math.cos(turn), math.sin(turn)
    view = torch.tensor(
        [[c, 0, -s, 0], [0, 1, 0, 0], [s, 0, c, -distance], [0, 0, 0, 1]], dtype=torch.float64
    )
    return (projection @ view).to(dtype)


def test_a_sphere_from_all_sides(backend):
    side = 24 if backend.name == "emulated" else 96
    sphere, faces = testing.icosphere(3)
    matrices = torch.stack([camera(turn=t) for t in (0.0, 1.0, 3.0)])
    views = geometry.render_views(*backend.put(sphere, faces, matrices), side, normals="vertex")
    views = geometry.RenderedViews(*(part.cpu() for part in views))
    assert views.mask.shape == (3, side, side)
    inside = views.triangle_id >= 0
    solid = views.mask == 1
    # The tangents' circle is seen under asin(1 / 3).
    expected = math.pi * (math.tan(math.asin(1 / 3)) / math.tan(math.radians(22.5)) * side / 2) ** 2
    torch.testing.assert_close(
        views.mask.sum((1, 2)), torch.full((3,), expected).double(), rtol=0.015, atol=0
    )
    assert not solid[~inside].any()
    middle = views.depth[:, side // 2, side // 2]
    torch.testing.assert_close(middle, torch.full((3,), 2.0).double(), rtol=0, atol=0.02)
    assert (views.depth[~inside] == 0).all()
    assert (views.ndc_depth[~inside] == 1).all()
    # The normal at a point of the unit sphere is the point, which the depth tells.
    steps = (torch.arange(side).double() + 0.5) / side * 2 - 1
    slope = math.tan(math.radians(22.5))
    ray = torch.stack([slope * steps.expand(side, side), -slope * steps[:, None].expand(side, side)], -1)
    points = torch.cat([ray * views.depth[0, ..., None], 3 - views.depth[0, ..., None]], -1)
    error = (views.normals[0] - points).norm(dim=-1)[inside[0]]
    assert error.max() < 0.05
    flat = geometry.render_views(*backend.put(sphere, faces, matrices[:1]), side).normals.cpu()
    face_normals = geometry.Mesh(sphere.float(), faces).face_normals.double()
    torch.testing.assert_close(
        flat[0][inside[0]], face_normals[views.triangle_id[0][inside[0]]], rtol=0, atol=1e-5
    )


def test_an_orthographic_camera(backend):
    matrix = torch.diag(torch.tensor([0.5, 0.5, -0.25, 1.0]))[None]
    vertices = torch.tensor([[-1.0, -1, 2], [1, -1, 2], [1, 1, 2], [-1, 1, 2]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    views = geometry.render_views(*backend.put(vertices, faces, matrix), (8, 16))
    assert views.mask.sum() == 4 * 8
    shown = views.mask == 1
    assert (views.depth[shown] == 1).all()
    assert (views.ndc_depth[shown] == -0.5).all()
    expected = torch.tensor([0.0, 0, 1]).to(backend.device)
    torch.testing.assert_close(views.normals[shown], expected.expand(32, 3))


@pytest.mark.parametrize("normals", ["face", "vertex"])
def test_gradients_away_from_silhouettes(backend, normals):
    """Finite differences through the camera, the rasterizer and the normals."""
    sphere, faces = testing.icosphere(0)
    # Larger than the picture: no silhouette in view; moved, so that no edge runs through centers.
    vertices = sphere * torch.tensor([1.5, 1.3, 1.4]) + torch.tensor([0.013, 0.027, 0.0])
    matrices = torch.stack([camera(distance=3.3, turn=t, field_of_view=20.0) for t in (0.2, 1.7)])
    vertices, faces, matrices = backend.put(vertices, faces, matrices)
    before = geometry.render_views(vertices, faces, matrices, 5)
    assert (before.triangle_id >= 0).all()
    assert len(before.triangle_id.unique()) > 3

    def function(vertices, matrices):
        views = geometry.render_views(vertices, faces, matrices, 5, normals=normals, smooth=())
        return views.depth, views.ndc_depth, views.normals

    testing.check_gradients(function, vertices, matrices)


def test_given_normals(backend):
    sphere, faces = testing.icosphere(1)
    given = testing.random_points(len(sphere), dtype=torch.float64)
    vertices, faces, matrices, given = backend.put(sphere, faces, camera()[None], given)
    given = given.requires_grad_()
    views = geometry.render_views(vertices, faces, matrices, 12, normals=given)
    length = views.normals.norm(dim=-1)
    torch.testing.assert_close(length, (views.triangle_id >= 0).double())
    (grad,) = torch.autograd.grad(views.normals.square().sum() + views.normals[..., 0].sum(), given)
    assert grad.abs().sum() > 0


def test_a_sphere_finds_its_size_and_place(backend):
    """From the masks of two cameras, by gradients of silhouettes alone."""
    side, steps = 32, 40
    sphere, faces = backend.put(*testing.icosphere(1))
    matrices = backend.put(torch.stack([camera(), camera(turn=math.pi / 2)]))
    goal = torch.tensor([0.2, -0.15, 0.1, 1.15], dtype=torch.float64).to(backend.device)
    twins = ops.edge_twins(faces)

    def masks(pose):
        return geometry.render_views(
            sphere * pose[3] + pose[:3], faces, matrices, side, normals="face", twins=twins
        ).mask

    target = masks(goal)
    pose = torch.tensor([0.0, 0, 0, 0.9], dtype=torch.float64).to(backend.device).requires_grad_()
    optimizer = torch.optim.Adam([pose], lr=0.04)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.04 * (1 - step / steps) + 0.004
        optimizer.zero_grad()
        (masks(pose) - target).square().mean().backward()
        optimizer.step()
    assert (pose.detach() - goal).abs().max() < 0.04


def test_smoothing_is_chosen(backend):
    sphere, faces = testing.icosphere(1)
    vertices, faces, matrices = backend.put(sphere, faces, camera()[None])
    vertices = vertices.requires_grad_()
    hard = geometry.render_views(vertices, faces, matrices, 12, smooth=())
    assert not hard.mask.requires_grad
    assert ((hard.mask == 0) | (hard.mask == 1)).all()
    soft = geometry.render_views(vertices, faces, matrices, 12, smooth=("depth", "normals", "mask"))
    changed = soft.mask != hard.mask
    assert changed.any()
    assert ((soft.depth != hard.depth) == changed).all()
    torch.testing.assert_close(soft.normals[~changed], hard.normals[~changed])


def test_wrong_inputs():
    sphere, faces = testing.icosphere(0)
    with pytest.raises(ValueError, match=r"`smooth` takes 'depth', 'normals' and 'mask', got \['masks'\]"):
        geometry.render_views(sphere, faces, camera()[None], 8, smooth=("masks",))
    with pytest.raises(ValueError, match=r"`matrices` must have shape \(B, 4, 4\), got \(4, 4\)"):
        geometry.render_views(sphere, faces, camera(), 8)
    with pytest.raises(ValueError, match=r"`vertices` must have shape \(V, 3\), got \(12, 2\)"):
        geometry.render_views(sphere[:, :2], faces, camera()[None], 8)
