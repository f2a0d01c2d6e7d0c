"""Training: it learns, it is deterministic, and an interrupted run goes on bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastshape import testing, train
from fastshape.losses import occupancy_loss
from fastshape.models import CheckpointError, VecSetVAE
from fastshape.testing import generator
from fastshape.train.checkpoint import CHECKPOINT_FILE
from fastshape.train.loop import METRICS_FILE, MODEL_DIRECTORY


def ball(radius: float = 0.7, seed: int = 0) -> train.ShapeSamples:
    """A ball, labeled by its formula."""
    draw = generator(seed)
    directions = torch.randn(4000, 3, generator=draw)
    surface = radius * directions / directions.norm(dim=1, keepdim=True)
    volume = torch.rand(4000, 3, generator=draw) * 2 - 1
    near = surface + 0.05 * torch.randn(surface.shape, generator=draw)
    return train.ShapeSamples(surface, volume, volume.norm(dim=1) < radius, near, near.norm(dim=1) < radius)


def small_config(**changes) -> train.TrainConfig:
    model = VecSetVAE.Config(
        dim=16, depth=1, heads=2, head_dim=8, num_latents=8, num_inputs=64, latent_dim=4, drop_path=0.1
    )
    values = {
        "model": model,
        "steps": 20,
        "batch_size": 2,
        "volume_queries": 48,
        "near_queries": 32,
        "learning_rate": 3e-3,
        "warmup_steps": 3,
        "checkpoint_every": 10,
        "log_every": 5,
        "num_threads": 1,
    }
    return train.TrainConfig(**{**values, **changes})


def equal_batches(a: train.Batch, b: train.Batch) -> bool:
    pairs = zip((*a.inputs, a.queries, a.labels), (*b.inputs, b.queries, b.labels), strict=True)
    return a.counts == b.counts and all(torch.equal(x, y) for x, y in pairs)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def samples():
    return [ball(0.7), ball(0.5, seed=1)]


def run(config, samples, **options):
    return train.fit(config, samples, **{"progress": False, "device": "cpu", **options})


# ---- Learning ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_ball_is_learned(samples):
    losses = []
    model = dataclasses.replace(
        small_config().model, dim=32, heads=4, cross_heads=4, decoder_feed_forward=True, drop_path=0.0
    )
    config = small_config(
        model=model, steps=300, batch_size=1, volume_queries=256, near_queries=256, near_weight=1.0
    )
    trained = run(config, samples[:1], on_step=lambda step, metrics: losses.append(metrics["loss"]))
    assert sum(losses[-20:]) < 0.35 * sum(losses[:20])
    features = trained.decode(trained.encode(samples[0].surface[None, :64]).mode())
    mesh = trained.extract(features, 24)
    assert mesh.vertices.norm(dim=1).mean().item() == pytest.approx(0.7, abs=0.05)
    a, b, c = mesh.vertices[mesh.faces].double().unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6  # positive: the faces look outward
    assert volume.item() == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.15)
    fresh = ball(0.7, seed=9)
    inside = trained.query(fresh.volume[None], features)[0] > 0
    truth = fresh.volume_labels
    assert (inside & truth).sum() / (inside | truth).sum() > 0.85


def test_the_loss_is_the_papers(samples):
    config = small_config(
        near_weight=0.1, kl_weight=0.5, model=dataclasses.replace(small_config().model, drop_path=0.0)
    )
    torch.manual_seed(0)
    model = VecSetVAE(config.model).train()
    batch = train.sample_batch(samples, config, 0)
    logits, posterior = model(batch.inputs[0], batch.queries, sample=False)
    model.bottleneck.to_logvar.bias.data.fill_(-60.0)  # no noise, so that both passes see the same latents
    logits, posterior = model(batch.inputs[0], batch.queries, sample=False)
    volume = occupancy_loss(logits[:, :48], batch.labels[:, :48])
    near = occupancy_loss(logits[:, 48:], batch.labels[:, 48:])
    expected = volume + 0.1 * near + 0.5 * posterior.kl().mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    parts = train.train_step(model, optimizer, batch, config, 0)
    torch.testing.assert_close(parts["loss"], expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["near"], near.detach(), rtol=1e-4, atol=1e-5)


def test_learning_rate_warms_up_and_falls():
    config = small_config(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [train.learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_occupancy_loss_takes_labels_of_one_shape():
    logits = torch.tensor([0.0, 2.0])
    expected = (math.log(2.0) + math.log1p(math.exp(-2.0))) / 2
    assert occupancy_loss(logits, torch.tensor([False, True])).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="must have one shape"):
        occupancy_loss(logits, torch.zeros(3))


@pytest.mark.parametrize(
    "changes", [{"gradient_clip": 0.5}, {"ema_decay": 0.9}, {"augment": "vecset"}, {"bfloat16": True}]
)
def test_options_change_the_result_and_stay_deterministic(samples, changes):
    plain = run(small_config(steps=4), samples)
    first, second = (run(small_config(steps=4, **changes), samples) for _ in range(2))
    assert same(first, second)
    assert not same(first, plain)


def test_plain_autoencoder_trains(samples):
    config = small_config(steps=2, model=dataclasses.replace(small_config().model, latent_dim=None))
    assert run(config, samples).bottleneck is None


def test_no_volume_or_no_near_queries(samples):
    for changes in ({"volume_queries": 0}, {"near_queries": 0}):
        run(small_config(steps=1, **changes), samples)


# ---- Data --------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step(samples):
    config = small_config()
    first, again = train.sample_batch(samples, config, 7), train.sample_batch(samples, config, 7)
    assert equal_batches(first, again)
    assert first.inputs[0].shape == (2, 64, 3)
    assert first.queries.shape == (2, 80, 3)
    assert first.labels.shape == (2, 80)
    others = (
        train.sample_batch(samples, config, 8),
        train.sample_batch(samples, dataclasses.replace(config, seed=1), 7),
    )
    for other in others:
        assert not torch.equal(first.queries, other.queries)


def test_every_shape_is_seen_once_per_pass():
    shapes = [ball(0.1 * (i + 1), seed=i) for i in range(5)]
    config = small_config(batch_size=2)
    radii = torch.cat(
        [train.sample_batch(shapes, config, step).inputs[0][:, 0].norm(dim=-1) for step in range(5)]
    )
    for half in radii.split(5):
        assert half.sort().values.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=1e-5)


def test_balanced_queries(samples):
    batch = train.sample_batch(samples, small_config(balanced=True), 0)
    assert batch.labels[:, :48].sum(1).tolist() == [24.0, 24.0]
    # Without inside volume points the inside half comes from the near ones; without any, from the volume.
    nowhere = torch.zeros(4000, dtype=torch.bool)
    outside = dataclasses.replace(samples[0], volume_labels=nowhere)
    assert train.sample_batch([outside], small_config(balanced=True), 0).labels[:, :48].sum(1).tolist() == [
        24.0,
        24.0,
    ]
    outside = dataclasses.replace(samples[0], volume_labels=nowhere, near_labels=nowhere)
    assert train.sample_batch([outside], small_config(balanced=True), 0).labels[:, :48].sum() == 0


def test_inputs_are_distinct_points_where_there_are_enough(samples):
    surface = train.sample_batch(samples, small_config(), 0).inputs[0]
    assert all(len(cloud.unique(dim=0)) == 64 for cloud in surface)
    few = dataclasses.replace(samples[0], surface=samples[0].surface[:10])
    assert train.sample_batch([few], small_config(), 0).inputs[0].shape == (2, 64, 3)


def test_augmentation_moves_surface_and_queries_together(samples):
    model = dataclasses.replace(small_config().model, num_inputs=3000)
    batch = train.sample_batch(samples[:1], small_config(augment="vecset", near_queries=2000, model=model), 0)
    assert batch.inputs[0].abs().max() <= 1.0
    # The queries' labels still say inside and outside of the (now ellipsoidal) surface.
    extent = batch.inputs[0].abs().amax(1, keepdim=True)
    inside = (batch.queries / extent).square().sum(-1) < 1.0
    assert (inside.float() == batch.labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"surface": torch.zeros(4, 2)}, ValueError, r"`surface` must have shape \(N, 3\)"),
        ({"surface": torch.zeros(0, 3)}, ValueError, "at least one point"),
        ({"near": torch.zeros(4000, 3, dtype=torch.float64)}, TypeError, "`near` must be float32"),
        ({"volume": torch.full((4000, 3), float("nan"))}, ValueError, "`volume` must be finite"),
        (
            {"volume_labels": torch.zeros(4000, dtype=torch.float64)},
            TypeError,
            "`volume_labels` must be bool or float32",
        ),
        (
            {"near_labels": torch.zeros(3, dtype=torch.bool)},
            ValueError,
            "`near_labels` must have shape",
        ),
    ],
)
def test_samples_are_checked(samples, changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(samples[0], **changes)


def test_samples_on_disk(samples, tmp_path):
    samples[0].save(tmp_path / "ball.safetensors")
    loaded = train.ShapeSamples.load(tmp_path / "ball.safetensors")
    assert loaded.fingerprint() == samples[0].fingerprint() != samples[1].fingerprint()
    VecSetVAE(small_config().model).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold shape samples"):
        train.ShapeSamples.load(tmp_path / "model.safetensors")


# ---- Configuration and recipes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", train.recipes.RECIPES)
def test_recipes_survive_json(name):
    config = train.recipes.get(name)
    assert train.config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_recipe_and_field():
    with pytest.raises(ValueError, match="there is no recipe 'huge'; there are vecset-single"):
        train.recipes.get("huge")
    with pytest.raises(ValueError, match="has no field speed"):
        train.TrainConfig.from_dict({"speed": 1})
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        small_config(steps=0)


def test_fit_meshes_overrides_the_recipe(samples):
    config = small_config()
    model = train.fit_meshes(samples, config, steps=2, seed=5, progress=False, device="cpu")
    assert same(model, run(small_config(steps=2, seed=5), samples))


# ---- Determinism and resuming ------------------------------------------------------------------------------


def test_training_is_deterministic_and_leaves_the_global_random_state(samples):
    state = torch.get_rng_state()
    first = run(small_config(steps=5), samples)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert same(first, run(small_config(steps=5), samples))
    assert not same(first, run(small_config(steps=5, seed=1), samples))


def test_a_fixed_number_of_threads_fixes_the_result(samples):
    config = small_config(steps=3, volume_queries=2000)
    assert config.num_threads == 1
    results = []
    for threads in (1, 2):
        with testing.num_threads(threads):
            results.append(run(config, samples))
            assert torch.get_num_threads() == threads
    assert same(*results)


class Stopped(Exception):  # noqa: N818
    pass


def stop_at(limit: int):
    def check(step, metrics):
        if step == limit:
            raise Stopped

    return check


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("limit", [10, 13])
def test_resumed_run_is_the_uninterrupted_one(samples, tmp_path, limit, changes):
    config = small_config(**changes)
    straight = run(config, samples, output_dir=tmp_path / "straight")
    with pytest.raises(Stopped):
        run(config, samples, output_dir=tmp_path / "cut", on_step=stop_at(limit))
    steps = []
    resumed = run(
        config, samples, output_dir=tmp_path / "cut", on_step=lambda step, metrics: steps.append(step)
    )
    assert steps == list(range(11, 21))
    assert same(straight, resumed)
    assert same(straight, run(config, samples))
    cut, whole = ((tmp_path / name / METRICS_FILE).read_text() for name in ("cut", "straight"))
    assert cut == whole
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [5, 10, 15, 20]


SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from test_train import ball, run, small_config

def on_step(step, metrics):
    print(step, flush=True)
    if step == 13:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))

run(small_config(), [ball(0.7), ball(0.5, seed=1)], output_dir=sys.argv[2], on_step=on_step)
"""


def train_in_a_process(folder: Path, signal_name: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), signal_name]
    return subprocess.run(arguments, capture_output=True, text=True)


@pytest.mark.slow
def test_killed_process(samples, tmp_path):
    result = train_in_a_process(tmp_path, "SIGKILL")
    assert result.returncode == -signal.SIGKILL
    (tmp_path / f".{CHECKPOINT_FILE}.leftover.tmp").write_bytes(b"half a file")
    assert same(run(small_config(), samples, output_dir=tmp_path), run(small_config(), samples))


@pytest.mark.slow
def test_interrupted_process_saves_its_last_step(samples, tmp_path):
    result = train_in_a_process(tmp_path, "SIGINT")
    assert result.stdout.split()[-1] == "14"
    assert f"stopped after step 14 of 20; saved in {tmp_path}" in result.stderr
    steps = []
    resumed = run(
        small_config(), samples, output_dir=tmp_path, on_step=lambda step, metrics: steps.append(step)
    )
    assert steps == list(range(15, 21))
    assert same(resumed, run(small_config(), samples))


def test_interrupt_in_memory(samples):
    previous = signal.getsignal(signal.SIGINT)

    def interrupt(step, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(train.TrainingInterrupted, match="stopped after step 3 of 20"):
        run(small_config(), samples, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is previous


def test_finished_run_is_read_back(samples, tmp_path):
    config = small_config(steps=10)
    model = run(config, samples, output_dir=tmp_path)
    steps = []
    again = run(config, samples, output_dir=tmp_path, on_step=lambda step, metrics: steps.append(step))
    assert steps == []
    assert same(model, again)
    assert same(model, VecSetVAE.from_pretrained(tmp_path / MODEL_DIRECTORY))
    assert sorted(os.listdir(tmp_path)) == sorted([CHECKPOINT_FILE, METRICS_FILE, MODEL_DIRECTORY])


def test_other_configuration_or_shapes_are_refused(samples, tmp_path):
    run(small_config(steps=2), samples, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"another configuration: steps \(2 -> 3\)"):
        run(small_config(steps=3), samples, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="on other shapes"):
        run(small_config(steps=2), samples[::-1], output_dir=tmp_path)
    other = run(small_config(steps=3), samples, output_dir=tmp_path, resume=False)
    assert same(other, run(small_config(steps=3), samples))


@pytest.mark.parametrize("content", [b"", b"\xff" * 300])
def test_damaged_checkpoint_is_named(samples, tmp_path, content):
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{CHECKPOINT_FILE} is damaged"):
        run(small_config(steps=1), samples, output_dir=tmp_path)


def test_model_is_not_a_checkpoint(samples, tmp_path):
    VecSetVAE(small_config().model).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / CHECKPOINT_FILE)
    with pytest.raises(CheckpointError, match="is not a training checkpoint"):
        run(small_config(steps=1), samples, output_dir=tmp_path)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="at least one shape"):
        run(small_config(), [])


def test_divergence_is_an_error(samples):
    with pytest.raises(FloatingPointError, match="the loss of step"):
        run(small_config(learning_rate=1e30, warmup_steps=0), samples)


def test_progress_bar_goes_to_stderr(samples, capsys):
    run(small_config(steps=2), samples, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
