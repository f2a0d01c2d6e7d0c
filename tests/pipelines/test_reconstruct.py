import pytest
import torch

from fastshape import geometry, models, pipelines
from fastshape.geometry import Mesh, NoSurfaceError, shapes
from fastshape.nn import Posterior


class Ball(torch.nn.Module):
    """Not a model: tokens are the first points, the surface is a ball of their mean norm."""

    config = models.VecSetConfig(num_inputs=500, num_latents=16)

    def encode(self, points, *, num_latents=None):
        return Posterior(points[:, : num_latents or self.config.num_latents])

    def decode(self, latents):
        return latents

    def extract(self, features, resolution=128):
        radius = float(features.norm(dim=2).mean())
        return geometry.extract(lambda points: points.norm(dim=1) - radius, resolution)


def test_the_result_stands_where_the_input_stood() -> None:
    mesh = shapes.torus()
    moved = Mesh(mesh.vertices.double() * 0.001 + 50, mesh.faces)
    stages = []
    result = pipelines.reconstruct(moved, Ball(), resolution=32, num_samples=2000, on_stage=stages.append)
    assert stages == list(result.seconds) == ["sample", "encode", "decode", "extract", "evaluate"]
    assert (result.num_tokens, result.num_bytes) == (16, 16 * 3 * 4)
    torch.testing.assert_close(
        result.mesh.bounds.mean(0), torch.full((3,), 50.0, dtype=torch.float64), atol=1e-4, rtol=0
    )
    assert 0.0008 < float((result.mesh.bounds[1] - result.mesh.bounds[0]).max()) < 0.002
    assert result.evaluation is not None
    # The comparison is made in the box of the input, so the unit does not matter.
    again = pipelines.reconstruct(mesh, Ball(), resolution=32, num_samples=2000)
    assert again.evaluation is not None
    assert result.evaluation.scores.chamfer_l1 == pytest.approx(again.evaluation.scores.chamfer_l1, rel=1e-3)


def test_the_seed_decides() -> None:
    first, second, third = (
        pipelines.reconstruct(shapes.torus(), Ball(), resolution=16, num_tokens=4, metrics=False, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.evaluation is None
    assert first.num_tokens == 4
    assert torch.equal(first.latents, second.latents)
    assert not torch.equal(first.latents, third.latents)


def test_an_untrained_model_says_what_to_do() -> None:
    config = models.VecSetConfig(
        dim=16, depth=1, heads=1, head_dim=16, num_latents=8, num_inputs=64, latent_dim=4, drop_path=0.0
    )
    torch.manual_seed(0)
    model = models.VecSetVAE(config).eval()
    with torch.no_grad():
        model.head.to_logits.bias.fill_(-10)
    with pytest.raises(NoSurfaceError, match="train longer"):
        pipelines.reconstruct(shapes.torus(), model, resolution=16)
