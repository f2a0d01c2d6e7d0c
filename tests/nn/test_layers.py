"""Layers against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from fastshape.nn import (
    Attention,
    DropPath,
    FeedForward,
    FourierEmbed,
    LevelPosterior,
    NormalizedBottleneck,
    PointEmbed,
    Posterior,
)
from fastshape.testing import generator, random_points


def test_point_embed_follows_its_formula():
    layer = PointEmbed(5)
    points = random_points(2, 7)
    angles = torch.cat([points[..., i : i + 1] * math.pi * 2.0 ** torch.arange(8) for i in range(3)], dim=-1)
    expected = layer.proj(torch.cat([angles.sin(), angles.cos(), points], dim=-1))
    torch.testing.assert_close(layer(points), expected, rtol=1e-4, atol=1e-4)


def test_point_embed_keeps_float32_angles_in_half_precision():
    layer = PointEmbed(5)
    points = random_points(1, 64)
    expected = layer(points)
    half = layer.bfloat16()
    assert half.frequencies.dtype == torch.float32
    assert half(points).dtype == torch.bfloat16
    torch.testing.assert_close(half(points).float(), expected, rtol=0.05, atol=0.05)


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    layer = Attention(12, 8, heads=3, head_dim=4)
    x, context = torch.randn(2, 5, 12), torch.randn(2, 9, 8)
    q = layer.to_q(x).view(2, 5, 3, 4)
    k, v = layer.to_kv(context)[..., :12].view(2, 9, 3, 4), layer.to_kv(context)[..., 12:].view(2, 9, 3, 4)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(2.0).softmax(-1)
    expected = layer.to_out(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, 12))
    torch.testing.assert_close(layer(x, context), expected)


def test_drop_path_drops_whole_samples():
    layer = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = layer.train()(x)
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert 0.7 < (out[:, 0, 0] > 0).float().mean() < 0.8
    assert layer.eval()(x) is x


def test_posterior_of_a_gaussian():
    mean = torch.randn(2, 3, 4, generator=generator(0))
    logvar = torch.randn(2, 3, 4, generator=generator(1))
    posterior = Posterior.gaussian(mean, logvar)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, logvar.mul(0.5).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(posterior.kl(), expected.mean((1, 2)))
    assert torch.equal(posterior.mode(), mean)
    assert torch.equal(posterior.sample(generator(3)), posterior.sample(generator(3)))
    assert not torch.equal(posterior.sample(generator(3)), posterior.sample(generator(4)))
    assert torch.equal(posterior.sample(noise=torch.zeros(2, 3, 4)), mean)


def test_posterior_clamps_the_log_variance():
    extreme = Posterior.gaussian(torch.zeros(1, 1, 2), torch.tensor([[[-1e9, 1e9]]]))
    assert extreme.logvar is not None
    assert extreme.logvar.tolist() == [[[-30.0, 20.0]]]


def test_point_mass_has_no_divergence():
    posterior = Posterior(torch.ones(2, 3, 4))
    assert torch.equal(posterior.kl(), torch.zeros(2))
    assert posterior.sample() is posterior.mode()


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_drop_path_keeps_the_dtype(probability):
    assert DropPath(probability).train()(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("include_pi", [False, True])
def test_fourier_embed_follows_its_formula(include_pi):
    layer = FourierEmbed(4, include_pi=include_pi)
    points = random_points(2, 7)
    frequencies = (math.pi if include_pi else 1.0) * 2.0 ** torch.arange(4)
    angles = torch.cat([points[..., i : i + 1] * frequencies for i in range(3)], dim=-1)
    torch.testing.assert_close(layer(points), torch.cat([points, angles.sin(), angles.cos()], dim=-1))
    assert torch.equal(layer.bfloat16().frequencies, frequencies)
    assert layer(points).shape[-1] == layer.dim
    assert not layer.state_dict()


def test_plain_feed_forward():
    torch.manual_seed(0)
    layer = FeedForward(6, gated=False)
    x = torch.randn(2, 3, 6)
    hidden = torch.nn.functional.gelu(layer.proj_in(layer.norm(x)))
    assert hidden.shape[-1] == 24
    torch.testing.assert_close(layer(x), layer.proj_out(hidden))


def test_attention_in_another_dtype_returns_its_own():
    torch.manual_seed(0)
    layer = Attention(12, heads=3, head_dim=4)
    x = torch.randn(2, 5, 12)
    expected = layer(x)
    layer.dtype = torch.bfloat16
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-2)
    assert not torch.equal(layer(x), expected)


def test_normalized_bottleneck():
    torch.manual_seed(0)
    layer = NormalizedBottleneck(6, 5)
    posterior = layer(torch.randn(2, 3, 6))
    assert posterior.logvar is None
    torch.testing.assert_close(posterior.mean.mean(-1), torch.zeros(2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(posterior.mean.var(-1, unbiased=False), torch.ones(2, 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        layer.standardize(3 * posterior.mean + 1), posterior.mean, rtol=1e-4, atol=1e-5
    )
    assert layer.from_latent(posterior.mode()).shape == (2, 3, 6)


def test_posterior_of_levels():
    gaussian = Posterior.gaussian(torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
    posterior = LevelPosterior((gaussian, Posterior(torch.ones(2, 5, 6))))
    assert [tuple(mode.shape) for mode in posterior.mode()] == [(2, 3, 4), (2, 5, 6)]
    assert all(map(torch.equal, posterior.sample(generator(1)), posterior.sample(generator(1))))
    assert torch.equal(posterior.sample(noise=posterior.mean)[0], 2 * torch.ones(2, 3, 4))
    torch.testing.assert_close(posterior.kl(), gaussian.kl())
