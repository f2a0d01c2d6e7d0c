"""Dora-VAE: parity with the official code, and what the model promises beyond it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastshape import testing
from fastshape.checkpoints import dora as official
from fastshape.geometry import PrepareSpec
from fastshape.losses import occupancy_loss
from fastshape.models import CheckpointError, DoraVAE, PreparationWarning
from fastshape.ops import farthest_point_sampling
from fastshape.testing import GOLDEN_BFLOAT16, GOLDEN_LOGITS, assert_golden, generator, random_points

# Of Dora-VAE-1.1: parameters, and sha256 of the official code's sorted "name shape" lines.
OFFICIAL = (191_591_553, 322, "5882eab734ab4bbd")


class Golden:
    """The golden file and our model with its parameters."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.tensors = load_file(folder / "dora_vae_a.safetensors", str(device))
        self.about = json.loads((folder / "dora_vae_a.json").read_text())
        sizes = self.about["config"]["model"]
        self.config = DoraVAE.Config(
            dim=sizes["width"],
            heads=sizes["heads"],
            encoder_depth=sizes["num_encoder_layers"],
            depth=sizes["num_decoder_layers"],
            latent_dim=sizes["embed_dim"],
            num_latents=64,
        )
        self.state = {k.removeprefix("state."): v for k, v in self.tensors.items() if k.startswith("state.")}
        self.model = DoraVAE.from_official(self.state, self.config).to(device)
        self.streams = self.input("coarse_surface"), self.input("sharp_surface")

    def input(self, name: str) -> torch.Tensor:
        return self.tensors[f"in.{name}"]

    def check(self, name: str, result: torch.Tensor, tolerance: float = testing.GOLDEN_FEATURES) -> None:
        assert_golden(result, self.tensors[f"out.{name}"].view_as(result), tolerance)


@pytest.fixture(scope="module")
def golden(golden_folder, device):
    return Golden(golden_folder, device)


def small_config(**changes) -> DoraVAE.Config:
    sizes = {"dim": 32, "heads": 2, "encoder_depth": 1, "depth": 2, "latent_dim": 4, "num_latents": 12}
    return DoraVAE.Config(**{**sizes, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DoraVAE(small_config()).eval()


def stream(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    """Points on a sphere and their normals, (B, N, 6)."""
    normals = torch.nn.functional.normalize(random_points(batch, count, seed=seed), dim=-1)
    return torch.cat([0.8 * normals, normals], dim=-1)


def streams(batch: int, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    return stream(batch, count), stream(batch, count, seed=1)


# ---- Parity ------------------------------------------------------------------------------------------------


def test_every_encoder_stage(golden):
    encoder = golden.model.encoder
    surface, sharp = golden.streams
    c = encoder.project(surface, encoder.surface_proj)
    s = encoder.project(sharp, encoder.sharp_proj)
    golden.check("coarse_in_head", c[:, :16])
    golden.check("sharp_in_head", s[:, :16])
    samples = []
    for name, points, tokens in (("coarse", surface, c), ("sharp", sharp, s)):
        indices = farthest_point_sampling(points[..., :3].contiguous(), 32)
        assert torch.equal(indices, golden.tensors[f"out.fps_idx_{name}"])
        samples.append(tokens.gather(1, indices[..., None].expand(-1, -1, 48)))
    query = torch.cat(samples, 1)
    golden.check("enc_query", query)
    golden.check("cross_coarse", encoder.surface_block(query, c))
    golden.check("cross_sharp", encoder.sharp_block(query, s))
    x = encoder.surface_block(query, c) + encoder.sharp_block(query, s)
    for layer in encoder.layers:
        x = layer(x)
    golden.check("encoder_self_attn", x)
    golden.check("shape_latents", encoder(query, c, s))


def test_posterior_and_latents(golden):
    posterior = golden.model.encode(*golden.streams)
    golden.check("mean", posterior.mean)
    golden.check("logvar", posterior.logvar)
    golden.check("kl", posterior.kl())
    golden.check("z", posterior.sample(noise=golden.input("eps")))


def test_every_decoder_stage(golden):
    model, queries = golden.model, golden.input("queries")
    latents = model.encode(*golden.streams).sample(noise=golden.input("eps"))
    golden.check("post_kl", model.bottleneck.from_latent(latents))
    features = model.decode(latents)
    golden.check("decoded_features", features)
    embedded = model.head.query_proj(model.head.embed(queries))
    golden.check("query_in", embedded)
    golden.check("query_features", model.head.block(embedded, features))
    golden.check("query_features_ln", model.head.norm(model.head.block(embedded, features)))
    golden.check("logits", model.query(queries, features), GOLDEN_LOGITS)


@pytest.mark.parametrize("count", [8, 64, 128])
def test_logits_of_the_mode_for_several_token_counts(golden, count):
    model = golden.model
    posterior = model.encode(*golden.streams, num_latents=count)
    prefix = "" if count == 64 else f"len{count}."
    golden.check(f"{prefix}mean", posterior.mean)
    golden.check(f"{prefix}logvar", posterior.logvar)
    values = model.query(golden.input("queries"), model.decode(posterior.mode()))
    golden.check(f"{prefix}logits_from_mean", values, GOLDEN_LOGITS)


def golden_loss(golden) -> dict[str, torch.Tensor]:
    model, target, sharp = golden.model, golden.input("tsdf_target"), golden.about["config"]["number_sharp"]
    posterior = model.encode(*golden.streams)
    values = model.query(golden.input("queries"), model.decode(posterior.sample(noise=golden.input("eps"))))
    squared = (values - target).square()
    parts = {"loss_sharp": squared[:, :sharp].mean(), "loss_coarse": squared[:, sharp:].mean()}
    parts["loss_kl"] = posterior.kl().mean()
    return parts


def test_losses_and_every_gradient(golden):
    parts = golden_loss(golden)
    loss = parts["loss_coarse"] + 2.0 * parts["loss_sharp"] + 1e-3 * parts["loss_kl"]
    for name, value in {**parts, "loss": loss}.items():
        golden.check(name, value.reshape(1), GOLDEN_LOGITS)
    golden.model.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in golden.model.named_parameters()}
    parts_of = official.parts(golden.model)
    assert sorted(parts_of) == golden.about["grad_names"]
    norms = [
        torch.stack([gradients[ours].double().norm() for ours in parts_of[name]]).norm()
        for name in golden.about["grad_names"]
    ]
    golden.check("grad_norms", torch.stack(norms))


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
@torch.no_grad()
def test_half_precision_stays_near(golden, way):
    model = copy.deepcopy(golden.model)
    model = model.bfloat16() if way == "bfloat16" else model
    with torch.autocast(golden.device.type, torch.bfloat16, enabled=way == "autocast"):
        latents = model.encode(*golden.streams).mode()
        values = model.query(golden.input("queries"), model.decode(latents))
    assert latents.dtype == torch.bfloat16
    difference = values.float() - golden.tensors["out.logits_from_mean"].view_as(values)
    assert difference.square().mean().sqrt() < GOLDEN_BFLOAT16


def test_forward_is_the_verbs_in_a_row(golden):
    model, queries = golden.model, golden.input("queries")
    values, posterior = model(*golden.streams, queries)
    expected = model.query(queries, model.decode(model.encode(*golden.streams).mode()))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(posterior.mean, model.encode(*golden.streams).mean)


def test_published_model_has_the_official_parameters():
    with torch.device("meta"):
        model = DoraVAE(DoraVAE.configs["v1.1"])
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    lines = [
        f"{name} {(sum(shapes[p][0] for p in parts), *shapes[parts[0]][1:])}"
        for name, parts in official.parts(model).items()
    ]
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    assert (sum(p.numel() for p in model.parameters()), len(lines), digest) == OFFICIAL


# ---- Verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [2, 13, 256, 4096])
@torch.no_grad()
def test_any_number_of_tokens(tokens):
    torch.manual_seed(0)
    model = DoraVAE(small_config(dim=8, heads=1, num_latents=64)).eval()  # trained with 64, say
    posterior = model.encode(*streams(1, 2500), num_latents=tokens)
    assert posterior.mean.shape == (1, tokens, 4)
    values = model.query(random_points(1, 5), model.decode(posterior.mode()))
    assert values.shape == (1, 5)
    assert values.isfinite().all()


@torch.no_grad()
def test_a_hundred_thousand_tokens():
    torch.manual_seed(0)
    model = DoraVAE(small_config(dim=8, heads=1, encoder_depth=0, depth=0)).eval()  # what is not quadratic
    latents = model.encode(*streams(1, 300), num_latents=100_001).mode()
    assert latents.shape == (1, 100_001, 4)
    assert model.query(random_points(1, 5), model.decode(latents)).isfinite().all()


def test_few_points_give_many_tokens(model):
    assert model.encode(stream(2, 1), stream(2, 3), num_latents=10).mean.shape == (2, 10, 4)


def test_encoding_is_deterministic_and_random_when_asked(model):
    inputs = streams(2)
    assert torch.equal(model.encode(*inputs).mean, model.encode(*inputs).mean)
    random = [model.encode(*inputs, start="random", generator=generator(seed)).mean for seed in (1, 1, 2)]
    assert torch.equal(random[0], random[1])
    assert not torch.equal(random[0], random[2])
    posterior = model.encode(*inputs)
    assert torch.equal(posterior.sample(generator(3)), posterior.sample(generator(3)))
    assert not torch.equal(posterior.sample(generator(3)), posterior.mode())


def test_the_streams_are_not_alike(model):
    surface, sharp = streams(1)
    assert not torch.allclose(model.encode(surface, sharp).mean, model.encode(sharp, surface).mean)


@torch.no_grad()
def test_a_point_has_one_value_whatever_its_neighbors(model):
    features = model.decode(model.encode(*streams(2)).mode())
    points = random_points(2, 1001, seed=1)
    values = model.query(points, features, chunk_size=100)
    order = torch.randperm(1001, generator=generator(2))
    assert torch.equal(model.query(points[:, order], features, chunk_size=100), values[:, order])
    assert torch.equal(model.query(points[:, 777:801], features, chunk_size=100), values[:, 777:801])
    assert torch.equal(model.query(points[1:], features[1:], chunk_size=100), values[1:])


@pytest.mark.parametrize("tokens", [12, 400])
@torch.no_grad()
def test_query_keeps_to_its_memory(tokens):
    torch.manual_seed(0)
    model = DoraVAE(small_config(dim=64)).eval()
    features = model.decode(model.encode(*streams(1, 200), num_latents=tokens).mode())
    for count in (512, 4096):
        used = testing.peak_bytes(lambda n=count: model.query(random_points(1, n), features, chunk_size=512))
        assert 0 < used < model.query_bytes(tokens, chunk_size=512) + 64 * count


@torch.no_grad()
def test_extract_looks_beyond_the_unit_cube():
    torch.manual_seed(0)
    model = DoraVAE(small_config()).eval()
    model._field = lambda points, context: 1.02 - points.abs().amax(-1)  # type: ignore[method-assign]
    mesh = model.extract(torch.zeros(5, 32), 22)
    assert mesh.vertices.abs().max() == pytest.approx(1.02, abs=1e-3)
    assert mesh.volume > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(1, 4, 3), stream(1, 4)), r"`surface` must have shape \(B, N, 6\)"),
        (lambda m: m.encode(stream(1, 4), torch.zeros(1, 0, 6)), "`sharp` must have at least one point"),
        (lambda m: m.encode(stream(1, 4), stream(2, 4)), "must agree on B"),
        (lambda m: m.encode(stream(1, 4), stream(1, 4), num_latents=1), "`num_latents` must be at least 2"),
        (lambda m: m.decode(torch.zeros(1, 3, 5)), r"`latents` must have shape \(B, M, 4\), got \(1, 3, 5\)"),
        (
            lambda m: m.query(torch.zeros(1, 3, 3), torch.zeros(1, 3, 5)),
            r"`features` must have shape \(B, M, 32\)",
        ),
        (lambda m: m.query(torch.zeros(3, 3, 3), torch.zeros(2, 3, 32)), "must agree on B"),
        (lambda m: m.extract(torch.zeros(2, 3, 32)), "one shape"),
    ],
)
def test_wrong_inputs(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_inputs_must_be_tensors(model):
    with pytest.raises(TypeError, match="`sharp` must be a tensor, got list"):
        model.encode(stream(1, 4), [])
    with pytest.raises(TypeError, match="`features` must be a tensor, got list"):
        model.query(torch.zeros(1, 3, 3), [])


@pytest.mark.parametrize("output", ["tsdf", "occupancy"])
def test_loss_falls(output):
    torch.manual_seed(0)
    model = DoraVAE(small_config(output=output))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    queries = random_points(2, 256, seed=3)
    depth = 0.8 - queries.norm(dim=-1)  # positive inside
    losses = []
    for step in range(30):
        values, posterior = model(*streams(2), queries, generator=generator(step))
        if output == "tsdf":
            loss = (values - (depth / 0.2).clamp(-1, 1)).square().mean()
        else:
            loss = occupancy_loss(values, depth > 0)
        optimizer.zero_grad()
        (loss + 1e-3 * posterior.kl().mean()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- Configuration, saving and loading ---------------------------------------------------------------------


def test_configuration_survives_json():
    for config in (*DoraVAE.configs.values(), small_config(qkv_bias=True)):
        assert DoraVAE.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "changes", [{"dim": 0}, {"depth": -1}, {"heads": 5}, {"output": "sdf"}, {"truncation": 0.0}]
)
def test_configuration_is_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_save_and_load(golden, tmp_path):
    golden.model.save_pretrained(tmp_path)
    loaded = DoraVAE.from_pretrained(tmp_path, device=golden.device)
    assert loaded.config == golden.config
    assert loaded.metadata == golden.model.metadata
    assert loaded.metadata.epsilon == 2 / 256
    state = golden.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_data_prepared_in_another_way_warns(golden):
    spec = PrepareSpec.preset("dora", seed=3, num_surface=100)
    assert golden.model.check_preparation(spec.to_dict(), epsilon=2 / 256) == []
    other = PrepareSpec.preset("lagem", labels="sdf").to_dict()
    with pytest.warns(PreparationWarning, match="normalization: trained with box, got sphere"):
        found = golden.model.check_preparation(json.loads(json.dumps(other)), epsilon=2 / 512)
    assert "any num_sharp: trained with True, got False" in found
    assert "epsilon: trained with 0.0078125, got 0.00390625" in found
    assert DoraVAE(small_config()).check_preparation(other) == []  # it does not know


# ---- Official checkpoints ----------------------------------------------------------------------------------


def official_state(model: DoraVAE) -> dict[str, torch.Tensor]:
    """Our parameters in the official layout, written apart from the code that reads it."""
    ours, heads = model.state_dict(), model.config.heads
    state = {}
    for name, parts in official.parts(model).items():
        tensor = torch.cat([ours[part] for part in parts])
        kinds = 3 if "c_qkv" in name else 2 if "c_kv" in name else 1
        size = len(tensor) // kinds // heads if kinds > 1 else 1
        order = [
            (kind * heads + head) * size + row
            for head in range(heads)
            for kind in range(kinds)
            for row in range(size)
        ]
        state[name] = tensor[order] if kinds > 1 else tensor
    return state


@pytest.fixture(scope="module")
def wide():
    """A model whose heads can be inferred: 64 channels each."""
    torch.manual_seed(0)
    model = DoraVAE(DoraVAE.Config(dim=128, heads=2, encoder_depth=1, depth=2, latent_dim=4, qkv_bias=True))
    return model.eval()


@pytest.mark.parametrize("layout", ["flat", "lightning", "safetensors"])
def test_official_files(wide, tmp_path, layout):
    state = official_state(wide)
    path = tmp_path / ("official.safetensors" if layout == "safetensors" else "official.ckpt")
    if layout == "safetensors":
        save_file(state, path)
    elif layout == "flat":
        torch.save(state, path)
    else:
        prefixed = {f"shape_model.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": prefixed, "epoch": 3, "pytorch-lightning_version": "2"}, path)
    loaded = DoraVAE.from_official(path)
    assert loaded.config == wide.config
    assert not loaded.training
    ours = wide.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


def test_official_attention_is_head_by_head():
    rows = official.rows("x.attn.c_qkv.weight", torch.arange(12.0)[:, None], heads=2)
    assert rows.flatten().tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]  # q of both heads, k, v


def test_version_1_0_is_asked_for_by_its_configuration(wide):
    config = DoraVAE.Config(**{**wide.config.to_dict(), "output": "occupancy"})
    loaded = DoraVAE.from_official(official_state(wide), config)
    assert loaded.config.output == "occupancy"
    assert loaded.metadata.preparation["labels"] == "occupancy"


def test_the_golden_needs_its_configuration(golden):
    with pytest.raises(CheckpointError, match="pass `config`"):
        DoraVAE.from_official(golden.state)


def test_every_difference_is_listed(wide):
    state = official_state(wide)
    del state["pre_kl.bias"]
    state["encoder.query"] = torch.zeros(2, 128)
    state["encoder.self_attn.resblocks.0.attn.c_qkv.weight"] = torch.zeros(3, 128)
    with pytest.raises(CheckpointError) as caught:
        DoraVAE.from_official(state)
    text = str(caught.value)
    assert "1 missing, 1 extra, 1 misshapen parameters; nothing was loaded" in text
    assert "missing    pre_kl.bias (8,)" in text
    assert "extra      encoder.query (2, 128)" in text
    assert "c_qkv.weight: expected (384, 128), found (3, 128)" in text


def test_not_this_family():
    with pytest.raises(CheckpointError, match="is not a Dora autoencoder: it has no decoder"):
        DoraVAE.from_official({"encoder.weight": torch.zeros(2)})
