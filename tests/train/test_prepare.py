"""From meshes to training samples."""

from __future__ import annotations

import math

import pytest
import torch

from fastshape import testing, train
from fastshape.geometry import Mesh


@pytest.fixture(scope="module")
def ball():
    vertices, faces = testing.icosphere(4, radius=3.0)
    return Mesh(vertices + 5.0, faces)


def test_a_ball_is_labeled_by_its_radius(ball):
    samples = train.prepare(ball, num_surface=500, num_volume=2000, num_near=3000)
    assert samples.surface.norm(dim=1).min() > 0.99
    assert samples.surface.abs().max() <= 1.0
    for points, inside in (
        (samples.volume, samples.inside("volume")),
        (samples.near, samples.inside("near")),
    ):
        radius = points.norm(dim=1)
        assert inside[radius < 0.99].all()
        assert not inside[radius > 1.01].any()
    assert samples.inside("volume").float().mean().item() == pytest.approx(math.pi / 6, abs=0.05)
    assert len(samples.near) == 3000


def test_orientation_and_holes_do_not_matter(ball):
    sizes = {"num_surface": 10, "num_volume": 1000, "num_near": 10}
    expected = train.prepare(ball, **sizes)
    turned = train.prepare(
        Mesh(ball.vertices, ball.faces.flip(1)), num_surface=10, num_volume=1000, num_near=10
    )
    assert torch.equal(turned.volume_labels, expected.volume_labels)
    holed = train.prepare(Mesh(ball.vertices, ball.faces[20:]), **sizes)
    assert (holed.volume_labels == expected.volume_labels).float().mean() > 0.99


def test_preparing_is_deterministic(ball):
    sizes = {"num_surface": 50, "num_volume": 60, "num_near": 70}
    first, again, other = (train.prepare(ball, **sizes, seed=seed).fingerprint() for seed in (0, 0, 1))
    assert first == again != other
