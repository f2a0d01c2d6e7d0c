"""A start for small models: cross-attention that is a kernel of distance, and a bottleneck that keeps places.

With random weights a query's scores over the points have nothing to do with where they are, and a small model
spends most of a short training on finding that what is near matters. Sums of sines and cosines of coordinates
already have a product that falls with the distance, so it is enough not to destroy it:

- queries and keys of every cross-attention start with the same orthogonal weights, times `SHARPNESS`;
- all embeddings of points start alike;
- a latent starts as the principal components of the embedded points, and what reads it with the transpose;
- a KL bottleneck's noise starts small.

Nothing else changes, and the parameters are those of any other start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastshape.models import DoraVAE, FieldAutoencoder, LaGeM, VecSetVAE
from fastshape.nn import CrossAttention, KLBottleneck, NormalizedBottleneck

SHARPNESS = 3.0  # the better one of 3 and 5, by the loss after 150 steps of `dora-tiny`
_LATENT_SCALE = 3.0
_LOG_VARIANCE = -4.0


@torch.no_grad()
def initialize_as_kernel(model: FieldAutoencoder, generator: torch.Generator) -> None:
    """Changes the parameters of a new model in place.

    Args:
        model: with its random parameters.
        generator: CPU generator of the points whose principal components are taken.
    """
    points = (2.0 * torch.rand(1, 4096, 3, generator=generator) - 1.0).to(next(model.parameters()).device)
    embedded = _embed(model, points, generator)
    for module in model.modules():
        if isinstance(module, CrossAttention):
            _tie(module)
        if isinstance(module, KLBottleneck):
            _keep_components(module.to_mean, module.from_latent, embedded)
            module.to_logvar.weight.mul_(0.1)
            module.to_logvar.bias.fill_(_LOG_VARIANCE)
        if isinstance(module, NormalizedBottleneck):
            _keep_components(module.to_latent, module.project, embedded)


def _embed(model: FieldAutoencoder, points: Tensor, generator: torch.Generator) -> Tensor:
    """The embeddings (1, N, dim) of points (1, N, 3), after making all embeddings of a model alike."""
    if isinstance(model, VecSetVAE | LaGeM):
        return model.point_embed(points)
    assert isinstance(model, DoraVAE)
    encoder, query_proj = model.encoder, model.head.query_proj
    encoder.sharp_proj.load_state_dict(encoder.surface_proj.state_dict())
    query_proj.weight.copy_(encoder.surface_proj.weight[:, : query_proj.in_features])
    query_proj.bias.copy_(encoder.surface_proj.bias)
    others = torch.randn(1, points.shape[1], model.config.point_features, generator=generator)
    normals = nn.functional.normalize(others, dim=-1).to(points.device)
    return encoder.norm(encoder.project(torch.cat([points, normals], -1), encoder.surface_proj))


def _tie(attention: CrossAttention) -> None:
    query, keys_values = attention.attention.to_q, attention.attention.to_kv
    if query.in_features == keys_values.in_features:
        nn.init.orthogonal_(query.weight, gain=SHARPNESS)
        keys_values.weight[: query.out_features] = query.weight


def _keep_components(to_latent: nn.Linear, from_latent: nn.Linear, embedded: Tensor) -> None:
    centered = embedded[0] - embedded[0].mean(0)
    components = torch.linalg.svd(centered, full_matrices=False).Vh[: to_latent.out_features]
    kept = len(components)
    to_latent.weight[:kept] = _LATENT_SCALE * components
    from_latent.weight[:, :kept] = components.T / _LATENT_SCALE
    to_latent.bias.zero_()
    from_latent.bias.zero_()
