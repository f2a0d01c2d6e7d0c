"""Any number of tokens at inference, whatever the training used: every family, from one token to 100,000.

What each family does with wrong counts, and its own parity, stand in its own tests.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import ANY_COUNT, tiny
from torch import Tensor

from fastshape import testing
from fastshape.models import FieldAutoencoder
from fastshape.models.field import sample_rows
from fastshape.ops import farthest_point_sampling
from fastshape.pipelines.reconstruct import token_counts
from fastshape.testing import random_points

FAMILIES = sorted(ANY_COUNT)


def clouds(model: FieldAutoencoder, count: int, batch: int = 1) -> list[Tensor]:
    """What the model encodes: a cloud of `count` points, or several, with normals where it takes them."""
    found = []
    for seed, _ in enumerate(model.inputs):
        points = random_points(batch, count, seed=seed)
        normals = F.normalize(points, dim=-1)[..., : model.input_channels - 3]
        found.append(torch.cat([points, normals], -1))
    return found


def encode(model: FieldAutoencoder, tokens: int, points: int = 500, batch: int = 1) -> Any:
    """The mode with `tokens` tokens, on the finest level of a hierarchy."""
    verb: Any = model.encode
    return verb(*clouds(model, points, batch), num_latents=token_counts(model, tokens)).mode()


def finest(latents: Any) -> Tensor:
    return latents if isinstance(latents, Tensor) else latents[0]


def least(model: FieldAutoencoder) -> int:
    """A token of each cloud."""
    return len(model.inputs)


# ---- Every count works -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, 3, 13, 97, 256, 1001, 4096])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_encode_decode_and_query(family, tokens):
    model = tiny(family)  # made for 16
    tokens = least(model) if tokens is None else tokens
    latents = encode(model, tokens, points=3000, batch=2)
    assert finest(latents).shape[:2] == (2, tokens)
    queries = random_points(2, 7)
    values = model.query(queries, model.decode(latents), chunk_size=16)
    assert values.shape == (2, 7)
    assert values.isfinite().all()
    # A softmax over one key is 1 whatever the query; Dora's head adds the query itself.
    constant = tokens == 1
    assert len(values[0].unique()) == (1 if constant else 7)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_configured_count_is_a_default_and_nothing_else(family):
    own = tiny(family)
    counts = own.config.num_latents
    more = tiny(family, num_latents=tuple(3 * n for n in counts) if isinstance(counts, tuple) else 3 * counts)
    more.load_state_dict(own.state_dict())
    for model in (own, more):
        assert finest(encode(model, 24)).shape[1] == 24
    assert torch.equal(finest(encode(own, 24)), finest(encode(more, 24)))


@pytest.mark.parametrize("family", ["VecSetVAE", "LaGeM"])
@torch.no_grad()
def test_fewer_tokens_are_the_first_of_more(family):
    """Sampling is nested, and an encoder without self-attention makes each token by itself."""
    model = tiny(family)
    few, many = finest(encode(model, 24)), finest(encode(model, 200))
    torch.testing.assert_close(few, many[:, :24], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fewer_tokens_are_the_first_of_each_stream_of_more():
    model = tiny("DoraVAE", encoder_depth=0)
    few, many = encode(model, 25), encode(model, 200)
    torch.testing.assert_close(few[:, :13], many[:, :13], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few[:, 13:], many[:, 100:112], rtol=1e-4, atol=1e-5)


# ---- More tokens than points -------------------------------------------------------------------------------


def test_sampling_beyond_the_points_gives_minus_one_which_takes_the_first_row():
    points = random_points(1, 5)
    indices = farthest_point_sampling(points, 12, start=3)
    assert sorted(indices[0, :5].tolist()) == [0, 1, 2, 3, 4]
    assert indices[0, 5:].tolist() == [-1] * 7
    rows = random_points(1, 5, seed=1)
    found = sample_rows(rows, points, 12, start=3)[0]
    assert torch.equal(found[:5], rows[0, indices[0, :5]])
    assert torch.equal(found[5:], rows[0, :1].expand(7, -1))


def test_sampling_beyond_the_distinct_points_repeats_the_lowest_index():
    points = random_points(1, 3).repeat_interleave(2, 1)
    indices = farthest_point_sampling(points, 8, start=1)[0].tolist()
    assert sorted(indices[:3]) == [1, 2, 4]
    assert indices[3:] == [0, 0, 0, -1, -1]


@pytest.mark.parametrize("points", [1, 5])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_more_tokens_than_points_repeat_a_token(family, points):
    """There is nothing more to sample: the further tokens are that of point 0, and the field stays one."""
    changes = {"encoder_depth": 0} if family == "DoraVAE" else {}
    model = tiny(family, **changes)
    latents = encode(model, 40, points=points)
    found = finest(latents)[0]
    streams = found.chunk(least(model))
    for stream in streams:
        extra = stream[points:]
        torch.testing.assert_close(extra, stream[:1].expand_as(extra), rtol=1e-4, atol=1e-5)
    values = model.query(random_points(1, 7), model.decode(latents), chunk_size=16)
    assert values.isfinite().all()


# ---- Memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, 97, 1001, 4096])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_query_keeps_to_its_bound_at_every_count(family, tokens):
    model = tiny(family, dim=32)
    tokens = least(model) if tokens is None else tokens
    counts = token_counts(model, tokens)
    features = model.decode(encode(model, tokens))
    bound = model.query_bytes(counts, chunk_size=256)
    peaks = []
    for chunks in (1, 8):
        points = random_points(1, 256 * chunks)
        used = testing.peak_bytes(lambda p=points: model.query(p, features, chunk_size=256))
        assert 0 < used < bound + 8 * points.shape[1]  # each value is held twice as they are joined
        peaks.append(used)
    assert peaks[1] - peaks[0] <= 8 * 7 * 256, "only the values grow with the number of points"


@pytest.mark.slow
@torch.no_grad()
def test_self_attention_does_not_store_its_scores():
    tokens = 16_384
    model = tiny("DoraVAE", dim=8, depth=1)
    latents = torch.randn(1, tokens, 4, generator=testing.generator(0))
    used = testing.peak_bytes(lambda: model.decode(latents))
    assert used < 4 * tokens**2 / 100  # 10.7 MB


@pytest.mark.slow
@torch.no_grad()
def test_a_hundred_thousand_tokens():
    """Without self-attention, whose time is quadratic: two cross-attentions, and the field."""
    tokens, points = 100_000, 5000
    model = tiny("DoraVAE", dim=8, encoder_depth=0, depth=0)
    found = {}

    def run(name: str, function: Any) -> int:
        def keep() -> None:
            found[name] = function()

        return testing.peak_bytes(keep)

    wide = 4 * tokens * 8  # bytes of a number per channel and token
    assert run("latents", lambda: encode(model, tokens, points=points)) < 40 * wide  # the scores: 4 GB
    assert found["latents"].shape == (1, tokens, 4)
    assert len(found["latents"][0].unique(dim=0)) > 9000, "a token of every point"
    assert run("features", lambda: model.decode(found["latents"])) < 10 * wide
    queries = random_points(1, 1000)
    used = run("values", lambda: model.query(queries, found["features"], chunk_size=512))
    assert used < model.query_bytes(tokens, chunk_size=512) + 8 * 1000
    assert used < 10 * wide, "the bound has the scores of a chunk in it, which are not stored"
    assert found["values"].isfinite().all()
