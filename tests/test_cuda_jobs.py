"""Whole jobs on a GPU do what they do on the CPU; kernels and models are tested one by one elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fastshape import fit, geometry, models, pipelines, testing, train
from fastshape.geometry import shapes
from fastshape.models import VecSetVAE

pytestmark = pytest.mark.skipif(
    testing.missing_backend("cuda") is not None, reason=str(testing.missing_backend("cuda"))
)


def two_balls(points: Tensor) -> Tensor:
    """The signed distance to two balls that touch nothing."""
    left, right = ((points - points.new_tensor([x, 0.1, 0.0])).norm(dim=1) - 0.35 for x in (-0.45, 0.45))
    return torch.minimum(left, right)


@pytest.mark.parametrize("name", models.shipped())
def test_a_mesh_there_and_back(name) -> None:
    mesh = shapes.torus(segments=48)
    found = {
        device: pipelines.reconstruct(
            mesh, models.load(name, device=device), resolution=48, num_samples=20_000
        )
        for device in ("cpu", "cuda")
    }
    scores = {device: result.evaluation.scores for device, result in found.items()}  # type: ignore[union-attr]
    assert scores["cuda"].chamfer_l1 == pytest.approx(scores["cpu"].chamfer_l1, rel=0.02)
    assert found["cuda"].mesh.volume == pytest.approx(found["cpu"].mesh.volume, rel=0.02)


@pytest.mark.parametrize("resolution", [64, 129])
def test_coarse_to_fine_is_dense(resolution) -> None:
    dense = geometry.extract(two_balls, resolution, device="cuda")
    sparse = geometry.extract(two_balls, resolution, device="cuda", method="coarse_to_fine")
    assert torch.equal(dense.vertices, sparse.vertices)
    assert torch.equal(dense.faces, sparse.faces)


def test_training_follows_the_cpu() -> None:
    draw = testing.generator(0)
    surface = torch.nn.functional.normalize(torch.randn(4000, 3, generator=draw), dim=1) * 0.7
    volume = torch.rand(4000, 3, generator=draw) * 2 - 1
    near = surface + 0.05 * torch.randn(surface.shape, generator=draw)
    ball = train.ShapeSamples(surface, volume, volume.norm(dim=1) < 0.7, near, near.norm(dim=1) < 0.7)
    model = VecSetVAE.Config(
        dim=16, depth=1, heads=2, head_dim=8, num_latents=8, num_inputs=64, latent_dim=4, drop_path=0.0
    )
    config = train.TrainConfig(
        model=model,
        steps=20,
        batch_size=4,
        volume_queries=48,
        near_queries=32,
        warmup_steps=3,
        bfloat16=False,
    )
    weights = [
        torch.nn.utils.parameters_to_vector(
            train.fit(config, [ball], progress=False, device=d).cpu().parameters()
        )
        for d in ("cpu", "cuda")
    ]
    assert float((weights[0] - weights[1]).detach().abs().max()) < 1e-3
    mixed = train.fit(dataclasses.replace(config, bfloat16=True), [ball], progress=False, device="cuda")
    assert all(p.isfinite().all() for p in mixed.parameters())


def test_fitting_a_torus() -> None:
    config = fit.FitConfig(resolution=32, levels=2, steps=60, image_size=96, zoom_limits=(256, 4096))
    mesh = shapes.torus(segments=48)
    found = fit.fit_mesh(mesh, config, device="cuda")
    assert found.mesh.is_watertight
    assert found.mesh.volume == pytest.approx(mesh.volume, rel=0.05)
