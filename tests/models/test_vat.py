"""VAT: shapes, prefixes of tokens, the planes' lattice tables, gradients, and every switch of its tables."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from tiny_models import CONFIGS, tiny

from fastshape.models import VAT, VATConfig
from fastshape.models.vat_config import published_scales
from fastshape.models.vat_heads import PlaneHead
from fastshape.testing import generator, random_points


def cloud(batch: int = 2, count: int = 60, seed: int = 0) -> torch.Tensor:
    points = random_points(batch, count, seed=seed)
    return torch.cat([points, F.normalize(points, dim=-1)], -1)


def queries(batch: int = 2, count: int = 20) -> torch.Tensor:
    return random_points(batch, count, seed=5)


def vat(**changes) -> VAT:
    model = tiny("VAT", **changes)
    assert isinstance(model, VAT)
    return model


# ---- The configuration -------------------------------------------------------------------------------------


def test_published_scales():
    assert [len(published_scales(count)) for count in (64, 256, 576, 1024)] == [7, 10, 11, 12]
    assert [sum(published_scales(count)) for count in (64, 256, 576, 1024)] == [155, 680, 1256, 2280]
    assert published_scales(144) == (1, 4, 9, 16, 25, 36, 64, 100, 144)


def test_published_sizes_have_the_published_inputs():
    config = VAT.configs["k1024_v16384"]
    assert config.num_queries == 3072
    assert config.all_scales == published_scales(1024)
    assert {c.num_latents for c in VAT.configs.values()} == {64, 256, 576, 1024}
    assert {c.num_codes for c in VAT.configs.values()} == {256, 2048, 16384}
    assert {(c.encoder_depth, c.depth) for c in VAT.configs.values()} == {(12, 12), (16, 16)}
    with torch.device("meta"):
        model = VAT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 193_940_673


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "`heads` must divide `dim`, got 3 and 16"),
        ({"num_latents": 15}, r"`scales` must be squares"),
        ({"scales": (1, 4)}, r"`scales` must end with `num_latents`, 16, got \(1, 4\)"),
        ({"compression": "mean"}, "`compression` must be one of in_context, pooling, qformer, got 'mean'"),
        ({"decoder": "mlp"}, "`decoder` must be one of triplane, cross, got 'mlp'"),
        ({"output": "sdf"}, "`output` must be one of soft_occupancy, occupancy, tsdf, got 'sdf'"),
        ({"compression": "pooling"}, "`num_latents` must be at most the 12 that are pooled, got 16"),
        ({"point_features": 2}, "`point_features` must be 0 or 3, the normal, got 2"),
        ({"channels": ()}, "`channels` must be at least 1, of one doubling or more"),
        ({"truncation": 0.0}, "`truncation` must be positive, got 0.0"),
        ({"scale_dropout": 1.5}, r"`scale_dropout` must be in \[0, 1\], got 1.5"),
        ({"dim": 0}, "`dim` must be at least 1, got 0"),
        ({"depth": -1}, "`depth` must not be negative, got -1"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        VATConfig(**{**CONFIGS["VAT"].to_dict(), **changes})


# ---- There and back ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_shapes():
    model, points = vat(), cloud()
    posterior = model.encode(points)
    assert posterior.mean.shape == (2, 16, 4)
    features = model.decode(posterior.mode())
    assert [tuple(planes.shape) for planes in features] == [(2, 3, 4, 4, 4), (2, 3, 4, 8, 8)]
    assert model.query(queries(), features, chunk_size=8).shape == (2, 20)
    values, coded = model(points, queries())
    torch.testing.assert_close(values, model.query(queries(), features, chunk_size=8))
    assert coded.coded.tokens.shape == (2, 30)
    assert torch.equal(coded.coded.tokens, model.tokenize(points))


@torch.no_grad()
def test_tokens_are_the_whole_of_it():
    model, points = vat(), cloud()
    tokens = model.tokenize(points)
    assert tokens.dtype == torch.int64
    for mine, theirs in zip(
        model.decode_tokens(tokens), model.decode(model.encode(points).mode()), strict=True
    ):
        assert torch.equal(mine, theirs)


@torch.no_grad()
def test_the_first_scales_are_a_coarser_shape():
    model, points = vat(), cloud()
    tokens = model.tokenize(points)
    assert model.quantizer is not None
    for scales, end in enumerate((1, 5, 14, 30), 1):
        first = model.decode_tokens(tokens[:, :end])
        again = model.decode_tokens(tokens, scales)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    z = model.encode(points).mode()
    model.quantizer.start(z)  # codes that fit
    tokens = model.tokenize(points)
    errors = [(model.quantizer.decode(tokens, scales) - z).square().mean() for scales in (1, 2, 3, 4)]
    assert all(fine < coarse for coarse, fine in itertools.pairwise(errors))


@torch.no_grad()
def test_the_order_of_the_points_plays_no_part():
    model, points = vat(), cloud(count=100)
    shuffled = points[:, torch.randperm(100, generator=generator(0))]
    z = model.encode(points).mode()
    torch.testing.assert_close(model.encode(shuffled).mode(), z, rtol=1e-4, atol=1e-5)
    tokens = model.tokenize(points)
    same = model.tokenize(shuffled) == tokens
    # A residual between two codes may fall on either side; all that follows it may differ.
    assert model.quantizer is not None
    rest = model.quantizer.residuals(z, tokens)
    two = torch.cdist(rest, model.quantizer.codebook).topk(2, largest=False).values
    clear = (two[..., 1] - two[..., 0] > 1e-3).cumprod(1).bool()
    assert clear.float().mean() > 0.3
    assert same[clear].all()


# ---- The field ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_planes_are_sampled_where_the_point_is():
    model = vat()
    head = model.head
    assert isinstance(head, PlaneHead)
    # A plane whose channel is a linear function of its first axis, and one of its second.
    line = (2.0 * torch.arange(8) + 1.0) / 8 - 1.0
    mipmap = torch.zeros(1, 3, 2, 8, 8)
    mipmap[:, :, 0], mipmap[:, :, 1] = line, line[:, None]
    points = 0.8 * queries(1)
    found = head.sample([mipmap], points).unflatten(-1, (3, 2))
    for plane, axes in enumerate(((0, 1), (1, 2), (0, 2))):
        torch.testing.assert_close(found[:, :, plane], points[..., axes])


@pytest.mark.parametrize("resolution", [7, 16])
@torch.no_grad()
def test_tables_of_a_lattice_are_the_plain_query(resolution):
    model = vat()
    features = model.decode(model.encode(cloud(1)).mode())
    field = model._lattice_field(features, resolution, 64)
    line = torch.linspace(-1, 1, resolution)
    lattice = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)
    plain = model.query(lattice[None], features)[0]
    assert plain.std() > 0
    torch.testing.assert_close(field(lattice), plain, rtol=1e-4, atol=1e-5)
    mixed = torch.cat([queries(1)[0], lattice[:50], queries(1)[0]])
    found = field(mixed)
    torch.testing.assert_close(found, model.query(mixed[None], features)[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[20:70], field(lattice)[:50]), "the same bits, whatever is asked with it"
    assert field(lattice[:0]).shape == (0,)


@torch.no_grad()
def test_coarse_to_fine_is_dense():
    model = vat()
    features = model.decode(model.encode(cloud(1)).mode())
    middle = model.query(random_points(1, 500), features).median()
    model.head.to_logits.bias -= middle  # there is a surface
    dense = model.extract(features, 97, method="dense")
    fast, report = model.extract(features, 97, return_report=True)
    assert torch.equal(fast.vertices, dense.vertices)
    assert torch.equal(fast.faces, dense.faces)
    assert report.method == "coarse_to_fine"


# ---- Gradients ---------------------------------------------------------------------------------------------


def test_occupancy_does_not_reach_the_codebook():
    model = vat().train()
    values, posterior = model(cloud(), queries())
    values.square().mean().backward(retain_graph=True)
    assert model.quantizer.codebook.grad is None or not model.quantizer.codebook.grad.any()
    assert model.encoder.latents.grad.abs().sum() > 0, "straight through the quantizer"
    posterior.coded.loss.backward()
    assert model.quantizer.codebook.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantize": False},
        {"compression": "pooling", "num_latents": 9},
        {"compression": "qformer"},
        {"decoder": "cross"},
        {"resample": "query"},
        {"resample": "linear1d", "num_latents": 12},
        {"temperature": 0.5},
        {"point_features": 0},
        {"qk_norm": True},
        {"cosine": True},
        {"num_phis": 0},
    ],
    ids=str,
)
def test_every_switch_trains_every_parameter(changes):
    model = vat(**changes).train()
    points = cloud()[..., : model.input_channels]
    values, posterior = model(points, queries())
    loss = values.square().mean() + posterior.kl().mean()
    if posterior.coded is not None:
        loss = loss + posterior.coded.loss
    assert (posterior.coded is None) == (not model.config.quantize)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("to_kv.bias"), name


def test_noise_and_its_absence():
    points = cloud()
    noisy, plain = vat(quantize=False).train(), vat(quantize=False, noise=False).train()
    plain.load_state_dict(noisy.state_dict())
    draws = [model(points, queries()).values for model in (noisy, noisy, plain, plain)]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], draws[3])
    assert torch.equal(noisy(points, queries(), sample=False).values, draws[2])


def test_scale_dropout_drops_the_last_scales_in_training_only():
    model = vat(scale_dropout=1.0).train()
    torch.manual_seed(0)
    seen = {model(cloud(), queries()).posterior.coded.tokens.shape[1] for _ in range(40)}
    assert seen == {1, 5, 14, 30}
    with torch.no_grad():
        assert {model.eval()(cloud(), queries()).posterior.coded.tokens.shape[1] for _ in range(5)} == {30}


def test_what_was_quantized_is_kept_for_the_codebook():
    model = vat().train()
    model(cloud(), queries())
    model(cloud(), queries())
    assert len(model.coded) == 2
    assert not model.coded[0].latents.requires_grad
    model.coded.clear()
    model.eval()
    with torch.no_grad():
        model(cloud(), queries())
    assert not model.coded


# ---- Files and wrong arguments -----------------------------------------------------------------------------


def test_saving_and_loading(tmp_path):
    model = vat(scales=(1, 9, 16))
    model.save_pretrained(tmp_path)
    loaded = VAT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.tokenize(cloud()), model.tokenize(cloud()))


def test_wrong_arguments():
    model = vat()
    with pytest.raises(ValueError, match=r"`points` must have shape \(B, N, 6\), got \(1, 5, 3\)"):
        model.encode(torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="fix the number of latents at 16, got 8"):
        model.encode(cloud(), num_latents=8)
    with pytest.raises(ValueError, match="learned queries fix the number of latents at 16, got 15"):
        model.decode(torch.zeros(1, 15, 4))
    with pytest.raises(TypeError, match="`features` must be the 2 tensors of `decode`, got Tensor"):
        model.query(queries(), torch.zeros(2, 3, 4, 4, 4))
    with pytest.raises(
        ValueError, match=r"`features` must have shapes \(B, 3, 4, n, n\), got \(2, 3, 5, 4, 4\)"
    ):
        model.query(queries(), (torch.zeros(2, 3, 5, 4, 4),) * 2)
    with pytest.raises(ValueError, match="the model has no quantizer"):
        vat(quantize=False).tokenize(cloud())
