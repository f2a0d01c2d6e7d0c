"""VAT's training: two stages in one run, k-means between them, codes that come to life, exact resumption."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from test_families import whole_ball
from test_train import Stopped, run, same, small_config, stop_at

from fastshape import train
from fastshape.losses import occupancy_loss, soft_occupancy
from fastshape.models import VAT, VATConfig
from fastshape.train.checkpoint import CheckpointError
from fastshape.train.codebook import reset_moments
from fastshape.train.loop import METRICS_FILE, MODEL_DIRECTORY

MODEL = VATConfig(
    dim=16,
    heads=2,
    encoder_depth=1,
    depth=1,
    num_latents=16,
    latent_dim=4,
    num_inputs=64,
    plane_size=2,
    channels=(8, 8),
    plane_dim=4,
    mlp_dim=16,
    num_codes=16,
    truncation=0.1,
)


def config(**changes) -> train.TrainConfig:
    model = dataclasses.replace(MODEL, **changes.pop("of_model", {}))
    values = {"model": model, "kl_weight": 1e-4, "initialization": "kernel", "continuous_share": 0.5}
    return small_config(**{**values, **changes})


@pytest.fixture(scope="module")
def shapes():
    return [whole_ball(0.7), whole_ball(0.5, seed=1)]


def test_the_ramp():
    sdf = torch.tensor([-1.0, -0.1, -0.05, 0.0, 0.05, 0.2])
    torch.testing.assert_close(soft_occupancy(sdf, 0.1), torch.tensor([1, 1, 0.75, 0.5, 0.25, 0]))
    with pytest.raises(ValueError, match="`truncation` must be positive, got 0"):
        soft_occupancy(sdf, 0.0)


def test_the_loss_is_the_papers(shapes):
    torch.manual_seed(0)
    settings = config(continuous_share=0.0, kl_weight=0.5, vq_weight=0.2)
    model = VAT(settings.model).train()
    batch = train.sample_batch(shapes, settings, 0)
    values, posterior = model(*batch.inputs, batch.queries, sample=False)
    parts = train.losses(values, posterior, batch, settings)
    labels = soft_occupancy(batch.labels, 0.1)
    volume, near = (occupancy_loss(values[:, a:b], labels[:, a:b]) for a, b in ((0, 48), (48, 80)))
    expected = volume + 0.1 * near + 0.5 * posterior.kl().mean() + 0.2 * posterior.coded.loss
    torch.testing.assert_close(parts["loss"], expected)
    assert list(parts) == ["loss", "volume", "near", "kl", "vq"]


def test_both_stages_learn_in_one_run(shapes, tmp_path):
    settings = config(steps=160, near_weight=1.0, learning_rate=5e-3, revive_every=20, ema_decay=0.9)
    seen = []
    model = run(
        settings,
        shapes,
        validation=shapes,
        output_dir=tmp_path,
        on_step=lambda step, metrics: seen.append(metrics),
    )
    assert [("vq" in metrics) for metrics in seen] == [False] * 80 + [True] * 80
    loss = [metrics["volume"] + metrics["near"] for metrics in seen]
    assert sum(loss[60:80]) < 0.9 * sum(loss[:20])
    assert sum(loss[-20:]) < 0.8 * sum(loss[:20])
    assert model.quantizing
    last = json.loads((tmp_path / METRICS_FILE).read_text().splitlines()[-1])
    assert last["validation_volume_iou"] > 0.5
    assert 0 <= last["codes_unused"] < 16
    loaded = VAT.from_pretrained(tmp_path / MODEL_DIRECTORY)
    cloud = shapes[0].cloud("surface", 6)[None, :64]
    assert torch.equal(loaded.tokenize(cloud), model.tokenize(cloud))
    assert len(loaded.tokenize(cloud).unique()) > 3


@pytest.mark.parametrize("stop", [4, 7, 11])
def test_an_interrupted_run_goes_on_bit_for_bit(shapes, tmp_path, stop):
    """In the first stage, at the k-means, and in the second."""
    settings = config(
        steps=14,
        checkpoint_every=stop,
        revive_every=3,
        ema_decay=0.9,
        augment="axes",
        of_model={"scale_dropout": 0.5, "temperature": 0.1},
    )
    straight = run(settings, shapes)
    with pytest.raises(Stopped):
        run(settings, shapes, output_dir=tmp_path, on_step=stop_at(stop))
    assert same(run(settings, shapes, output_dir=tmp_path), straight)


def test_the_second_stage_begins_with_the_weights_of_the_first(shapes):
    first = run(config(steps=6, of_model={"quantize": False}, continuous_share=0.0), shapes)
    assert first.quantizer is None
    second = config(steps=1, learning_rate=1e-9, continuous_share=0.0)
    model = run(second, shapes, initial=first)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=0)
    assert model.quantizer.report().unused < 16
    # A quantized one keeps its codebook.
    again = run(dataclasses.replace(second, steps=2), shapes, initial=model)
    torch.testing.assert_close(again.quantizer.codebook, model.quantizer.codebook, atol=1e-5, rtol=0)
    other = config(steps=1, of_model={"quantize": False, "mlp_dim": 8}, continuous_share=0.0)
    with pytest.raises(ValueError, match="`initial` must be the model of the configuration"):
        run(second, shapes, initial=run(other, shapes))


def test_an_averaged_codebook_trains(shapes):
    model = run(config(steps=20, of_model={"ema": True}, revive_every=4, micro_batch_size=1), shapes)
    assert model.quantizer.codebook.isfinite().all()
    assert model.quantizer.cluster_size.sum() > 0


def test_moments_of_revived_codes_are_forgotten():
    parameter = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(4, 2)
    optimizer.step()
    reset_moments(optimizer, parameter, torch.tensor([1, 3]))
    state = optimizer.state[parameter]
    for name in ("exp_avg", "exp_avg_sq"):
        assert not state[name][[1, 3]].any()
        assert state[name][[0, 2]].all()
    assert state["step"] == 1


def test_another_configuration_does_not_resume(shapes, tmp_path):
    run(config(steps=4), shapes, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="continuous_share"):
        run(config(steps=4, continuous_share=0.25), shapes, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"continuous_share": 1.0}, r"`continuous_share` must be in \[0, 1\), got 1.0"),
        ({"revive_every": 0}, "`revive_every` must be at least 1, got 0"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_recipes():
    tiny = train.recipes.get("vat-tiny")
    parameters = sum(parameter.numel() for parameter in VAT(tiny.model).parameters())
    assert parameters < 2_000_000
    assert tiny.model.all_scales[-1] == 256
    for name in VAT.configs:
        large = train.recipes.get(f"vat-{name.replace('_', '-')}")
        assert (large.quantize_from, large.steps) == (200_000, 300_000)
        assert train.config_from_dict(json.loads(json.dumps(large.to_dict()))) == large
