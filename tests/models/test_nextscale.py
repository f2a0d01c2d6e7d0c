"""The next-scale transformer: parity with VAR's code, and what the model promises beyond it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fastshape import models
from fastshape.checkpoints import nextscale as official
from fastshape.models import CheckpointError, Condition, NextScaleConfig, NextScaleTransformer, Sampling
from fastshape.models.token_sampling import draw_tokens, keep_likely
from fastshape.nn import MultiscaleQuantizer
from fastshape.testing import generator

# Parameters of the published transformers, by their cards in millions.
PUBLISHED = {"var-d16": 310, "var-d20": 601, "var-d24": 1034, "var-d30": 2010, "vat": 384, "vat-0.5b": 502}
LOGITS = {"rtol": 1e-4, "atol": 2e-4}  # of the golden files
GRADIENTS = {"rtol": 2e-3, "atol": 1e-6}


class Golden:
    """A golden file, our model with its parameters, and the quantizer."""

    def __init__(self, folder, name: str) -> None:
        self.tensors = load_file(folder / f"{name}.safetensors")
        self.config = json.loads((folder / f"{name}.json").read_text())["config"]
        state = {k.removeprefix("state."): v for k, v in self.tensors.items() if k.startswith("state.")}
        scales = [side**2 for side in self.config["patch_nums"]]
        self.quantizer = official.load_quantizer(
            state, scales, phi_ratio=self.config["quant_resi"], prefix="quant."
        )
        self.state = {k: v for k, v in state.items() if not k.startswith("quant.")}
        levels = torch.arange(len(scales)).repeat_interleave(torch.tensor(scales))
        config = None
        if not self.config["attn_l2_norm"]:  # there heads do not show
            inferred = official.infer_config({**self.state, "lvl_1L": levels[None]})
            config = NextScaleConfig(**{**inferred.to_dict(), "heads": self.config["num_heads"]})
        self.model = NextScaleTransformer.from_official({**self.state, "lvl_1L": levels[None]}, config)
        self.condition = Condition(classes=self.tensors["in.label"])

    def generate(self, part: str, sampling: Sampling, given=None):
        """Tokens, guided logits and the sum of codes."""
        logits = []
        tokens = self.model.generate(
            self.quantizer,
            [0, 1],
            self.condition,
            sampling=sampling,
            given=given,
            batch_size=2,
            on_scale=lambda scale, found, drawn: logits.append(found),
        )
        side = self.config["patch_nums"][-1]
        sums = self.quantizer.decode(tokens).transpose(1, 2).unflatten(2, (side, side))
        torch.testing.assert_close(sums, self.tensors[f"out.{part}.f_hat"], rtol=1e-5, atol=1e-5)
        return tokens, torch.cat(logits, 1)


@pytest.fixture(scope="module", params=["var_ar_a", "var_ar_nol2_a"])
def golden(golden_folder, request):
    return Golden(golden_folder, request.param)


def small_config(**changes) -> NextScaleConfig:
    sizes = {"scales": (1, 4, 9), "vocab_size": 12, "code_dim": 3, "dim": 16, "depth": 2, "heads": 2}
    return NextScaleConfig(**{**sizes, **changes})


def small_model(seed: int = 0, **changes) -> NextScaleTransformer:
    """With blocks that do something: those of a new model hardly do."""
    torch.manual_seed(seed)
    model = NextScaleTransformer(small_config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def quantizer():
    torch.manual_seed(1)
    return MultiscaleQuantizer(12, 3, (1, 4, 9), num_phis=2).eval()


CONDITIONS = {
    "nothing": {},
    "classes": {"num_classes": 5},
    "text": {"text_dim": 6},
    "prefix": {"image_dim": 7, "image_tokens": 4},
    "cross": {"image_dim": 7, "image_tokens": 4, "cond_mode": "cross"},
    "all": {"num_classes": 5, "text_dim": 6, "image_dim": 7, "image_tokens": 4, "shared_modulation": True},
}


def condition_of(config: NextScaleConfig, batch: int, seed: int = 2) -> Condition:
    draw = generator(seed)
    return Condition(
        torch.randint(config.num_classes, (batch,), generator=draw) if config.num_classes else None,
        torch.randn(batch, config.text_dim, generator=draw) if config.text_dim else None,
        torch.randn(batch, config.image_tokens, config.image_dim, generator=draw)
        if config.image_dim
        else None,
    )


def random_tokens(batch: int, config: NextScaleConfig, seed: int = 3) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, config.num_tokens), generator=generator(seed))


# ---- Parity ------------------------------------------------------------------------------------------------


def test_teacher_forcing_and_gradients(golden):
    tensors, model = golden.tensors, golden.model
    model.zero_grad()
    logits = model(tensors["in.var_input"], golden.condition)
    torch.testing.assert_close(logits, tensors["out.logits"], **LOGITS)
    loss = F.cross_entropy(logits.flatten(0, 1), tensors["out.gt_idx"].flatten())
    torch.testing.assert_close(loss, tensors["out.ce_loss"], **LOGITS)
    loss.backward()
    found = {official.official_name(name): value.grad for name, value in model.named_parameters()}
    names = [key.removeprefix("out.grad.") for key in tensors if key.startswith("out.grad.")]
    assert len(names) >= 7
    for name in names:
        expected = tensors[f"out.grad.{name}"]
        torch.testing.assert_close(found[name].reshape(expected.shape), expected, **GRADIENTS)


@torch.no_grad()
def test_greedy(golden):
    tokens, logits = golden.generate("greedy", Sampling(top_k=1))
    assert torch.equal(tokens, golden.tensors["out.greedy.idx"])
    torch.testing.assert_close(logits, golden.tensors["out.greedy.cfg_logits"], **LOGITS)
    again = golden.model(golden.quantizer.scale_inputs(tokens), golden.condition)
    torch.testing.assert_close(again, golden.tensors["out.greedy.teacher_forced_logits"], **LOGITS)


def test_greedy_with_guidance(golden):
    tokens, logits = golden.generate("greedy_cfg", Sampling(guidance=golden.config["cfg"], top_k=1))
    assert torch.equal(tokens, golden.tensors["out.greedy_cfg.idx"])
    torch.testing.assert_close(logits, golden.tensors["out.greedy_cfg.cfg_logits"], **LOGITS)


def test_probabilities_of_what_was_sampled(golden):
    config = golden.config
    given = golden.tensors["out.sampled.idx"]
    tokens, logits = golden.generate("sampled", Sampling(guidance=config["cfg"]), given)
    assert torch.equal(tokens, given)
    torch.testing.assert_close(logits, golden.tensors["out.sampled.cfg_logits"], **LOGITS)
    expected = golden.tensors["out.sampled.probs"]
    kept = keep_likely(golden.tensors["out.sampled.cfg_logits"], config["top_k"], config["top_p"])
    assert torch.equal(kept > -torch.inf, expected > 0)
    torch.testing.assert_close(kept.softmax(-1), expected, **LOGITS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    with torch.device("meta"):
        model = NextScaleTransformer(NextScaleTransformer.configs[name])
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("depth", [16, 36])
def test_names_of_the_official_parameters(depth):
    """By its code; depth 36 shares its modulation."""
    with torch.device("meta"):
        model = NextScaleTransformer(NextScaleTransformer.configs[f"var-d{depth}"])
    names = {official.official_name(name) for name in model.state_dict()}
    assert None not in names
    assert len(names) == len(model.state_dict())
    shared = {"shared_ada_lin.1.weight", "shared_ada_lin.1.bias", "blocks.35.ada_gss"}
    own = {"blocks.0.ada_lin.1.weight", "blocks.15.ada_lin.1.bias"}
    assert names & (shared | own) == (shared if depth == 36 else own)


# ---- The transformer ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", CONDITIONS)
def test_cached_sampling_equals_teacher_forcing(quantizer, kind):
    model = small_model(**CONDITIONS[kind])
    condition = condition_of(model.config, 3)
    found = []
    tokens = model.generate(
        quantizer,
        [5, 6, 7],
        condition,
        batch_size=2,
        on_scale=lambda scale, logits, drawn: found.append((scale, logits)),
    )
    parts = [torch.cat([logits for at, logits in found if at == scale]) for scale in range(3)]
    forced = model(quantizer.scale_inputs(tokens), condition)
    torch.testing.assert_close(torch.cat(parts, 1), forced, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["classes", "prefix", "cross", "all"])
def test_guidance_leaves_the_first_scale_and_pulls_at_the_last(quantizer, kind):
    model = small_model(**CONDITIONS[kind])
    condition = condition_of(model.config, 1)
    given = random_tokens(1, model.config)
    logits = {}
    for guidance, told in ((0.0, condition), (0.0, Condition()), (1.5, condition)):
        parts: list[torch.Tensor] = []
        model.generate(
            quantizer,
            [0],
            told,
            sampling=Sampling(guidance=guidance),
            given=given,
            on_scale=lambda scale, found, drawn, parts=parts: parts.append(found),
        )
        logits[guidance, told is condition] = parts
    for scale, weight in enumerate((0.0, 0.75, 1.5)):
        with_, without = logits[0.0, True][scale], logits[0.0, False][scale]
        assert not torch.allclose(with_, without)
        expected = (1 + weight) * with_ - weight * without
        torch.testing.assert_close(logits[1.5, True][scale], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_scale_sees_itself_and_what_is_coarser(quantizer):
    model = small_model(**CONDITIONS["prefix"])
    condition = condition_of(model.config, 1)
    inputs = quantizer.scale_inputs(random_tokens(1, model.config))
    before = model(inputs, condition)
    changed = inputs.clone()
    changed[:, 4 + 3] += 1.0  # of the last scale
    after = model(changed, condition)
    assert torch.equal(after[:, :5], before[:, :5])
    assert bool((after[:, 5:] != before[:, 5:]).any(-1).all())
    # The image is seen by all, and the first scales are what they are without the others.
    other = model(inputs, condition._replace(image=condition.image + 1.0))
    assert bool((other != before).any(-1).all())
    torch.testing.assert_close(model(inputs[:, :4], condition), before[:, :5], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_item_does_not_depend_on_its_batch(quantizer):
    model = small_model(**CONDITIONS["all"])
    condition = condition_of(model.config, 4)
    sampling = Sampling(guidance=1.0, top_k=8, top_p=0.95)
    together = model.generate(quantizer, [3, 1, 4, 1], condition, sampling=sampling)
    for item, seed in enumerate([3, 1, 4, 1]):
        alone = condition.map(lambda rows, item=item: rows[item : item + 1])
        assert torch.equal(model.generate(quantizer, [seed], alone, sampling=sampling)[0], together[item])
    assert not torch.equal(together[0], together[1])
    # One row of a condition is for all.
    first = condition.map(lambda rows: rows[:1])
    assert torch.equal(model.generate(quantizer, [3, 9], first, sampling=sampling)[0], together[0])


@torch.no_grad()
def test_given_scales_are_kept(quantizer):
    model = small_model()
    given = random_tokens(2, model.config)
    for count in (0, 1, 5, 14):
        tokens = model.generate(quantizer, [1, 2], given=given[:, :count])
        assert torch.equal(tokens[:, :count], given[:, :count])
    assert torch.equal(tokens, given)


def test_conditions_are_left_out_in_training_alone(quantizer):
    model = small_model(**CONDITIONS["all"], drop_condition=0.5)
    batch = 64
    condition = condition_of(model.config, batch)
    inputs = quantizer.scale_inputs(random_tokens(1, model.config)).expand(batch, -1, -1)
    assert torch.equal(model(inputs, condition), model(inputs, condition))
    dropped = model.train()._dropped(batch, generator(0))
    assert list(dropped) == ["classes", "text", "image"]
    rates = torch.stack(list(dropped.values())).float().mean(1)
    assert bool(((rates > 0.3) & (rates < 0.7)).all())
    assert not torch.equal(dropped["text"], dropped["image"])
    # A shape's own generator decides, whatever the batch.
    draws = [generator(seed) for seed in range(batch)]
    whole = model(inputs, condition, generator=draws)
    draws = [generator(seed) for seed in range(batch)]
    parts = [
        model(inputs[part], condition.map(lambda rows, part=part: rows[part]), generator=draws[part])
        for part in (slice(0, 16), slice(16, 64))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    # Without any of it, it is the unconditional model.
    nothing = model.eval()(inputs[:1])
    model.train()
    all_dropped = torch.stack(list(model._dropped(batch, generator(0)).values())).all(0)
    found = model(inputs, condition, generator=generator(0))
    assert int(all_dropped.sum()) > 2
    torch.testing.assert_close(
        found[all_dropped], nothing.expand(int(all_dropped.sum()), -1, -1), rtol=1e-4, atol=1e-4
    )


def test_what_is_not_known_is_as_if_left_out(quantizer):
    model = small_model(**CONDITIONS["all"], drop_condition=0.0).train()
    condition = condition_of(model.config, 3)
    inputs = quantizer.scale_inputs(random_tokens(3, model.config))
    partly = Condition(*(rows.clone() for rows in condition))
    partly.classes[0], partly.text[0], partly.image[0] = -1, torch.nan, torch.nan
    partly.text[1] = torch.nan
    found = model(inputs, partly)
    torch.testing.assert_close(found[0], model(inputs[:1])[0], rtol=1e-4, atol=1e-5)
    without_text = Condition(condition.classes[1:2], None, condition.image[1:2])
    torch.testing.assert_close(found[1], model(inputs[1:2], without_text)[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[2], model(inputs, condition)[2])
    found.square().sum().backward()
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters())


def test_a_new_model_says_all_codes_alike_and_every_parameter_learns(quantizer):
    for kind, changes in CONDITIONS.items():
        torch.manual_seed(0)
        model = NextScaleTransformer(small_config(**changes, drop_condition=0.5, drop_path=0.1)).train()
        condition = condition_of(model.config, 16)
        tokens = random_tokens(16, model.config)
        logits = model(quantizer.scale_inputs(tokens), condition, generator=generator(1))
        assert float(logits.detach().abs().max()) < 0.2, kind
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        without = [name for name, value in model.named_parameters() if value.grad is None]
        assert without == [], kind


@torch.no_grad()
def test_autocast_stays_near(quantizer):
    model = small_model(**CONDITIONS["all"])
    condition = condition_of(model.config, 2)
    inputs = quantizer.scale_inputs(random_tokens(2, model.config))
    expected = model(inputs, condition)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(inputs, condition).float()
    assert float((found - expected).abs().max()) < 0.2 * float(expected.std())


# ---- Sampling ----------------------------------------------------------------------------------------------


def test_the_likely_are_kept():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, -1.0])

    def kept(**options) -> list[int]:
        return (keep_likely(logits, **options) > -torch.inf).nonzero().flatten().tolist()

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=1) == [1]
    assert kept(top_k=2) == [1, 2, 3]  # equals stay
    assert kept(top_k=9) == [0, 1, 2, 3, 4]
    probabilities = logits.softmax(-1)
    assert kept(top_p=float(probabilities[1]) - 0.01) == [1]
    assert kept(top_p=1e-6) == [1]
    assert kept(top_p=0.99) == [0, 1, 2, 3]  # what goes has .009 in all
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]
    assert len(kept(top_k=3, top_p=0.6)) == 2  # of those that are left, one of two equals goes
    for options in ({"top_k": -1}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            keep_likely(logits, **options)
        with pytest.raises(ValueError, match=next(iter(options))):
            Sampling(**options)
    for options in ({"guidance": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Sampling(**options)


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]).expand(1, 20_000, -1)
    drawn = draw_tokens(probabilities, [generator(0)])
    shares = drawn.flatten().bincount(minlength=6) / drawn.numel()
    torch.testing.assert_close(shares, probabilities[0, 0], rtol=0, atol=0.02)
    assert shares[0] == shares[2] == shares[5] == 0
    assert torch.equal(draw_tokens(7.0 * probabilities, [generator(0)]), drawn)


# ---- Errors, configurations, files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"scales": ()},
        {"scales": (1, 0)},
        {"heads": 3},
        {"vocab_size": 0},
        {"depth": -1},
        {"image_dim": 3},
        {"cond_mode": "both"},
        {"drop_condition": 1.0},
        {"mlp_ratio": 0.0},
    ],
)
def test_configuration_is_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_wrong_input_is_named(quantizer):
    model = small_model(num_classes=5)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(B, 13, 3\)"):
        model(torch.zeros(2, 12, 3))
    inputs = torch.zeros(2, 13, 3)
    with pytest.raises(ValueError, match="the model takes no `text`; of the conditions it takes classes"):
        model(inputs, Condition(text=torch.zeros(2, 4)))
    with pytest.raises(ValueError, match=r"`classes` must have shape \(2,\), got \(3,\)"):
        model(inputs, Condition(classes=torch.zeros(3).long()))
    with pytest.raises(ValueError, match="`classes` must be below 5, got 5"):
        model(inputs, Condition(classes=torch.tensor([0, 5])))
    assert torch.equal(model(inputs, Condition(classes=torch.tensor([-1, -1]))), model(inputs))
    with pytest.raises(ValueError, match=r"`given` must have shape \(1, T\)"):
        model.generate(quantizer, [0], given=torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match=r"`given` must lie in \[0, 12\)"):
        model.generate(quantizer, [0], given=torch.full((1, 1), 12))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        model.generate(quantizer, [0], batch_size=0)
    with pytest.raises(ValueError, match=r"`guidance` 1\.0 needs a model with a condition"):
        small_model().generate(quantizer, [0], sampling=Sampling(guidance=1.0))


def test_save_and_load(tmp_path):
    model = small_model(**CONDITIONS["all"])
    model.metadata = models.CheckpointMetadata(tokenizer="vat-mini", tokenizer_fingerprint="0123")
    model.save_pretrained(tmp_path)
    loaded = models.load(tmp_path)
    assert isinstance(loaded, NextScaleTransformer)
    assert (loaded.config, loaded.metadata) == (model.config, model.metadata)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_official_files(golden, tmp_path):
    levels = torch.arange(len(golden.model.config.scales)).repeat_interleave(
        torch.tensor(golden.model.config.scales)
    )
    constants = {
        "lvl_1L": levels[None],
        "attn_bias_for_masking": torch.zeros(1, 1, len(levels), len(levels)),
        "blocks.0.attn.zero_k_bias": torch.zeros(golden.model.config.dim),
    }
    save_file({**golden.state, **constants}, tmp_path / "var.safetensors")
    config = golden.model.config if not golden.model.config.qk_norm else None
    loaded = NextScaleTransformer.from_official(tmp_path / "var.safetensors", config)
    assert loaded.config == golden.model.config
    assert not loaded.training
    assert loaded.fingerprint() == golden.model.fingerprint()
    with pytest.raises(CheckpointError, match="the scales do not show: pass `config`"):
        NextScaleTransformer.from_official(golden.state)
    with pytest.raises(CheckpointError, match=r"is not a VAR transformer: it has no word_embed\.weight"):
        NextScaleTransformer.from_official({"x": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="VAR has classes alone, `config` has text"):
        NextScaleTransformer.from_official(golden.state, small_config(text_dim=3))
    broken = dict(golden.state)
    del broken["pos_start"]
    broken["head.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        NextScaleTransformer.from_official({**broken, "lvl_1L": levels[None]}, golden.model.config)
    assert "1 missing, 0 extra, 1 misshapen" in str(caught.value)
    assert f"missing    pos_start (1, 1, {golden.model.config.dim})" in str(caught.value)


def test_official_quantizers(golden_folder):
    with pytest.raises(CheckpointError, match=r"has no quantize\.embedding\.weight"):
        official.load_quantizer({"x": torch.zeros(2)}, (1, 4))
    shared = load_file(golden_folder / "var_vq2_small_a.safetensors")
    state = {f"quantize.{k[6:]}": v for k, v in shared.items() if k.startswith("state.")}
    about = json.loads((golden_folder / "var_vq2_small_a.json").read_text())["config"]
    quantizer = official.load_quantizer(
        state, [n * n for n in about["v_patch_nums"]], phi_ratio=about["quant_resi"]
    )
    z = shared["in.f"].flatten(2).transpose(1, 2).contiguous()
    found = quantizer.quantize(z).quantized.transpose(1, 2).reshape(shared["out.f_hat"].shape)
    torch.testing.assert_close(found, shared["out.f_hat"], rtol=1e-4, atol=1e-5)
