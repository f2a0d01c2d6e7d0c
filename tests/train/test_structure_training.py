"""Training of structure autoencoders: data, batches, loss, learning, going on, and the command."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from test_train import same

from fastshape import geometry, models, pipelines, train
from fastshape.cli import main
from fastshape.geometry import PrepareError, PrepareSpec, shapes
from fastshape.losses import structure_loss
from fastshape.models import CheckpointError, SparseStructureConfig, SparseStructureVAE
from fastshape.testing import generator
from fastshape.train.structure import cropped, turned

TINY = SparseStructureConfig(
    resolution=16, channels=(4, 8), latent_channels=4, num_res_blocks=1, num_res_blocks_middle=0
)


def small_config(**changes) -> train.StructureTrainConfig:
    values = {
        "model": TINY,
        "steps": 12,
        "batch_size": 2,
        "learning_rate": 3e-3,
        "checkpoint_every": 6,
        "log_every": 3,
        "num_threads": 1,
        "augment": "axes",
    }
    return train.StructureTrainConfig(**{**values, **changes})


def shell(radius: float = 5.5, size: int = 16) -> train.ShapeVoxels:
    """The voxels of a sphere's surface."""
    side = torch.arange(size)
    coords = torch.cartesian_prod(side, side, side)
    distance = (coords + 0.5 - size / 2).norm(dim=1)
    return train.ShapeVoxels(coords[(distance - radius).abs() < 0.7], size)


def run(config, samples, **options):
    return train.fit(config, samples, **{"progress": False, "device": "cpu", **options})


@pytest.fixture(scope="module")
def samples():
    return [shell(5.5), shell(4.0)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What `fastshape prepare` writes, of two shapes."""
    folder = tmp_path_factory.mktemp("voxels")
    (folder / "in").mkdir()
    for segments in (8, 12):
        geometry.save(shapes.torus(segments=segments), folder / "in" / f"torus-{segments}.ply")
    pipelines.prepare([folder / "in"], folder / "out", PrepareSpec.preset("structure", voxels=16), workers=1)
    return folder / "out"


# ---- Data --------------------------------------------------------------------------------------------------


def test_prepared_voxels_are_the_mesh_s(data):
    dataset = train.VoxelDataset(data)
    assert len(dataset) == 2
    torus = {len(mesh.faces): mesh for mesh in (shapes.torus(segments=8), shapes.torus(segments=12))}
    found = 0
    for prepared, shape in zip(dataset.prepared, dataset, strict=True):
        mesh, _ = geometry.normalize(torus[json.loads(prepared.metadata["faces"])])
        from fastshape import ops

        expected = ops.voxelize_mesh(mesh.vertices, mesh.faces, 16)
        assert shape.resolution == 16
        found += torch.equal(shape.coords.int(), expected)
    assert found == 2


def test_a_specification_without_voxels_is_what_it_was():
    values = PrepareSpec.preset("dora").to_dict()
    assert "voxels" not in values
    assert PrepareSpec.from_dict(values).voxels == 0
    spec = PrepareSpec.preset("structure", voxels=32)
    assert spec.to_dict()["voxels"] == 32
    assert PrepareSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match=r"`voxels` must lie in 0\.\.2048, got -1"):
        PrepareSpec.preset("structure", voxels=-1)
    with pytest.raises(ValueError, match="without any points"):
        PrepareSpec.preset("structure", voxels=0)


def test_points_may_come_along():
    spec = PrepareSpec.preset("vecset", num_surface=50, num_volume=20, num_near=20, voxels=8)
    prepared = geometry.prepare(shapes.torus(), spec)
    assert prepared["voxels"].dtype == torch.int16
    assert len(prepared["surface_points"]) == 50
    # Points of the surface lie in its voxels.
    rows = ((prepared["surface_points"].float() + 1) * 4).floor().clamp(0, 7).int().tolist()
    assert {tuple(row) for row in rows} <= {tuple(row) for row in prepared["voxels"].tolist()}


def test_a_folder_without_voxels_is_refused(tmp_path):
    geometry.save(shapes.torus(segments=8), tmp_path / "torus.ply")
    spec = PrepareSpec(num_surface=10, num_volume=10, num_near=10, watertight="none")
    pipelines.prepare([tmp_path / "torus.ply"], tmp_path / "out", spec, workers=1)
    with pytest.raises(PrepareError, match="prepared without voxels"):
        train.VoxelDataset(tmp_path / "out")
    with pytest.raises(PrepareError, match="the shape was prepared without voxels"):
        train.ShapeVoxels.from_prepared(train.ShapeDataset(tmp_path / "out").prepared[0], 16)


def test_voxels_are_checked():
    with pytest.raises(ValueError, match="`coords` must have at least one voxel"):
        train.ShapeVoxels(torch.zeros(0, 3).int(), 8)
    with pytest.raises(ValueError, match=r"`coords` must lie in \[0, 8\)"):
        train.ShapeVoxels(torch.full((1, 3), 8), 8)


# ---- Batches -----------------------------------------------------------------------------------------------


def test_symmetries_keep_the_shape_and_reach_all_of_them():
    coords = torch.tensor([[0, 1, 3], [2, 0, 0]])
    seen = {tuple(turned(coords, 4, generator(seed)).flatten().tolist()) for seed in range(1000)}
    assert len(seen) == 48
    for seed in range(20):
        moved = turned(coords, 4, generator(seed))
        assert (moved[0] - moved[1]).abs().sort().values.tolist() == [1, 2, 3]
        assert 0 <= int(moved.min()) <= int(moved.max()) < 4


def test_crops_hold_part_of_the_shape_as_it_is():
    shape = shell()
    everything = {tuple(row) for row in shape.coords.tolist()}
    firsts = set()
    for seed in range(50):
        part = cropped(shape.coords, 16, 8, generator(seed))
        assert len(part)
        assert 0 <= int(part.min()) <= int(part.max()) < 8
        # Some offset takes the part back into the shape, whole.
        offsets = [
            offset
            for offset in torch.cartesian_prod(*(torch.arange(9),) * 3).tolist()
            if all(
                tuple(a + b for a, b in zip(row, offset, strict=True)) in everything for row in part.tolist()
            )
        ]
        assert offsets
        firsts.add(tuple(offsets[0]))
    assert len(firsts) > 10


def test_a_batch_is_a_function_of_seed_and_step(samples):
    config = small_config(batch_size=4, crop=8)
    batch = train.sample_grids(samples, config, 3)
    assert batch.occupancy.shape == (4, 1, 8, 8, 8)
    assert set(batch.occupancy.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(batch.occupancy, train.sample_grids(samples, config, 3).occupancy)
    assert not torch.equal(batch.occupancy, train.sample_grids(samples, config, 4).occupancy)
    halves = [train.sample_grids(samples, config, 3, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.occupancy for half in halves]), batch.occupancy)
    assert [part.size for part in batch.split(3)] == [3, 1]
    with pytest.raises(ValueError, match="a shape has 8"):
        train.sample_grids([shell(2.0, 8)], small_config(), 0)


def test_the_loss_is_the_papers(samples):
    config = small_config(kl_weight=0.5, augment="none")
    torch.manual_seed(0)
    model = SparseStructureVAE(config.model)
    batch = train.sample_grids(samples, config, 0)
    noise = [train.data.keyed_generator(0, "posterior", 0, item) for item in range(2)]
    logits, posterior = model(batch.occupancy, sample=True, generator=noise)
    expected = structure_loss(logits, batch.occupancy) + 0.5 * posterior.kl().mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    parts = train.train_step(model, optimizer, batch, config, 0)
    torch.testing.assert_close(parts["loss"], expected.detach(), rtol=1e-5, atol=1e-6)
    assert parts.keys() == {"loss", "reconstruction", "kl"}


# ---- Runs --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shells_are_learned(samples):
    config = small_config(
        steps=250, learning_rate=1e-2, kl_weight=1e-4, augment="none", crop=8, ema_decay=0.9
    )
    model = run(config, samples)
    scores = train.validate_structure(model, samples)
    assert scores["validation_voxel_iou"] > 0.85
    mesh = model.extract(model.decode(model.encode(model.occupancy([samples[0].coords])).mode()))
    assert mesh.vertices.norm(dim=1).mean().item() == pytest.approx(6.2 / 8, abs=0.06)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, samples):
    config = small_config(ema_decay=0.9, crop=8, validate_every=6)
    whole = run(config, samples, validation=samples)

    class StopError(Exception):
        pass

    def stop(step, metrics):
        if step == 6:
            raise StopError

    with pytest.raises(StopError):
        run(config, samples, output_dir=tmp_path, on_step=stop)
    resumed = run(config, samples, output_dir=tmp_path)
    assert same(resumed, whole)
    with pytest.raises(CheckpointError, match="crop"):
        run(small_config(ema_decay=0.9), samples, output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="other shapes"):
        run(config, samples[:1], output_dir=tmp_path)


def test_small_pieces_of_a_batch_give_the_same_bce(samples):
    """Dice sums over what it is shown at once; cross-entropy is a mean."""
    models_of = [run(small_config(steps=1, loss="bce", micro_batch_size=size), samples) for size in (None, 1)]
    for a, b in zip(*(model.parameters() for model in models_of), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_configurations_survive_json_and_are_checked():
    for config in (small_config(crop=8), train.recipes.structure_tiny(), train.TrainConfig()):
        assert train.config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert small_config().override(["model.channels=8,16", "crop=none", "loss=bce"]).model.channels == (8, 16)
    for changes in ({"loss": "mse"}, {"crop": 7}, {"crop": 32}, {"augment": "dora"}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            small_config(**changes)
    with pytest.raises(TypeError, match=r"`model` must be one of SparseStructureVAE\.Config"):
        small_config(model=train.TrainConfig().model)
    with pytest.raises(ValueError, match="there is no model 'Teapot'; there are VecSetVAE"):
        train.config_from_dict({"model": {"class": "Teapot"}})
    published = train.recipes.get("structure-trellis")
    assert published.model == SparseStructureVAE.configs["trellis"]
    with pytest.raises(TypeError, match="`recipe` must be one of a field"):
        train.fit_meshes([], "structure-tiny")


def test_the_command(capsys, tmp_path, data):
    words = ["train", "structure-tiny", data, "-o", tmp_path, "--validation", data, "--steps", 2]
    sizes = ["model.resolution=16", "model.channels=4,8", "crop=8", "batch_size=2", "log_every=1"]
    for size in sizes:
        words += ["--set", size]
    code = main([str(word) for word in [*words, "--no-tensorboard"]])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "SparseStructureVAE" in out
    assert "validation_voxel_iou" in out
    model = models.load(tmp_path / "model")
    assert isinstance(model, SparseStructureVAE)
    assert model.metadata.preparation == json.loads(
        json.dumps(PrepareSpec.preset("structure", voxels=16).to_dict())
    )
    assert dataclasses.replace(TINY, latent_channels=8) != model.config
