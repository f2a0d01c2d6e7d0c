"""A start for small models: cross-attention that is a kernel of distance, and a bottleneck that keeps places.

With random weights a query's scores over the points have nothing to do with where they are, and a small model
spends most of a short training on finding that what is near matters. Sums of sines and cosines of coordinates
already have a product that falls with the distance, so it is enough not to destroy it:

- queries and keys of every cross-attention start with the same orthogonal weights, times a sharpness;
- all embeddings of points start alike;
- a latent starts as the principal components of the embedded points, and what reads it with the transpose;
- a KL bottleneck's noise starts small.

A VAT's learned queries are given places, too: those of the planes stand at their texels and see the pillar
above and below, and its latent tokens stand in the planes' quarters of the square that the quantizer takes
them for, in the fourth quarter anywhere in the cube. So each texel of the decoder hears first of the latents
where it stands, and what is heard is added as it is. In the encoder's self-attention a token would hear of
itself alone: in its first layer keys begin as the negative of queries, and the latent tokens as the negative
of what they are near to.

Nothing else changes, and the parameters are those of any other start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastshape.models import VAT, DoraVAE, FieldAutoencoder, LaGeM, VecSetVAE
from fastshape.models.vat_heads import CrossHead
from fastshape.nn import CrossAttention, KLBottleneck, NormalizedBottleneck, SelfAttention

_SHARPNESS = 3.0  # the better one of 3 and 5, by the loss after 150 steps of `dora-tiny`
_PILLAR_SHARPNESS = 1.0  # the better one of 1 and 3, by the loss after 400 steps of `vat-tiny`
_LATENT_SCALE = 3.0
_LOG_VARIANCE = -4.0


@torch.no_grad()
def initialize_as_kernel(model: FieldAutoencoder, generator: torch.Generator) -> None:
    """Changes the parameters of a new model in place.

    Args:
        model: with its random parameters.
        generator: CPU generator of the points whose principal components are taken.
    """
    if isinstance(model, VAT):
        _place(model, generator)
        return
    points = (2.0 * torch.rand(1, 4096, 3, generator=generator) - 1.0).to(next(model.parameters()).device)
    embedded = _embed(model, points, generator)
    for module in model.modules():
        if isinstance(module, CrossAttention):
            _tie(module, _SHARPNESS)
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


def _place(model: VAT, generator: torch.Generator) -> None:
    config, encoder, decoder = model.config, model.encoder, model.decoder
    if isinstance(model.head, CrossHead):
        model.head.proj.weight.copy_(encoder.proj.weight[:, : model.head.proj.in_features])
        model.head.proj.bias.copy_(encoder.proj.bias)
    texels = _plane_places(config.plane_size)
    if config.compression == "pooling":
        latents = texels[torch.linspace(0, len(texels) - 1, config.num_latents).round().long()]
    else:
        latents = _square_places(config.num_latents, generator)
    device = encoder.queries.device
    plane_tokens, latent_tokens = (_embed_places(model, places.to(device)) for places in (texels, latents))
    encoder.queries.copy_(plane_tokens)
    decoder.queries.copy_(plane_tokens)
    decoder.places.copy_(latent_tokens)
    if config.compression == "qformer":
        encoder.latents.copy_(latent_tokens)
    for module in model.modules():
        if isinstance(module, CrossAttention):
            _tie(module, _PILLAR_SHARPNESS)
            _carry(module)
    if config.compression == "in_context":
        encoder.latents.copy_(-latent_tokens)
        first = next((part for part in encoder.modules() if isinstance(part, SelfAttention)), None)
        if first is not None:
            _tie(first, _PILLAR_SHARPNESS)
            _carry(first)
            first.attention.to_kv.weight[: first.attention.to_q.out_features].neg_()
    points = (2.0 * torch.rand(4096, 3, generator=generator) - 1.0).to(device)
    normals = nn.functional.normalize(torch.randn(4096, 3, generator=generator), dim=-1).to(device)
    embedded = encoder.embed(torch.cat([points, normals[:, : config.point_features]], 1))
    embedded = nn.functional.layer_norm(embedded, embedded.shape[-1:])[None]
    _keep_components(model.bottleneck.to_mean, model.bottleneck.from_latent, embedded)
    model.bottleneck.to_logvar.weight.mul_(0.1)
    model.bottleneck.to_logvar.bias.fill_(_LOG_VARIANCE)


def _carry(attention: CrossAttention | SelfAttention) -> None:
    """What is attended is added as it is."""
    values, out = attention.attention.to_kv, attention.attention.to_out
    if values.in_features == out.in_features == out.out_features:
        nn.init.orthogonal_(out.weight)
        values.weight[out.in_features :] = out.weight.T
        out.bias.zero_()


def _embed_places(model: VAT, places: Tensor) -> Tensor:
    """places (N, 3), NaN along the axes that a place does not know -> (N, dim), nothing said of these."""
    unknown = places.isnan()
    features = model.encoder.fourier(places.nan_to_num(0.0))
    frequencies = (features.shape[1] // 3 - 1) // 2  # [p, sines axis after axis, cosines axis after axis]
    waves = unknown.repeat_interleave(frequencies, 1)
    features = features.masked_fill(torch.cat([unknown, waves, waves], 1), 0.0)
    return features @ model.encoder.proj.weight[:, : features.shape[1]].T + model.encoder.proj.bias


def _plane_places(size: int) -> Tensor:
    """(3 size^2, 3): the texels of the planes XY, YZ, XZ, row by row, a row along a plane's first axis."""
    line = (2.0 * torch.arange(size) + 1.0) / size - 1.0
    second, first = (part.flatten() for part in torch.meshgrid(line, line, indexing="ij"))
    nowhere = torch.full_like(first, torch.nan)
    planes = ((first, second, nowhere), (nowhere, first, second), (first, nowhere, second))
    return torch.cat([torch.stack(plane, 1) for plane in planes])


def _square_places(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3): of a square's quarters, the three planes and the cube; else of the cube."""
    side = math.isqrt(count)
    if side * side != count or side < 2:
        return 2.0 * torch.rand(count, 3, generator=generator) - 1.0
    half = side // 2
    square = torch.full((side, side, 3), torch.nan)
    quarters = (
        (slice(0, half), slice(0, half)),
        (slice(0, half), slice(half, side)),
        (slice(half, side), slice(0, half)),
    )
    for (rows, columns), (a, b) in zip(quarters, ((0, 1), (1, 2), (0, 2)), strict=True):
        shape = square[rows, columns].shape[:2]
        lines = [(2.0 * torch.arange(size) + 1.0) / size - 1.0 for size in shape]
        second, first = torch.meshgrid(*lines, indexing="ij")
        square[rows, columns, a], square[rows, columns, b] = first, second
    rest = square[half:, half:]
    rest.copy_(2.0 * torch.rand(rest.shape, generator=generator) - 1.0)
    return square.flatten(0, 1)


def _tie(attention: CrossAttention | SelfAttention, sharpness: float) -> None:
    query, keys_values = attention.attention.to_q, attention.attention.to_kv
    if query.in_features == keys_values.in_features:
        nn.init.orthogonal_(query.weight, gain=sharpness)
        keys_values.weight[: query.out_features] = query.weight


def _keep_components(to_latent: nn.Linear, from_latent: nn.Linear, embedded: Tensor) -> None:
    centered = embedded[0] - embedded[0].mean(0)
    components = torch.linalg.svd(centered, full_matrices=False).Vh[: to_latent.out_features]
    kept = len(components)
    to_latent.weight[:kept] = _LATENT_SCALE * components
    from_latent.weight[:, :kept] = components.T / _LATENT_SCALE
    to_latent.bias.zero_()
    from_latent.bias.zero_()
