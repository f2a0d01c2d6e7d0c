"""LaGeM: parity with the official code, and what the model promises beyond it."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastshape import testing
from fastshape.checkpoints import lagem as official
from fastshape.geometry import PrepareSpec
from fastshape.losses import occupancy_loss
from fastshape.models import CheckpointError, LaGeM, PreparationWarning
from fastshape.nn import NormalizedBottleneck
from fastshape.ops import farthest_point_sampling
from fastshape.testing import (
    GOLDEN_BFLOAT16,
    GOLDEN_LOGITS,
    assert_golden,
    generator,
    lattice_points,
    random_points,
)

# Parameters, keys, and sha256 of the official code's sorted "name shape" lines.
OFFICIAL = (499_852_625, 405, "791095738e5cf0e5")


class Golden:
    """The golden file and our model with its parameters."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.tensors = load_file(folder / "lagem_ae_a.safetensors", str(device))
        self.about = json.loads((folder / "lagem_ae_a.json").read_text())
        sizes = self.about["config"]
        self.config = LaGeM.Config(
            dim=sizes["dim"],
            heads=sizes["dim"] // sizes["dim_head"],
            head_dim=sizes["dim_head"],
            num_latents=sizes["num_points"],
            latent_dims=sizes["latent_dims"],
            depths=sizes["depths"],
        )
        self.state = {k.removeprefix("state."): v for k, v in self.tensors.items() if k.startswith("state.")}
        self.model = LaGeM.from_official(self.state, self.config).to(device)

    def input(self, name: str) -> torch.Tensor:
        return self.tensors[f"in.{name}"]

    def check(self, name: str, result: torch.Tensor, tolerance: float = testing.GOLDEN_FEATURES) -> None:
        assert_golden(result, self.tensors[f"out.{name}"].view_as(result), tolerance)

    def check_levels(self, name: str, results: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> None:
        for level, result in enumerate(results, 1):
            self.check(f"{name}_level{level}", result)


@pytest.fixture(scope="module")
def golden(golden_folder, device):
    return Golden(golden_folder, device)


def small_config(**changes) -> LaGeM.Config:
    sizes = {"dim": 32, "heads": 2, "head_dim": 16, "num_latents": (16, 8, 4), "latent_dims": (3, 4, 5)}
    return LaGeM.Config(**{**sizes, "depths": (1, 0, 2), **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LaGeM(small_config()).eval()


# ---- Parity ------------------------------------------------------------------------------------------------


def test_the_levels_are_the_official_samples(golden):
    cloud = points = golden.input("pc")
    for level, count in enumerate(golden.config.num_latents, 1):
        indices = farthest_point_sampling(points, count)
        assert torch.equal(indices, golden.tensors[f"out.fps_idx_level{level}"])
        points = points.gather(1, indices[..., None].expand(-1, -1, 3))
        golden.check(f"points_level{level}", points)
        nested = farthest_point_sampling(cloud, count)
        assert torch.equal(points, cloud.gather(1, nested[..., None].expand(-1, -1, 3)))


def test_every_encoder_stage(golden):
    model = golden.model
    x = model.point_embed(golden.input("pc"))
    for number, level in enumerate(model.levels, 1):
        x = level.encoder(model.point_embed(golden.tensors[f"out.points_level{number}"]), x)
        golden.check(f"encoder_features_level{number}", x)
        golden.check(f"zbar_level{number}", level.bottleneck.to_latent(x))
        golden.check(f"z_level{number}", level.bottleneck(x).mode())
    golden.check_levels("z", model.encode(golden.input("pc")).mode())


def test_every_decoder_stage(golden):
    model, queries = golden.model, golden.input("queries")
    latents = model.encode(golden.input("pc")).mode()
    x = [level.bottleneck.from_latent(z) for level, z in zip(model.levels, latents, strict=True)]
    golden.check_levels("ltof", x)
    features = model.decode(latents)
    golden.check_levels("decoded_features", features)
    up = [model.up[index](x[index], features[index + 1]) for index in (0, 1)]
    golden.check("upsampled_to_level1", up[0])
    golden.check("upsampled_to_level2", up[1])
    golden.check_levels("self_attn_input", [x[0] + up[0], x[1] + up[1], x[2]])
    embedded = model.point_embed(queries)
    golden.check("query_embed", embedded)
    golden.check_levels(
        "query_features", [head(embedded, level) for head, level in zip(model.heads, features, strict=True)]
    )
    golden.check("logits", model.query(queries, features), GOLDEN_LOGITS)


def test_logits_of_noise(golden):
    noise = [golden.input(f"noise_z_level{level}") for level in (1, 2, 3)]
    logits = golden.model.query(golden.input("queries"), golden.model.decode(noise))
    golden.check("logits_from_noise_z", logits, GOLDEN_LOGITS)


def test_loss_and_every_gradient(golden):
    model, labels = golden.model, golden.input("labels")
    features = model.decode(model.encode(golden.input("pc")).mode())
    logits = model.query(golden.input("queries"), features)
    half = logits.shape[1] // 2
    loss = occupancy_loss(logits[:, :half], labels[:, :half])
    loss = loss + 0.1 * occupancy_loss(logits[:, half:], labels[:, half:])
    golden.check("loss", loss.reshape(1), GOLDEN_LOGITS)
    model.zero_grad()
    loss.backward()
    names = official.official_names(model)
    gradients = {names[ours]: p.grad for ours, p in model.named_parameters()}
    assert sorted(gradients) == golden.about["grad_names"]
    norms = [gradients[name].double().norm() for name in golden.about["grad_names"]]
    golden.check("grad_norms", torch.stack(norms))


@torch.no_grad()
def test_attention_in_bfloat16_as_the_official_code_has_it(golden):
    config = LaGeM.Config(**{**golden.config.to_dict(), "attention_dtype": "bfloat16"})
    model = LaGeM.from_official(golden.state, config).to(golden.device)
    latents = model.encode(golden.input("pc")).mode()
    for level, z in enumerate(latents, 1):
        assert (z - golden.tensors[f"out.z_level{level}_bf16attn"]).abs().max() < GOLDEN_BFLOAT16
    logits = model.query(golden.input("queries"), model.decode(latents))
    expected = golden.tensors["out.logits_bf16attn"]
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < GOLDEN_BFLOAT16
    assert not torch.equal(logits, golden.model.query(golden.input("queries"), golden.model.decode(latents)))


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
@torch.no_grad()
def test_half_precision_stays_near(golden, way):
    model = copy.deepcopy(golden.model)
    model = model.bfloat16() if way == "bfloat16" else model
    with torch.autocast(golden.device.type, torch.bfloat16, enabled=way == "autocast"):
        features = model.decode(model.encode(golden.input("pc")).mode())
        logits = model.query(golden.input("queries"), features)
    error = (logits.float() - golden.tensors["out.logits"].view_as(logits)).square().mean().sqrt()
    assert error < GOLDEN_BFLOAT16


def test_forward_is_the_verbs_in_a_row(golden):
    model, points, queries = golden.model, golden.input("pc"), golden.input("queries")
    values, posterior = model(points, queries)
    expected = model.query(queries, model.decode(model.encode(points).mode()))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, posterior.mean, model.encode(points).mean))


def test_published_model_has_the_official_parameters():
    with torch.device("meta"):
        model = LaGeM(LaGeM.configs["objaverse"])
    names = official.official_names(model)
    lines = [f"{names[ours]} {tuple(tensor.shape)}" for ours, tensor in model.state_dict().items()]
    lines.append("point_embed.basis (3, 24)")
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    assert (sum(p.numel() for p in model.parameters()), len(lines), digest) == OFFICIAL


# ---- Levels ------------------------------------------------------------------------------------------------


def test_a_prefix_of_the_samples_is_the_sampling_of_the_samples():
    for points in (random_points(2, 200), lattice_points(2, 200, steps=3)):  # with ties, too
        indices = farthest_point_sampling(points, 50, start=7)
        samples = points.gather(1, indices[..., None].expand(-1, -1, 3))
        expected = points.gather(1, farthest_point_sampling(points, 20, start=7)[..., None].expand(-1, -1, 3))
        assert torch.equal(samples[:, :20], expected)
        again = farthest_point_sampling(samples, 20)
        assert torch.equal(samples.gather(1, again[..., None].expand(-1, -1, 3)), expected)


@pytest.mark.parametrize("counts", [(9,), (9, 5), (9, 9, 3, 1)])
@pytest.mark.parametrize("bottleneck", ["normalized", "kl"])
def test_any_number_of_levels(counts, bottleneck):
    torch.manual_seed(0)
    config = small_config(
        num_latents=counts,
        latent_dims=tuple(range(2, 2 + len(counts))),
        depths=(1,) * len(counts),
        bottleneck=bottleneck,
    )
    model = LaGeM(config).train()
    values, posterior = model(random_points(2, 30), random_points(2, 7), generator=generator(0))
    assert values.shape == (2, 7)
    assert [tuple(z.shape[1:]) for z in posterior.mode()] == list(
        zip(counts, config.latent_dims, strict=True)
    )
    (values.sum() + posterior.kl().sum()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert bool((posterior.kl() > 0).all()) == (bottleneck == "kl")
    noisy = [posterior.sample(generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(noisy[0][0], noisy[1][0])
    assert torch.equal(noisy[0][0], noisy[2][0]) == (bottleneck == "normalized")


def test_every_level_matters_to_the_field(model):
    queries, latents = random_points(1, 9), list(model.encode(random_points(1, 50)).mode())
    before = model.query(queries, model.decode(latents))
    for index in range(3):
        changed = [z + 1.0 * torch.arange(z.shape[-1]) if i == index else z for i, z in enumerate(latents)]
        assert not torch.allclose(model.query(queries, model.decode(changed)), before)


def test_latents_off_their_sphere_are_brought_back_when_asked(model):
    latents = model.encode(random_points(1, 50)).mode()
    off = tuple(1.2 * z + 0.1 for z in latents)
    expected, raw = model.decode(latents), model.decode(off)
    for right, wrong, back in zip(expected, raw, model.decode(off, standardize=True), strict=True):
        torch.testing.assert_close(back, right, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(wrong, right, rtol=1e-3, atol=1e-4)
    assert torch.equal(NormalizedBottleneck.standardize(torch.ones(1, 2, 3)), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="normalized bottleneck"):
        LaGeM(small_config(bottleneck="kl")).decode(latents, standardize=True)


# ---- Verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 1, 1), (256, 64, 16), (4096, 1024, 256)])
@torch.no_grad()
def test_any_number_of_tokens(counts):
    torch.manual_seed(0)
    model = LaGeM(small_config(dim=8, heads=1, head_dim=8)).eval()
    latents = model.encode(random_points(1, 5000), num_latents=counts).mode()
    assert [z.shape[1] for z in latents] == list(counts)
    values = model.query(random_points(1, 5), model.decode(latents))
    assert values.shape == (1, 5)
    assert values.isfinite().all()


@torch.no_grad()
def test_a_hundred_thousand_tokens():
    torch.manual_seed(0)
    model = LaGeM(small_config(dim=8, heads=1, head_dim=8, depths=(0, 1, 1))).eval()  # what is not quadratic
    latents = model.encode(random_points(1, 300), num_latents=(100_001, 400, 100)).mode()
    assert model.query(random_points(1, 5), model.decode(latents)).isfinite().all()


def test_encoding_is_deterministic_and_random_when_asked(model):
    points = random_points(2, 60)
    assert all(map(torch.equal, model.encode(points).mean, model.encode(points).mean))
    random = [model.encode(points, start="random", generator=generator(seed)).mean[2] for seed in (1, 1, 2)]
    assert torch.equal(random[0], random[1])
    assert not torch.equal(random[0], random[2])


@torch.no_grad()
def test_a_point_has_one_value_whatever_its_neighbors(model):
    features = model.decode(model.encode(random_points(2, 80)).mode())
    points = random_points(2, 1001, seed=1)
    values = model.query(points, features, chunk_size=100)
    order = torch.randperm(1001, generator=generator(2))
    assert torch.equal(model.query(points[:, order], features, chunk_size=100), values[:, order])
    assert torch.equal(model.query(points[:, 777:801], features, chunk_size=100), values[:, 777:801])
    one = model.query(points[1:], [level[1:] for level in features], chunk_size=100)
    assert torch.equal(one, values[1:])


@torch.no_grad()
def test_query_keeps_to_its_memory():
    torch.manual_seed(0)
    counts = (400, 100, 20)
    model = LaGeM(small_config(dim=64)).eval()
    features = model.decode(model.encode(random_points(1, 500), num_latents=counts).mode())
    for count in (512, 4096):
        used = testing.peak_bytes(lambda n=count: model.query(random_points(1, n), features, chunk_size=512))
        assert 0 < used < model.query_bytes(counts, chunk_size=512) + 64 * count


@torch.no_grad()
def test_extract_takes_a_shape_with_or_without_its_batch():
    torch.manual_seed(0)
    model = LaGeM(small_config()).eval()
    features = model.decode(model.encode(random_points(1, 80)).mode())
    level = model.query(torch.zeros(1, 1, 3), features)
    model.to_logits.bias -= level[0] - 0.01  # so that there is a surface
    mesh = model.extract(features, 12, chunk_size=300)
    again = model.extract([f[0] for f in features], 12, chunk_size=300)
    assert len(mesh.faces) > 0
    assert torch.equal(mesh.vertices, again.vertices)


def zeros(*counts: int, channels: tuple[int, ...] = (3, 4, 5), batch: int = 1) -> list[torch.Tensor]:
    return [torch.zeros(batch, count, size) for count, size in zip(counts, channels, strict=False)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(4, 2)), r"`points` must have shape \(B, N, 3\), got \(4, 2\)"),
        (lambda m: m.encode(torch.zeros(1, 0, 3)), "at least one point"),
        (lambda m: m.encode(torch.zeros(1, 9, 3), num_latents=(4, 2)), "`num_latents` must have 3 levels"),
        (lambda m: m.encode(torch.zeros(1, 9, 3), num_latents=(4, 5, 2)), r"never grow .* \(4, 5, 2\)"),
        (lambda m: m.decode(zeros(3, 2)), "`latents` must have 3 levels, got 2"),
        (
            lambda m: m.decode(zeros(3, 2, 1, channels=(5, 4, 3))),
            r"`latents\[0\]` must have shape \(B, M, 3\), got \(1, 3, 5\)",
        ),
        (
            lambda m: m.decode([*zeros(3, 2), torch.zeros(2, 1, 5)]),
            r"levels of `latents` must agree on B, got \(1, 3, 3\), \(1, 2, 4\), \(2, 1, 5\)",
        ),
        (
            lambda m: m.query(torch.zeros(3, 3, 3), zeros(3, 2, 1, channels=(32,) * 3, batch=2)),
            "must agree on B",
        ),
        (lambda m: m.extract(zeros(3, 2, 1, channels=(32,) * 3, batch=2)), "one shape"),
    ],
)
def test_wrong_inputs(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_latents_are_a_sequence(model):
    with pytest.raises(TypeError, match="`latents` must be a sequence of a tensor per level"):
        model.decode(torch.zeros(3, 4, 5))


@pytest.mark.parametrize("bottleneck", ["normalized", "kl"])
def test_loss_falls(bottleneck):
    torch.manual_seed(0)
    model = LaGeM(small_config(bottleneck=bottleneck))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    points = 0.7 * torch.nn.functional.normalize(random_points(2, 60), dim=-1)
    queries = random_points(2, 256, seed=3)
    inside = queries.norm(dim=-1) < 0.7
    losses = []
    for step in range(30):
        logits, posterior = model(points, queries, generator=generator(step))
        loss = occupancy_loss(logits, inside)
        optimizer.zero_grad()
        (loss + 1e-3 * posterior.kl().mean()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- Configuration, saving and loading ---------------------------------------------------------------------


def test_configuration_survives_json():
    for config in (*LaGeM.configs.values(), small_config(bottleneck="kl", attention_dtype="bfloat16")):
        assert LaGeM.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 0},
        {"num_latents": (4, 8, 2)},
        {"num_latents": (4, 2)},
        {"latent_dims": (1, 0, 1)},
        {"depths": (1, 1, -1)},
        {"bottleneck": "vq"},
        {"attention_dtype": "float16"},
    ],
)
def test_configuration_is_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_save_and_load(golden, tmp_path):
    golden.model.save_pretrained(tmp_path)
    loaded = LaGeM.from_pretrained(tmp_path, device=golden.device)
    assert loaded.config == golden.config
    assert loaded.metadata == golden.model.metadata
    with torch.no_grad():
        points, queries = (random_points(1, n).to(golden.device) for n in (50, 9))
        assert torch.equal(loaded(points, queries).values, golden.model(points, queries).values)
    assert loaded.check_preparation(PrepareSpec.preset("lagem").to_dict()) == []
    with pytest.warns(PreparationWarning, match="normalization: trained with sphere, got box"):
        loaded.check_preparation(PrepareSpec.preset("vecset").to_dict())


# ---- Official checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide():
    """A model whose heads can be inferred: head_dim 64."""
    torch.manual_seed(0)
    sizes = {"num_latents": (2048, 512), "latent_dims": (3, 4), "depths": (1, 2)}
    return LaGeM(LaGeM.Config(dim=32, heads=2, **sizes)).eval()


def official_state(model: LaGeM) -> dict[str, torch.Tensor]:
    names, dim = official.official_names(model), model.config.dim
    state = {names[ours]: tensor for ours, tensor in model.state_dict().items()}
    levels = state["to_outputs.weight"].split(dim, dim=1)
    state["to_outputs.weight"] = torch.cat(levels[::-1], dim=1)
    return state


@pytest.mark.parametrize("layout", ["model", "module", "safetensors"])
def test_official_files(wide, tmp_path, layout):
    state = official_state(wide)
    path = tmp_path / ("official.safetensors" if layout == "safetensors" else "official.pth")
    if layout == "safetensors":
        save_file(state, path)
    elif layout == "model":
        torch.save({"model": state, "epoch": 499, "args": argparse.Namespace(lr=1e-4)}, path)
    else:
        torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    loaded = LaGeM.from_official(path)
    assert loaded.config == LaGeM.Config(**{**wide.config.to_dict(), "num_inputs": 8192})
    assert not loaded.training
    ours = wide.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


def test_the_golden_needs_its_configuration(golden):
    with pytest.raises(CheckpointError, match="pass `config`"):
        LaGeM.from_official(golden.state)


def test_every_difference_is_listed(wide):
    state = official_state(wide)
    del state["networks.1.beta"]
    state["upsample_blocks.1.0.norm.weight"] = torch.zeros(32)
    state["decoder_cross_attn.0.norm.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        LaGeM.from_official(state)
    text = str(caught.value)
    assert "1 missing, 1 extra, 1 misshapen parameters; nothing was loaded" in text
    assert "missing    networks.1.beta (4,)" in text
    assert "extra      upsample_blocks.1.0.norm.weight (32,)" in text
    assert "misshapen  decoder_cross_attn.0.norm.bias: expected (32,), found (3,)" in text


def test_what_is_not_official_is_refused(wide):
    with pytest.raises(CheckpointError, match="is not a LaGeM autoencoder: it has no"):
        LaGeM.from_official({"encoder.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"point_embed\.basis is not the published one"):
        LaGeM.from_official({**official_state(wide), "point_embed.basis": torch.ones(3, 8)})
    with pytest.raises(ValueError, match="normalized bottleneck, not 'kl'"):
        LaGeM.from_official(official_state(wide), small_config(bottleneck="kl"))
