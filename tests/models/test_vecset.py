"""3DShape2VecSet: parity with the official code, and what the model promises beyond it."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastshape import testing
from fastshape.checkpoints import vecset as official
from fastshape.losses import occupancy_loss
from fastshape.models import CheckpointError, VecSetVAE
from fastshape.ops import farthest_point_sampling
from fastshape.testing import GOLDEN_LOGITS, assert_golden, generator, random_points

CASES = ("vecset_ae_a", "vecset_kl_ae_a")

# (parameters, sha256 of the official code's sorted "name shape" lines) of its named constructors.
OFFICIAL = {
    "kl_d512_m512_l8": (106_128_913, "c8069addfc7783d7"),
    "kl_d512_m512_l512": (106_904_065, "7edb3483de483bf9"),
    "ae_d512_m512": (106_116_097, "cc043a584e0c0f7b"),
    "ae_d256_m512": (32_872_961, "ca5cd9beb6e5c3a7"),
    "ae_d64_m512": (4_433_537, "71d330d779f7952f"),
}


class Golden:
    """A golden file and our model with its parameters."""

    def __init__(self, folder: Path, case: str, device: torch.device) -> None:
        self.tensors = load_file(folder / f"{case}.safetensors", str(device))
        self.about = json.loads((folder / f"{case}.json").read_text())
        sizes = self.about["config"]["model"]
        self.config = VecSetVAE.Config(
            dim=sizes["dim"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            head_dim=sizes["dim_head"],
            num_latents=sizes["num_latents"],
            num_inputs=sizes["num_inputs"],
            latent_dim=sizes.get("latent_dim"),
        )
        self.state = {k.removeprefix("state."): v for k, v in self.tensors.items() if k.startswith("state.")}
        self.model = VecSetVAE.from_official(self.state, self.config).to(device)

    def input(self, name: str) -> torch.Tensor:
        return self.tensors[f"in.{name}"]

    def check(self, name: str, result: torch.Tensor, tolerance: float = testing.GOLDEN_FEATURES) -> None:
        assert_golden(result, self.tensors[f"out.{name}"].view_as(result), tolerance)


@pytest.fixture(scope="module", params=CASES)
def golden(request, golden_folder, device):
    return Golden(golden_folder, request.param, device)


@pytest.fixture(scope="module")
def kl_golden(golden_folder, device):
    return Golden(golden_folder, "vecset_kl_ae_a", device)


def small_config(**changes) -> VecSetVAE.Config:
    return VecSetVAE.Config(
        **{"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "num_latents": 12, "latent_dim": 4, **changes}
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VecSetVAE(small_config()).eval()


# ---- Parity ------------------------------------------------------------------------------------------------


def test_every_encoder_stage(golden):
    model, points = golden.model, golden.input("pc")
    indices = farthest_point_sampling(points, golden.config.num_latents)
    assert torch.equal(indices, golden.tensors["out.fps_idx"])
    embedded = model.point_embed(points)
    golden.check("pc_embed", embedded)
    samples = model.point_embed(points.gather(1, indices[..., None].expand(-1, -1, 3)))
    golden.check("sampled_pc_embed", samples)
    golden.check("cross_attn_out", model.encoder.cross_attention(samples, embedded))
    golden.check("encoded_features", model.encoder(samples, embedded))


def test_posterior_and_latents(golden):
    posterior = golden.model.encode(golden.input("pc"))
    if golden.config.latent_dim is None:
        golden.check("encoded_features", posterior.mode())
        return
    golden.check("mean", posterior.mean)
    golden.check("logvar", posterior.logvar)
    golden.check("kl", posterior.kl())
    golden.check("z", posterior.sample(noise=golden.input("eps")))


def test_every_decoder_stage(golden):
    model, queries = golden.model, golden.input("queries")
    latents = model.encode(golden.input("pc")).sample(noise=golden.tensors.get("in.eps"))
    golden.check(
        "decoder_input", latents if model.bottleneck is None else model.bottleneck.from_latent(latents)
    )
    features = model.decode(latents)
    golden.check("decoded_features", features)
    golden.check("query_embed", model.point_embed(queries))
    golden.check("query_features", model.head.cross_attention(model.point_embed(queries), features))
    golden.check("logits", model.query(queries, features), GOLDEN_LOGITS)


def test_logits_of_the_mode(kl_golden):
    model = kl_golden.model
    features = model.decode(model.encode(kl_golden.input("pc")).mode())
    kl_golden.check("logits_from_mean", model.query(kl_golden.input("queries"), features), GOLDEN_LOGITS)


def test_loss_and_every_gradient(golden):
    model, labels = golden.model, golden.input("labels")
    posterior = model.encode(golden.input("pc"))
    features = model.decode(posterior.sample(noise=golden.tensors.get("in.eps")))
    logits = model.query(golden.input("queries"), features)
    half = logits.shape[1] // 2
    loss = occupancy_loss(logits[:, :half], labels[:, :half])
    loss = loss + 0.1 * occupancy_loss(logits[:, half:], labels[:, half:]) + 1e-3 * posterior.kl().mean()
    golden.check("loss", loss.reshape(1), GOLDEN_LOGITS)
    model.zero_grad()
    loss.backward()
    parameters = dict(model.named_parameters())
    ours = [parameters[str(official.our_name(name))].grad for name in golden.about["grad_names"]]
    assert len(ours) == len(parameters)
    golden.check("grad_norms", torch.stack([g.double().norm() for g in ours]))


def test_forward_is_the_verbs_in_a_row(golden):
    model, points, queries = golden.model, golden.input("pc"), golden.input("queries")
    logits, posterior = model(points, queries)
    expected = model.query(queries, model.decode(model.encode(points).mode()))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(posterior.mean, model.encode(points).mean)


@pytest.mark.parametrize("name", OFFICIAL)
def test_named_configurations_have_the_official_parameters(name):
    with torch.device("meta"):
        model = VecSetVAE(VecSetVAE.configs[name])
    count, digest = OFFICIAL[name]
    assert sum(p.numel() for p in model.parameters()) == count
    names = official.official_names(model.config)
    lines = [f"{names[ours]} {tuple(tensor.shape)}" for ours, tensor in model.state_dict().items()]
    lines.append("point_embed.basis (3, 24)")
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16] == digest


def test_there_are_fifteen_named_configurations():
    assert len(VecSetVAE.configs) == 15
    assert VecSetVAE.configs["kl_d512_m512_l8"].latent_dim == 8
    assert VecSetVAE.configs["ae_d512_m64"].num_latents == 64


# ---- Verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 12, 64, 1000])
@pytest.mark.parametrize("tokens", [1, 12, 40, 1024])
def test_any_number_of_points_and_tokens(model, count, tokens):
    posterior = model.encode(random_points(2, count), num_latents=tokens)
    assert posterior.mean.shape == (2, tokens, 4)
    logits = model.query(random_points(2, 5), model.decode(posterior.mode()))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_encoding_is_deterministic_and_random_when_asked(model):
    points = random_points(2, 100)
    first, again = model.encode(points), model.encode(points)
    assert torch.equal(first.mean, again.mean)
    random = [model.encode(points, start="random", generator=generator(seed)).mean for seed in (1, 1, 2)]
    assert torch.equal(random[0], random[1])
    assert not torch.equal(random[0], random[2])


def test_encoding_does_not_depend_on_the_order_of_the_points(model):
    points = random_points(1, 100)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(99, generator=generator(0))])
    torch.testing.assert_close(
        model.encode(points[:, order]).mean, model.encode(points).mean, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk_size", [64, 100, 4096])
@torch.no_grad()
def test_a_point_has_one_value_whatever_its_neighbors(model, chunk_size, threads):
    with testing.num_threads(threads):
        features = model.decode(model.encode(random_points(2, 80)).mode())
        points = random_points(2, 5001, seed=1)
        values = model.query(points, features, chunk_size=chunk_size)
        alone = torch.cat(
            [model.query(points[:, i : i + 1], features, chunk_size=chunk_size) for i in range(0, 5001, 500)],
            1,
        )
        assert torch.equal(alone, values[:, ::500])
        order = torch.randperm(5001, generator=generator(2))
        assert torch.equal(model.query(points[:, order], features, chunk_size=chunk_size), values[:, order])
        assert torch.equal(
            model.query(points[:, 777:1234], features, chunk_size=chunk_size), values[:, 777:1234]
        )
        for shape in range(2):
            one = model.query(points[shape : shape + 1], features[shape : shape + 1], chunk_size=chunk_size)
            assert torch.equal(one[0], values[shape])


@torch.no_grad()
def test_query_broadcasts_points_and_takes_none(model):
    features = model.decode(model.encode(random_points(2, 80)).mode())
    points = random_points(1, 9)
    assert torch.equal(model.query(points, features), model.query(points.expand(2, -1, -1), features))
    assert model.query(points[:, :0], features).shape == (2, 0)


def test_query_passes_gradients_to_points_and_features(model):
    features = model.decode(model.encode(random_points(1, 80)).mode()).detach().requires_grad_()
    points = random_points(1, 7).requires_grad_()
    model.query(points, features, chunk_size=16).sum().backward()
    assert points.grad is not None
    assert points.grad.abs().sum() > 0
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(4, 2)), r"`points` must have shape \(B, N, 3\), got \(4, 2\)"),
        (lambda m: m.encode(torch.zeros(1, 0, 3)), "at least one point"),
        (lambda m: m.decode(torch.zeros(1, 3, 5)), r"`latents` must have shape \(B, M, 4\), got \(1, 3, 5\)"),
        (
            lambda m: m.query(torch.zeros(1, 3, 3), torch.zeros(1, 3, 5)),
            r"`features` must have shape \(B, M, 32\)",
        ),
        (lambda m: m.query(torch.zeros(3, 3, 3), torch.zeros(2, 3, 32)), "must agree on B"),
        (lambda m: m.query(torch.zeros(1, 3, 3), torch.zeros(1, 3, 32), chunk_size=0), "chunk_size"),
        (lambda m: m.extract(torch.zeros(2, 3, 32)), "one shape"),
        (lambda m: m.extract(torch.zeros(1, 3, 32), 1), "resolution"),
    ],
)
def test_wrong_inputs(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_points_must_be_a_tensor(model):
    with pytest.raises(TypeError, match="`points` must be a tensor, got list"):
        model.encode([[0.0, 0.0, 0.0]])


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    model = VecSetVAE(small_config(drop_path=0.5))
    latents = torch.randn(8, 12, 4)
    assert not torch.equal(model.train().decode(latents), model.decode(latents))
    assert torch.equal(model.eval().decode(latents), model.decode(latents))


def test_options_of_the_configuration():
    torch.manual_seed(0)
    model = VecSetVAE(small_config(decoder_feed_forward=True, cross_heads=4, latent_dim=None, depth=0)).eval()
    logits, posterior = model(random_points(2, 40), random_points(2, 6))
    assert logits.shape == (2, 6)
    assert posterior.logvar is None
    assert posterior.mean.shape == (2, 12, 32)


@torch.no_grad()
def test_normalized_queries_and_keys_bound_the_scores():
    torch.manual_seed(0)
    model = VecSetVAE(small_config(qk_norm=True)).eval()
    attention = model.layers[0].attention.attention
    attention.to_q.weight.mul_(1e6)  # makes no difference to a normalized query
    x = torch.randn(1, 12, 32)
    before = attention(x)
    attention.to_q.weight.mul_(1e3)
    torch.testing.assert_close(attention(x), before)
    assert model(random_points(1, 40), random_points(1, 6)).values.isfinite().all()


def test_learned_queries_replace_samples():
    torch.manual_seed(0)
    model = VecSetVAE(small_config(learned_queries=True)).eval()
    points = random_points(1, 40)
    order = torch.randperm(40, generator=generator(0))
    torch.testing.assert_close(
        model.encode(points).mean, model.encode(points[:, order]).mean, rtol=1e-4, atol=1e-5
    )  # no point is the first
    model(points, random_points(1, 6)).values.sum().backward()
    assert model.queries.grad.abs().sum() > 0
    for call in (lambda: model.encode(points, num_latents=5), lambda: model.decode(torch.zeros(1, 5, 4))):
        with pytest.raises(ValueError, match="learned queries fix the number of latents at 12, got 5"):
            call()


@pytest.mark.parametrize(("output", "sign"), [("occupancy", 1), ("tsdf", 1), ("sdf", -1)])
def test_extract_knows_the_sign_of_the_field(output, sign):
    model = VecSetVAE(small_config(output=output)).eval()
    model._field = lambda points, context: sign * (0.6 - points.norm(dim=-1))  # type: ignore[method-assign]
    mesh = model.extract(torch.zeros(1, 12, 32), 24)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.05)


# ---- Configuration -----------------------------------------------------------------------------------------


def test_configuration_survives_json():
    for config in (*VecSetVAE.configs.values(), small_config(latent_dim=None, decoder_feed_forward=True)):
        assert VecSetVAE.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 0},
        {"depth": -1},
        {"latent_dim": 0},
        {"cross_heads": 5},
        {"drop_path": 1.0},
        {"num_latents": 0},
        {"output": "udf"},
        {"truncation": 0.0},
    ],
)
def test_configuration_is_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_configuration_refuses_unknown_fields():
    with pytest.raises(ValueError, match="has no field width"):
        VecSetVAE.Config.from_dict({"width": 3})


# ---- Official checkpoints ----------------------------------------------------------------------------------


def official_state(model: VecSetVAE) -> dict[str, torch.Tensor]:
    names = official.official_names(model.config)
    return {names[ours]: tensor for ours, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def wide():
    """A model whose heads can be inferred: head_dim 64."""
    torch.manual_seed(0)
    return VecSetVAE(VecSetVAE.Config(dim=32, depth=2, heads=2, latent_dim=4)).eval()


@pytest.mark.parametrize("layout", ["flat", "model", "module", "safetensors"])
def test_official_files(wide, tmp_path, layout):
    state = official_state(wide)
    path = tmp_path / ("official.safetensors" if layout == "safetensors" else "official.pth")
    if layout == "safetensors":
        save_file(state, path)
    elif layout == "flat":
        torch.save(state, path)
    elif layout == "model":
        extras = {"optimizer": {"state": {}}, "epoch": 199, "args": argparse.Namespace(lr=1e-4)}
        torch.save({"model": state, **extras}, path)
    else:
        torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    loaded = VecSetVAE.from_official(path)
    assert loaded.config == wide.config
    assert not loaded.training
    ours = wide.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.state_dict().items())


def test_decoder_feed_forward_is_inferred():
    torch.manual_seed(0)
    model = VecSetVAE(VecSetVAE.Config(dim=32, depth=1, heads=1, latent_dim=None, decoder_feed_forward=True))
    assert VecSetVAE.from_official(official_state(model)).config == model.config


def test_half_precision_is_loaded_as_float32(wide):
    loaded = VecSetVAE.from_official({name: tensor.half() for name, tensor in official_state(wide).items()})
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_the_golden_needs_its_configuration(kl_golden):
    with pytest.raises(CheckpointError, match="pass `config`"):
        VecSetVAE.from_official(kl_golden.state)


def test_every_difference_is_listed(wide):
    state = official_state(wide)
    del state["mean_fc.bias"]
    state["layers.0.0.fn.to_q.bias"] = torch.zeros(128)
    state["something.else"] = torch.zeros(2)
    state["to_outputs.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        VecSetVAE.from_official(state)
    text = str(caught.value)
    assert "1 missing, 2 extra, 1 misshapen parameters; nothing was loaded" in text
    assert "missing    mean_fc.bias (4,)" in text
    assert "extra      layers.0.0.fn.to_q.bias (128,)" in text
    assert "extra      something.else (2,)" in text
    assert "misshapen  to_outputs.bias: expected (1,), found (3,)" in text


def test_another_basis_is_refused(wide):
    state = official_state(wide)
    state["point_embed.basis"] = torch.ones(3, 24)
    with pytest.raises(CheckpointError, match=r"point_embed\.basis is not the published one"):
        VecSetVAE.from_official(state)


def test_not_this_family():
    with pytest.raises(CheckpointError, match="is not a 3DShape2VecSet autoencoder"):
        VecSetVAE.from_official({"encoder.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no parameters"):
        VecSetVAE.from_official({})


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated zip"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_official_files(tmp_path, content, suffix):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.{suffix} is damaged"):
        VecSetVAE.from_official(path)


def test_truncated_official_file(wide, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": official_state(wide)}, path)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(CheckpointError, match=r"cut\.pth is damaged"):
        VecSetVAE.from_official(path)


class _Payload:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"x": torch.zeros(1)}, "payload": _Payload()}, "bad.pth")
    with pytest.raises(
        CheckpointError, match=r"bad\.pth is damaged or .*: it holds objects other than tensors"
    ):
        VecSetVAE.from_official("bad.pth")
    assert not Path("executed").exists()


def test_missing_official_file(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        VecSetVAE.from_official(tmp_path / "nowhere.pth")


# ---- Importing ---------------------------------------------------------------------------------------------


def test_import_is_silent_and_light():
    heavy = {"rich", "trimesh", "huggingface_hub", "scipy"}
    code = f"import sys, fastshape.models; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""
