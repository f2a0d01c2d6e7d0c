"""Batches drawn where the data is: they hold the shapes' own points, moved as one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import CONFIGS

from fastshape import testing, train
from fastshape.train.resident import ResidentSamples

CPU = torch.device("cpu")


def shape(seed: int, radius: float, count: int = 500) -> train.ShapeSamples:
    """A ball with its normals and signed distances; its sharp points are its own."""
    draw = testing.generator(seed)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=1)
    queries = [torch.rand(count, 3, generator=draw) * 2 - 1 for _ in range(3)]
    labels = [q.norm(dim=1) - radius for q in queries]
    return train.ShapeSamples(
        normals * radius, queries[0], labels[0], queries[1], labels[1],
        normals=normals, sharp=normals * radius, sharp_normals=normals,
        sharp_near=queries[2], sharp_near_labels=labels[2],
    )  # fmt: skip


def config(family: str = "DoraVAE", **changes) -> train.TrainConfig:
    values = {
        "model": dataclasses.replace(CONFIGS[family], output="tsdf", num_inputs=64),
        "steps": 6,
        "batch_size": 4,
        "volume_queries": 30,
        "near_queries": 20,
        "sharp_near_queries": 10,
        "augment": "dora",
        "data_on_device": True,
        "checkpoint_every": 3,
        "num_threads": 1,
    }
    return train.TrainConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def shapes():
    return [shape(0, 0.5), shape(1, 0.6), shape(2, 0.7)]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("augment", ["none", "axes", "dora"])
def test_a_batch_holds_the_shapes_moved_as_one(shapes, device, family, augment):
    wanted = config(family, augment=augment, batch_size=3)
    batch = ResidentSamples(shapes, wanted, device).sample_batch(5)
    radii = []
    for item in range(3):
        for cloud in batch.inputs:
            radius = cloud[item, :, :3].norm(dim=1)
            assert torch.allclose(radius, radius[:1].expand(64), atol=1e-6)
            if cloud.shape[2] == 6:
                assert torch.allclose(cloud[item, :, :3], cloud[item, :, 3:] * radius[0], atol=1e-5)
            assert len(cloud[item].unique(dim=0)) == 64
        distances = batch.queries[item].norm(dim=1) - batch.labels[item]
        assert torch.allclose(distances, radius[:1].expand(60), atol=1e-5)
        radii.append(round(float(radius[0]), 4))
    assert sorted(radii) == [0.5, 0.6, 0.7]


def test_the_motion_moves_and_the_step_decides(shapes):
    resident = ResidentSamples(shapes, config(), CPU)
    first, again, other = (resident.sample_batch(step) for step in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.inputs, again.inputs, strict=True))
    assert torch.equal(first.queries, again.queries)
    assert not torch.equal(first.queries, other.queries)
    still = ResidentSamples(shapes, config(augment="none"), CPU).sample_batch(1)
    rows = {tuple(row) for entry in shapes for row in entry.volume.tolist()}
    assert all(tuple(row) in rows for row in still.queries[0, :30].tolist())
    assert not any(tuple(row) in rows for row in first.queries[0, :30].tolist())


def test_ranks_share_a_batch(shapes):
    resident = ResidentSamples(shapes, config(augment="none"), CPU)
    halves = [resident.sample_batch(0, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(half.queries) for half in halves] == [2, 2]
    assert not torch.equal(halves[0].queries, halves[1].queries)


def test_a_stopped_run_goes_on_to_the_same_weights(shapes, tmp_path):
    whole = train.fit(config(), shapes, progress=False, device="cpu")

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(config(), shapes, progress=False, device="cpu", output_dir=tmp_path, on_step=stop)
    resumed = train.fit(config(), shapes, progress=False, device="cpu", output_dir=tmp_path)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "lagem", "model": CONFIGS["LaGeM"]}, "knows no `augment` = 'lagem'"),
        ({"balanced": True}, "knows no `balanced` queries"),
    ],
)
def test_what_only_the_cpu_draws(shapes, changes, message):
    with pytest.raises(ValueError, match=message):
        ResidentSamples(shapes, config(**changes), CPU)


def test_shapes_must_match(shapes):
    with pytest.raises(ValueError, match="as many `surface` points each, got 500 and 400"):
        ResidentSamples([*shapes, shape(3, 0.5, count=400)], config(), CPU)
    flags = dataclasses.replace(shapes[0], volume_labels=shapes[0].volume_labels < 0)
    with pytest.raises(ValueError, match="'tsdf' needs signed distances, not bool labels"):
        ResidentSamples([flags], config(), CPU)
    bare = dataclasses.replace(shapes[0], sharp_near=torch.zeros(0, 3), sharp_near_labels=torch.zeros(0))
    with pytest.raises(ValueError, match="has no `sharp_near` points"):
        ResidentSamples([bare], config(), CPU)
