"""The quantizer of next-scale models: there and back, prefixes, sampling, gradients, the codebook's care."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from fastshape.nn import MultiscaleQuantizer
from fastshape.nn.multiscale_quantizer import RESAMPLINGS
from fastshape.testing import GOLDEN_CODES, assert_golden, generator

SCALES = (1, 4, 9, 16)


def quantizer(seed: int = 0, codes: int = 32, dim: int = 4, scales=SCALES, **options) -> MultiscaleQuantizer:
    torch.manual_seed(seed)
    made = MultiscaleQuantizer(codes, dim, scales, **options)
    if made.phi_weight is not None:
        with torch.no_grad():  # phi that does something
            made.phi_weight += 0.1 * torch.randn_like(made.phi_weight)
            made.phi_bias += 0.1 * torch.randn_like(made.phi_bias)
    return made


def latents(batch: int = 3, seed: int = 0, count: int = 16, dim: int = 4) -> torch.Tensor:
    return torch.randn(batch, count, dim, generator=generator(seed))


# ---- There and back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phis", [0, 4])
@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_tokens_decode_to_what_was_quantized(resample, phis):
    model, z = quantizer(resample=resample, num_phis=phis), latents()
    found = model.quantize(z)
    assert found.tokens.shape == (3, 30)
    assert found.tokens.dtype == torch.int64
    assert torch.equal(model.decode(found.tokens), found.quantized)
    assert found.counts.sum(1).tolist() == [3 * size for size in SCALES]
    counted = [part.flatten().bincount(minlength=32) for part in found.tokens.split(SCALES, 1)]
    assert torch.equal(found.counts, torch.stack(counted))
    # The same in torch, with gradients.
    sums = model._sums(found.tokens, torch.float32)
    torch.testing.assert_close(sums[-1], found.quantized)
    loss = torch.stack([(f - z).square().mean() for f in sums]).mean() * (1 + model.commitment)
    torch.testing.assert_close(found.loss, loss)


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_a_prefix_is_a_coarser_answer(resample):
    model, z = quantizer(resample=resample), latents()
    tokens = model.quantize(z).tokens
    for count in range(1, 5):
        first = model.quantize(z, num_scales=count)
        assert torch.equal(first.tokens, tokens[:, : sum(SCALES[:count])])
        assert torch.equal(model.decode(first.tokens), first.quantized)
        assert torch.equal(model.decode(tokens, count), first.quantized)
    assert torch.equal(model.decode(tokens[:, :0]), torch.zeros(3, 16, 4))


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_sampling_sees_what_teacher_forcing_shows(resample):
    model = quantizer(resample=resample)
    tokens = model.quantize(latents()).tokens
    shown, total, parts = model.scale_inputs(tokens), None, []
    assert shown.shape == (3, 29, 4)
    for scale, codes in enumerate(tokens.split(SCALES, 1)):
        total, after = model.next_input(total, codes, scale)
        parts.append(after)
    torch.testing.assert_close(torch.cat(parts, 1), shown)
    assert parts[-1].shape == (3, 0, 4)
    torch.testing.assert_close(total, model.decode(tokens))


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_residuals_are_what_the_codes_were_taken_for(resample):
    model, z = quantizer(resample=resample), latents()
    tokens = model.quantize(z).tokens
    rest = model.residuals(z, tokens)
    nearest = torch.cdist(rest.double(), model.codebook.detach().double()).argmin(-1)
    assert torch.equal(nearest, tokens)


@pytest.mark.parametrize("name", ["var_vq2_small_a", "var_vq2_znorm_a"])
def test_golden(golden_folder, name):
    g = load_file(golden_folder / f"{name}.safetensors")
    config = json.loads((golden_folder / f"{name}.json").read_text())["config"]
    prefix = "state.quant_resi." + ("qresi_ls." if config["share_quant_resi"] else "")
    weights = [
        g[f"{prefix}{i}.weight"] for i in range(sum(key.endswith("weight") for key in g if prefix in key))
    ]
    codes, dim = g["state.embedding.weight"].shape
    model = MultiscaleQuantizer(
        codes,
        dim,
        [side**2 for side in config["v_patch_nums"]],
        num_phis=len(weights),
        phi_ratio=config["quant_resi"],
        commitment=config["beta"],
        cosine=config["using_znorm"],
    )
    state = {
        "codebook": g["state.embedding.weight"],
        "phi_weight": torch.stack(weights),
        "phi_bias": torch.stack([g[f"{prefix}{i}.bias"] for i in range(len(weights))]),
    }
    model.load_state_dict(state, strict=False)
    found = model.quantize(g["in.f"].flatten(2).transpose(1, 2))
    assert torch.equal(found.tokens, g["out.idx"])
    assert_golden(found.quantized, g["out.f_hat"].flatten(2).transpose(1, 2), GOLDEN_CODES)
    assert_golden(found.loss, g["out.loss"], GOLDEN_CODES)
    assert_golden(model.scale_inputs(found.tokens), g["out.var_input"], GOLDEN_CODES)


def test_other_precisions_are_quantized_in_single():
    model, z = quantizer(), latents()
    found = model.quantize(z.bfloat16())
    assert found.quantized.dtype == torch.float32
    assert torch.equal(found.tokens, model.quantize(z.bfloat16().float()).tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantize(z).quantized, model.quantize(z).quantized)
    double = quantizer().double()
    assert double.quantize(z.double()).quantized.dtype == torch.float64


# ---- Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_only_the_loss_reaches_the_codebook(resample, temperature):
    model, z = quantizer(resample=resample, temperature=temperature), latents().requires_grad_()
    found = model.quantize(z)
    (3.0 * found.quantized).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 3.0))  # straight through
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    z.grad = None
    model.quantize(z).loss.backward()
    assert z.grad.abs().sum() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("resample", ["grid2d", "linear1d"])
def test_the_kernels_gradients_are_those_of_torch(resample):
    model, z = quantizer(resample=resample).double(), latents().double().requires_grad_()
    model.quantize(z).loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    sums = model._sums(model.quantize(z.detach()).tokens, torch.float64)
    torch.stack([(f - z.detach()).square().mean() for f in sums]).mean().backward()
    for mine, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def test_an_averaged_codebook_gets_no_gradient_and_follows_the_residuals():
    model, z = quantizer(ema=True, num_phis=0), latents(64)
    assert not model.codebook.requires_grad
    model.start(z)
    before = model.quantize(z).loss
    shifted = z + 0.5
    for _ in range(60):
        found = model.quantize(shifted)
        model.tally(found.counts, model.code_sums(shifted, found.tokens))
    assert model.quantize(shifted).loss < 1.2 * before
    with pytest.raises(ValueError, match="`sums` must be given"):
        model.tally(found.counts)


def test_stochastic_codes_follow_the_temperature_in_training_only():
    model, z = quantizer(temperature=0.5), latents(20)
    drawn = [model.quantize(z, generator=generator(seed)).tokens for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    nearest = model.eval().quantize(z).tokens
    model.temperature = 1e-9
    assert torch.equal(model.train().quantize(z, generator=generator(0)).tokens, nearest)


# ---- The codebook's care -----------------------------------------------------------------------------------


def test_k_means_begins_with_little_error_and_every_scale_in_use():
    z = latents(64)
    model = quantizer(num_phis=4, codes=64)
    with torch.no_grad():
        model.phi_weight.zero_()
        model.phi_weight[:, range(4), range(4), 1, 1] = 1.0
        model.phi_bias.zero_()

    def error() -> float:
        return float((model.decode(model.quantize(z).tokens) - z).square().mean())

    random = error()
    model.start(z, generator=generator(0))
    once = model.codebook.clone()
    assert error() < 0.8 * random
    assert error() < 0.35 * float(z.square().mean())
    assert model.report().unused < 16
    model.start(z, generator=generator(0))
    assert torch.equal(once, model.codebook)


def test_more_codes_than_residuals():
    model = quantizer(codes=200)
    model.start(latents(1), generator=generator(0))
    assert model.codebook.isfinite().all()
    assert len(model.codebook.detach().unique(dim=0)) == 200


@pytest.mark.parametrize("ema", [False, True])
def test_unused_codes_come_to_life(ema):
    model, z = quantizer(ema=ema), latents(40)
    with torch.no_grad():
        model.codebook[10:] += 100.0  # nothing is near
        found = model.quantize(z)
        model.usage.copy_(found.counts / found.counts.sum(1, keepdim=True))
    dead = model.unused()
    assert dead[10:].all()
    assert model.report().unused == int(dead.sum())
    assert (model.report().share <= 10 / 32).all()
    rows = model.revive(z, found.tokens, generator=generator(0))
    assert torch.equal(rows, dead.nonzero().flatten())
    assert model.codebook.abs().max() < 10
    assert not model.unused().any()
    after = model.quantize(z)
    assert (after.counts[:, 10:].sum(0) > 0).float().mean() > 0.9
    assert after.loss < found.loss
    assert len(model.revive(z, after.tokens)) == 0


def test_usage_is_the_share_of_codes():
    model = quantizer(codes=10)
    counts = torch.zeros(4, 10, dtype=torch.int64)
    counts[:, :5] = 3
    for _ in range(1000):
        model.tally(counts)
    report = model.report()
    torch.testing.assert_close(report.share, torch.full((4,), 0.5))
    torch.testing.assert_close(report.perplexity, torch.full((4,), 5.0), rtol=1e-3, atol=0)
    assert report.unused == 5


def test_state_goes_through_a_file(tmp_path):
    first, second = quantizer(0, ema=True), quantizer(1, ema=True)
    first.start(latents())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.quantize(latents()).tokens, second.quantize(latents()).tokens)
    assert torch.equal(first.usage, second.usage)


# ---- Wrong arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (1, 5)}, r"`scales` must be squares with `resample` = 'grid2d', got \(1, 5\)"),
        ({"scales": (4, 1)}, r"`scales` must be positive with the largest last, got \(4, 1\)"),
        ({"scales": ()}, "`scales` must be positive"),
        ({"resample": "cubic"}, "`resample` must be one of grid2d, linear1d, query, got 'cubic'"),
        ({"codes": 0}, r"`num_codes` must be in \[1, 65536\], got 0"),
        ({"temperature": -1.0}, "`temperature` must not be negative, got -1.0"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        quantizer(**changes)


def test_wrong_inputs():
    model = quantizer()
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, 16, 4\), got \(1, 15, 4\)"):
        model.quantize(torch.zeros(1, 15, 4))
    with pytest.raises(ValueError, match=r"number of scales must be in \[1, 4\], got 5"):
        model.quantize(latents(), num_scales=5)
    with pytest.raises(ValueError, match=r"`tokens` must have shape \(B, T\).*got \(1, 6\)"):
        model.decode(torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`codes` must have shape \(B, 4\) for scale 1, got \(1, 5\)"):
        model.next_input(None, torch.zeros(1, 5, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match=r"`scale` must be in \[0, 4\), got 4"):
        model.next_input(None, torch.zeros(1, 5, dtype=torch.int64), 4)
