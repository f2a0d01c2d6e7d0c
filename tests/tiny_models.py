"""Untrained autoencoders of each family, small enough for tests, some with a field that is known."""

from __future__ import annotations

import functools

import torch

from fastshape.geometry import DistanceField, Mesh, normalize
from fastshape.models import (
    MODELS,
    DoraConfig,
    FieldAutoencoder,
    LaGeMConfig,
    VATConfig,
    VecSetConfig,
)
from fastshape.pipelines import preparation_of

CONFIGS = {
    "VecSetVAE": VecSetConfig(
        dim=16, depth=1, heads=1, head_dim=16, num_latents=16, num_inputs=256, latent_dim=4, drop_path=0.0
    ),
    "DoraVAE": DoraConfig(
        dim=16, heads=1, encoder_depth=1, depth=1, latent_dim=4, num_latents=16, num_inputs=256
    ),
    "LaGeM": LaGeMConfig(
        dim=16,
        heads=1,
        head_dim=16,
        num_latents=(16, 8, 4),
        latent_dims=(4, 6, 8),
        depths=(1, 1, 1),
        num_inputs=256,
    ),
    "VAT": VATConfig(
        dim=16,
        heads=1,
        encoder_depth=1,
        depth=1,
        num_latents=16,
        latent_dim=4,
        num_inputs=256,
        plane_size=2,
        channels=(8, 8),
        plane_dim=4,
        mlp_dim=8,
        num_codes=32,
    ),
}
ANY_COUNT = ("VecSetVAE", "DoraVAE", "LaGeM")  # families that encode to any number of tokens


def tiny(family: str, seed: int = 0, **changes: object) -> FieldAutoencoder:
    """A random model; its field has a surface somewhere, or has none."""
    torch.manual_seed(seed)
    config = CONFIGS[family]
    model = MODELS[family](type(config)(**{**config.to_dict(), **changes}))  # type: ignore[call-arg, arg-type]
    return model.eval()


def exact(family: str, mesh: Mesh) -> FieldAutoencoder:
    """A model whose field is the signed distance to a mesh in the model's own frame, whatever its latents:
    if the frame is right, the reconstruction of that mesh is the mesh."""
    model = tiny(family)
    spec = preparation_of(model)
    normalized, _ = normalize(mesh, extent=spec.extent, fit=spec.normalization)  # type: ignore[call-overload]
    field = DistanceField(normalized)
    model._field = lambda points, context: -field(points[0])[None]  # type: ignore[method-assign]
    return model


def ball_field(self: FieldAutoencoder, points: torch.Tensor, context: object) -> torch.Tensor:
    """In place of a model's `_field`: a ball whose radius depends a little on the latents."""
    keys = context[0][0]  # type: ignore[index]
    return 0.7 + 0.02 * keys.mean().tanh() - points.norm(dim=-1)


def ball(family: str) -> FieldAutoencoder:
    """A model that has learned a ball."""
    model = tiny(family)
    model._field = functools.partial(ball_field, model)  # type: ignore[method-assign]
    return model
