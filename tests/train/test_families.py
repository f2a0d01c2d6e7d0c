"""What training does for each family: losses, augmentations, numbers of tokens, the start, validation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_train import ball, run, same, small_config

from fastshape import train
from fastshape.losses import distance_loss, tsdf_loss
from fastshape.models import MODELS, DoraConfig, LaGeMConfig
from fastshape.testing import generator
from fastshape.train.augment import augment
from fastshape.train.initialize import initialize_as_kernel

MODEL_CONFIGS = {
    "VecSetVAE": small_config().model,
    "DoraVAE": DoraConfig(
        dim=16, heads=2, encoder_depth=1, depth=1, num_latents=8, num_inputs=64, latent_dim=4, truncation=0.1
    ),
    "LaGeM": LaGeMConfig(
        dim=16,
        heads=2,
        head_dim=8,
        num_latents=(8, 4, 2),
        latent_dims=(4, 4, 4),
        depths=(1, 1, 1),
        num_inputs=64,
    ),
}


def whole_ball(radius: float = 0.7, seed: int = 0) -> train.ShapeSamples:
    """A ball with normals, signed distances, and a circle as its sharp edge."""
    plain = ball(radius, seed)
    draw = generator(seed + 100)
    angle = 2 * math.pi * torch.rand(500, generator=draw)
    circle = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    sharp_near = radius * circle + 0.03 * torch.randn(500, 3, generator=draw)
    return train.ShapeSamples(
        surface=plain.surface,
        volume=plain.volume,
        volume_labels=plain.volume.norm(dim=1) - radius,
        near=plain.near,
        near_labels=plain.near.norm(dim=1) - radius,
        normals=plain.surface / radius,
        sharp=radius * circle,
        sharp_normals=circle,
        sharp_near=sharp_near,
        sharp_near_labels=sharp_near.norm(dim=1) - radius,
    )


def family_config(name: str, **changes) -> train.TrainConfig:
    sharp = {"sharp_near_queries": 16} if name == "DoraVAE" else {}
    return small_config(model=MODEL_CONFIGS[name], kl_weight=1e-4, **sharp, **changes)


@pytest.fixture(scope="module")
def shapes():
    return [whole_ball(0.7), whole_ball(0.5, seed=1)]


# ---- Every family ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_every_family_learns(shapes, name):
    config = family_config(name, steps=150, near_weight=1.0, learning_rate=5e-3, initialization="kernel")
    seen = []
    model = run(config, shapes, on_step=lambda step, metrics: seen.append(metrics["loss"]))
    assert type(model) is MODELS[name]
    assert sum(seen[-20:]) < 0.7 * sum(seen[:20])


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_every_family_resumes_with_all_options(shapes, name, tmp_path):
    config = family_config(
        name,
        steps=6,
        checkpoint_every=3,
        token_counts=(4, 8),
        token_warmup=0.5,
        ema_decay=0.9,
        initialization="kernel",
        balanced=True,
        augment="axes",
    )
    straight = run(config, shapes)
    run(config, shapes, output_dir=tmp_path / "cut", on_step=None)
    (tmp_path / "again").mkdir()

    class Cut(Exception):  # noqa: N818
        pass

    def cut(step, metrics):
        if step == 4:
            raise Cut

    with pytest.raises(Cut):
        run(config, shapes, output_dir=tmp_path / "again", on_step=cut)
    assert same(run(config, shapes, output_dir=tmp_path / "again"), straight)


@pytest.mark.parametrize(
    ("name", "output", "inside"),
    [
        ("VecSetVAE", "sdf", "negative"),
        ("VecSetVAE", "tsdf", "positive"),
        ("LaGeM", "tsdf", "positive"),
        ("DoraVAE", "tsdf", "positive"),
    ],
)
def test_a_model_of_distances(shapes, name, output, inside):
    config = family_config(name, steps=60, learning_rate=5e-3, initialization="kernel")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, output=output))
    seen = []
    model = run(config, shapes, on_step=lambda step, metrics: seen.append(metrics["volume"]))
    assert model.inside == inside
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])
    bare = dataclasses.replace(shapes[0], volume_labels=shapes[0].volume_labels < 0)
    with pytest.raises(ValueError, match="needs signed distances, and a shape's `volume_labels` are bool"):
        run(config, [bare])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharp": torch.zeros(0, 3), "sharp_normals": torch.zeros(0, 3)}, "the shape has no `sharp`"),
        ({"normals": torch.zeros(0, 3)}, "takes normals, and the shape has none of its `surface` points"),
        (
            {"sharp_near": torch.zeros(0, 3), "sharp_near_labels": torch.zeros(0)},
            "a shape has no `sharp_near` points, and the configuration draws 16",
        ),
    ],
)
def test_a_shape_that_lacks_something_says_so(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        run(family_config("DoraVAE", steps=1), [dataclasses.replace(shapes[0], **changes)])


def test_normals_belong_to_points(shapes):
    with pytest.raises(ValueError, match="`normals` must have a row for each of `surface`, got 3 and 4000"):
        dataclasses.replace(shapes[0], normals=torch.zeros(3, 3))


# ---- Losses ------------------------------------------------------------------------------------------------


def test_losses_of_distances():
    sdf = torch.tensor([-0.02, 0.0, 0.005, 1.0])
    values = torch.tensor([1.0, 0.5, 0.0, 0.0])
    # Targets of a truncation of 0.01, positive inside: 1, 0, -0.5, -1.
    assert tsdf_loss(values, sdf, 0.01).item() == pytest.approx((0 + 0.25 + 0.25 + 1) / 4)
    assert distance_loss(values, sdf).item() == pytest.approx((1.02 + 0.5 + 0.005 + 1.0) / 4)
    with pytest.raises(ValueError, match="`truncation` must be positive, got 0"):
        tsdf_loss(values, sdf, 0)
    with pytest.raises(ValueError, match="`values` and `sdf` must have one shape"):
        distance_loss(values, sdf[:2])


def test_doras_loss_is_the_weighted_sum_of_its_kinds(shapes):
    config = dataclasses.replace(
        family_config("DoraVAE"), volume_weight=0.5, near_weight=0.25, sharp_near_weight=2.0
    )
    batch = train.sample_batch(shapes, config, 0)
    assert list(batch.counts.values()) == [48, 32, 16]
    assert [tuple(cloud.shape) for cloud in batch.inputs] == [(2, 64, 6), (2, 64, 6)]
    model = config.model_class(config.model)
    values, posterior = model(*batch.inputs, batch.queries, sample=False)
    parts = train.losses(values, posterior, batch, config)
    kinds = zip(values.split([48, 32, 16], 1), batch.labels.split([48, 32, 16], 1), strict=True)
    volume, near, sharp = (tsdf_loss(answers, labels, 0.1) for answers, labels in kinds)
    expected = 0.5 * volume + 0.25 * near + 2.0 * sharp + 1e-4 * posterior.kl().mean()
    torch.testing.assert_close(parts["loss"], expected)
    assert parts.keys() == {"loss", "volume", "near", "sharp_near", "kl"}


# ---- Augmentation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["axes", "vecset", "lagem", "dora"])
def test_labels_and_normals_stay_right(name):
    """Of a box, whose faces, inside and normals are known in any frame by its corners' motion."""
    draw = generator(3)
    cube = torch.rand(3000, 3, generator=draw) * 2 - 1
    axis = torch.randint(3, (3000,), generator=draw)
    sign = torch.randint(2, (3000,), generator=draw) * 2.0 - 1.0
    rows = torch.arange(3000)
    normals = torch.zeros(3000, 3)
    cube[rows, axis], normals[rows, axis] = sign, sign
    size = torch.tensor([0.9, 0.5, 0.3])
    surface = torch.cat([cube * size, normals], 1)
    queries = torch.cat([torch.eye(3), torch.rand(500, 3, generator=draw) * 2 - 1])
    inside = (queries.abs() < size).all(1)
    moved = augment(name, [surface.clone()], queries, generator(7))
    motion = moved.queries[:3]  # the images of the axes: the map itself
    torch.testing.assert_close(moved.queries, queries @ motion, rtol=1e-4, atol=1e-5)
    noise = 0.03 if name == "vecset" else 1e-5
    torch.testing.assert_close(moved.clouds[0][:, :3], surface[:, :3] @ motion, rtol=0, atol=noise)
    back = moved.queries @ torch.linalg.inv(motion)
    assert torch.equal((back.abs() < size).all(1)[3:], inside[3:])
    expected = torch.nn.functional.normalize(surface[:, 3:] @ torch.linalg.inv(motion).T, dim=1)
    torch.testing.assert_close(moved.clouds[0][:, 3:], expected, rtol=1e-4, atol=1e-4)
    if moved.factor is not None:  # a similarity
        torch.testing.assert_close(motion @ motion.T, moved.factor**2 * torch.eye(3), rtol=0, atol=1e-5)
    if name == "vecset":
        assert 0.9 < moved.clouds[0][:, :3].abs().max() <= 1.0
    if name == "lagem":
        assert moved.clouds[0][:, :3].norm(dim=1).max().item() == pytest.approx(0.999, abs=1e-4)


@pytest.mark.parametrize("name", ["axes", "dora"])
def test_similarities_are_of_both_hands(name):
    hands = set()
    for seed in range(40):
        motion = augment(name, [torch.eye(3)], torch.eye(3), generator(seed)).queries
        hands.add(round(float(torch.linalg.det(motion))))
    assert hands == {-1, 1}


def test_uneven_scaling_leaves_no_distances():
    with pytest.raises(ValueError, match="the model's output must be 'occupancy', got 'tsdf'"):
        family_config("DoraVAE", augment="lagem")


# ---- Numbers of tokens -------------------------------------------------------------------------------------


def test_the_token_table_opens_and_keeps_its_probabilities():
    config = small_config(
        steps=4000,
        token_counts=(64, 128, 256, 512),
        token_probabilities=(0.1, 0.2, 0.3, 0.4),
        token_warmup=0.5,
    )
    early = {train.num_tokens(config, step) for step in range(500)}
    second = {train.num_tokens(config, step) for step in range(500, 1000)}
    late = [train.num_tokens(config, step) for step in range(2000, 4000)]
    assert early == {64}
    assert second == {64, 128}
    for count, share in zip(config.token_counts, config.token_probabilities, strict=True):
        assert late.count(count) / 2000 == pytest.approx(share, abs=0.04)
    assert train.num_tokens(small_config(), 0) is None


def test_a_hierarchy_keeps_its_proportions():
    assert LaGeMConfig().token_counts(512) == (512, 128, 32)
    assert LaGeMConfig().token_counts(1) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_counts": (8, 4)}, "`token_counts` must be at least 1 and ascending"),
        (
            {"token_counts": (8,), "token_probabilities": (0.5, 0.5)},
            "must have an entry for each of `token_counts`",
        ),
        ({"token_counts": (4, 8), "token_probabilities": (0.0, 1.0)}, "the first positive"),
        ({"token_warmup": 2.0}, r"`token_warmup` must be in \[0, 1\], got 2.0"),
        ({"augment": "spin"}, "`augment` must be one of none, axes"),
        ({"initialization": "zero"}, "`initialization` must be 'default' or 'kernel'"),
        ({"micro_batch_size": 0}, "`micro_batch_size` must be None or at least 1"),
        ({"volume_queries": 0, "near_queries": 0}, "must not all be 0"),
    ],
)
def test_bad_configurations_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


# ---- The start ---------------------------------------------------------------------------------------------


def attention_scores(model) -> torch.Tensor:
    """Of the first cross-attention, summed over its heads, among 33 places on a line: (33, 33)."""
    places = torch.linspace(-0.8, 0.8, 33)[:, None] * torch.ones(3)
    if hasattr(model, "point_embed"):
        tokens = model.point_embed(places[None])
        block = model.levels[0].encoder if hasattr(model, "levels") else model.encoder
    else:
        cloud = torch.cat([places, torch.zeros(33, 3)], 1)[None]
        tokens, block = model.encoder.project(cloud, model.encoder.surface_proj), model.encoder.surface_block
    cross = block.cross_attention
    keys, _ = cross.keys_values(tokens)
    queries = cross.attention.to_q(cross.norm(tokens)).unflatten(-1, (cross.attention.heads, -1))
    return (queries.transpose(1, 2) @ keys.transpose(-1, -2))[0].sum(0)


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_a_kernel_start_attends_to_what_is_near(name):
    torch.manual_seed(0)
    model = MODELS[name](dataclasses.replace(MODEL_CONFIGS[name], dim=64, heads=2))
    shapes_before = {key: value.shape for key, value in model.state_dict().items()}
    itself = torch.arange(33)
    at_random = (attention_scores(model).argmax(1) == itself).float().mean()
    initialize_as_kernel(model, generator(0))
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes_before
    scores = attention_scores(model)
    assert at_random < 0.3
    assert (scores.argmax(1) == itself).float().mean() > 0.9
    assert scores.diagonal(1).mean() > scores.diagonal(24).mean()


def test_an_initial_model_is_where_the_run_begins(shapes, tmp_path):
    config = family_config("LaGeM", steps=2, learning_rate=1e-12, final_learning_rate=1e-12, weight_decay=0.0)
    initial = run(family_config("LaGeM", steps=3, seed=5), shapes)
    result = run(config, shapes, initial=initial, output_dir=tmp_path)
    left, right = result.state_dict(), initial.state_dict()
    assert all(torch.allclose(left[key], right[key], atol=1e-9) for key in left)
    with pytest.raises(ValueError, match="from another initial model"):
        run(config, shapes, output_dir=tmp_path)
    other = family_config("VecSetVAE", steps=1)
    with pytest.raises(ValueError, match="`initial` must be the model of the configuration"):
        run(other, shapes, initial=initial)


# ---- Validation and TensorBoard ----------------------------------------------------------------------------


def test_validation_is_the_iou_of_the_labels(shapes):
    config = family_config("DoraVAE")
    model = config.model_class(config.model).train()
    model._field = lambda points, context: 0.7 - points.norm(dim=-1)
    scores = train.validate(model, shapes[:1], config)
    assert scores == {f"validation_{kind}_iou": 1.0 for kind in ("volume", "near", "sharp_near")}
    assert model.training
    model._field = lambda points, context: 0.5 - points.norm(dim=-1)
    iou = train.validate(model, shapes[:1], config)["validation_volume_iou"]
    inside = [(shapes[0].volume.norm(dim=1) < radius).sum().item() for radius in (0.5, 0.7)]
    assert iou == pytest.approx(inside[0] / inside[1])


def test_validation_goes_into_the_metrics(shapes, tmp_path):
    import json

    config = family_config("VecSetVAE", steps=4, validate_every=2, log_every=3)
    run(config, shapes, validation=shapes[:1], output_dir=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert [("validation_volume_iou" in line) for line in lines] == [True, False, True]


def test_tensorboard_has_curves_and_pictures(shapes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = family_config("VecSetVAE", steps=20, learning_rate=5e-3)
    run(config, shapes, validation=shapes[:1], output_dir=tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/loss", "train/learning_rate", "validation/volume_iou"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10, 15, 20]
    with pytest.raises(ValueError, match="`tensorboard` needs an `output_dir`"):
        run(config, shapes, tensorboard=True)


# ---- Settings from text ------------------------------------------------------------------------------------


def test_fields_are_set_by_text():
    config = small_config().override(
        [
            "steps=7",
            "model.dim=32",
            "token_counts=2,4",
            "gradient_clip=none",
            "bfloat16=true",
            "betas=0.8,0.9",
        ]
    )
    assert (config.steps, config.model.dim, config.token_counts) == (7, 32, (2, 4))
    assert (config.gradient_clip, config.bfloat16, config.betas) == (None, True, (0.8, 0.9))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stepz=3", "there is no field `stepz`; there are steps, batch_size"),
        ("model.width=3", "there is no field `model.width`; there are model.dim, model.depth"),
        ("steps=many", "`steps` must be an integer, got 'many'"),
        ("bfloat16=yes", "`bfloat16` must be true or false, got 'yes'"),
        ("token_counts=1,x", "`token_counts` must be an integer, or several with commas between, got '1,x'"),
        ("gradient_clip=big", "`gradient_clip` must be a number, or none, got 'big'"),
        ("steps", "expected NAME=VALUE, got 'steps'"),
        ("model.dim=-1", "`dim` must be at least 1, got -1"),
    ],
)
def test_bad_text_is_one_error_with_the_field(setting, message):
    with pytest.raises(ValueError, match=message):
        small_config().override([setting])


def test_the_tiny_models_fit_what_may_ship():
    for name in ("vecset-tiny", "dora-tiny", "lagem-tiny"):
        config = train.recipes.get(name)
        parameters = sum(p.numel() for p in config.model_class(config.model).parameters())
        assert 2 * parameters < 4_000_000
