"""Layers against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from fastshape.nn import Attention, DropPath, PointEmbed, Posterior
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
