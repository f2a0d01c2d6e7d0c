"""TripoSF's autoencoder: parity with the official code, and what the model promises beyond it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastshape import models, ops, pipelines
from fastshape.checkpoints import triposf as official
from fastshape.geometry import Mesh, NoSurfaceError, shapes
from fastshape.models import CheckpointError, TripoSFConfig, TripoSFVAE
from fastshape.models.triposf import SparseLatentEncoder
from fastshape.nn import PointPool, SparseTensor, SubdivideBlock, voxel_places
from fastshape.testing import (
    GOLDEN_FEATURES,
    GOLDEN_SURFACE,
    assert_golden,
    assert_gradients_match,
    generator,
)


def state(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state."): v.float() for k, v in golden.items() if k.startswith("state.")}


def load_official(module: torch.nn.Module, tensors: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Loads a part of a model under its official names; `prefix` is where the part stands in ours."""
    names = {ours: official.official_name(prefix + ours).removeprefix(prefix) for ours in module.state_dict()}
    assert sorted(names.values()) == sorted(tensors)
    module.load_state_dict({ours: official.converted(name, tensors[name]) for ours, name in names.items()})


def small_config(**changes) -> TripoSFConfig:
    sizes = {"resolution": 16, "point_hidden": 4, "point_depth": 2, "feature_dim": 8, "dim": 64, "depth": 2}
    sizes |= {"heads": 2, "ratio": 1.0, "latent_channels": 4, "groups": 8}
    return TripoSFConfig(**{**sizes, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TripoSFVAE(small_config()).eval()
    for block in model.decoder.upsample:
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    return model


def sphere(count: int = 3000, seed: int = 0) -> torch.Tensor:
    """Points of a sphere of radius 0.4 and their normals, (N, 6)."""
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator(seed)), dim=1)
    return torch.cat([0.4 * normals, normals], 1)


def sphere_voxels(item: int = 0) -> torch.Tensor:
    """Some of the voxels of its upper half."""
    voxels = ops.voxelize_points(sphere(20_000)[:, :3], 16, (-0.5, 0.5))
    voxels = voxels[voxels[:, 2] > 11]
    return torch.nn.functional.pad(voxels, (1, 0), value=item)


# ---- Parity ------------------------------------------------------------------------------------------------


def test_golden_point_features(backend, golden_folder):
    golden = load_file(golden_folder / "triposf_pointnet_a.safetensors")
    layer = PointPool(6, 32, 48, 5)
    load_official(layer, state(golden))
    layer = layer.to(backend.device)
    points = backend.put(golden["in.points"][0].requires_grad_())
    coords = backend.put(golden["in.coords"])
    within, places = voxel_places(points[:, :3], 16)
    rows = ops.lookup_voxels(coords, torch.nn.functional.pad(within, (1, 0)))
    assert torch.equal(rows.cpu().int(), golden["out.point_voxel"][0])
    feats = layer(points[:, 3:], rows, places, 300)
    assert_golden(feats, golden["out.feats"], GOLDEN_FEATURES)
    (feats * backend.put(golden["in.cot"])).sum().backward()
    assert_golden(points.grad, golden["grad.points"][0], GOLDEN_FEATURES)
    assert_golden(layer.fc_pos.weight.grad, golden["grad.state.fc_pos.weight"], GOLDEN_FEATURES)


def test_golden_encoder(backend, golden_folder):
    golden = load_file(golden_folder / "triposf_encoder_a.safetensors")
    config = TripoSFConfig(
        resolution=32, feature_dim=48, dim=96, depth=2, heads=6, ratio=2, latent_channels=8
    )
    encoder = SparseLatentEncoder(config)
    load_official(encoder, state(golden))
    encoder = encoder.to(backend.device)
    feats = backend.put(golden["in.x"].requires_grad_())
    posterior = encoder.moments(SparseTensor(backend.put(golden["in.coords"]), feats))
    assert_golden(posterior.mean.feats, golden["out.mean"], GOLDEN_FEATURES)
    assert_golden(posterior.logvar, golden["out.logvar"], GOLDEN_FEATURES)
    drawn = posterior.sample(noise=backend.put(golden["in.eps"]))
    assert_golden(drawn.feats, golden["out.z_sample"], GOLDEN_FEATURES)
    assert_golden(posterior.kl(), golden["out.kl"].reshape(1), GOLDEN_FEATURES)
    ((posterior.mode().feats * backend.put(golden["in.cot"])).sum() + posterior.logvar.sum()).backward()
    assert_golden(feats.grad, golden["grad.x"], GOLDEN_FEATURES)
    weight = encoder.input_layer.weight
    assert_golden(weight.grad, golden["grad.state.input_layer.weight"], GOLDEN_FEATURES)


def test_golden_subdivision(backend, golden_folder):
    golden = load_file(golden_folder / "triposf_subdivide_a.safetensors")
    block = SubdivideBlock(64, 32)
    load_official(block, state(golden), "upsample.0.")
    block = block.to(backend.device)
    feats = backend.put(golden["in.x"].requires_grad_())
    x = SparseTensor(backend.put(golden["in.coords"]), feats)
    fine, logits = block(x)
    assert torch.equal(fine.coords.cpu(), golden["out.coords"])
    assert_golden(fine.feats, golden["out.y"], GOLDEN_FEATURES)
    assert_golden(logits[:, None], golden["out.occ_logit"], GOLDEN_FEATURES)
    ((fine.feats * backend.put(golden["in.cot"])).sum() + logits.sum()).backward()
    assert_gradients_match(feats.grad, golden["grad.x"])
    assert_gradients_match(block.conv1.weight.grad, golden["grad.state.out_layers.0.conv.weight"])
    # The memory of the skip connection's weight is (in, out) whatever its shape says.
    skip = golden["grad.state.skip_connection.conv.weight"].reshape(64, 32).T
    assert_gradients_match(block.skip.weight.grad, skip)
    pruned, _ = block(x, prune=True)
    assert torch.equal(pruned.coords.cpu(), golden["out.pruned_coords"])
    assert_golden(pruned.feats, golden["out.pruned_feats"], GOLDEN_FEATURES)


@pytest.fixture(scope="module")
def golden_decoder(golden_folder):
    golden = load_file(golden_folder / "triposf_decoder_a.safetensors")
    config = TripoSFConfig(
        resolution=16, dim=256, depth=2, heads=4, ratio=0.25, feature_dim=8, point_hidden=4
    )
    model = TripoSFVAE(config).eval()
    load_official(model.decoder, state(golden))
    return golden, model, SparseTensor(golden["in.coords"], golden["in.z"])


def test_golden_decoder(golden_decoder):
    golden, model, latents = golden_decoder
    with torch.no_grad():
        assert_golden(model.decoder(latents).feats, golden["out.tokens"], GOLDEN_FEATURES)
        whole = model.decode_whole(latents)
    assert_golden(whole.fine.feats[::16], golden["out.unchunked_feats_every16"], GOLDEN_FEATURES)
    assert_golden(whole.logits[0][:, None], golden["out.unchunked_occ0"], GOLDEN_FEATURES)
    assert_golden(whole.logits[1][::16, None], golden["out.unchunked_occ1"], GOLDEN_FEATURES)
    # The official chunks, whose borders are there twice, and the surface of that.
    fine = model.decode(latents, merge="official")
    assert torch.equal(fine.coords, golden["out.fine_coords"].int())
    assert_golden(fine.feats[::16], golden["out.fine_feats_every16"], GOLDEN_FEATURES)
    mesh = model.extract(fine)
    assert torch.equal(mesh.faces, golden["out.mesh0.faces"].long())
    assert_golden(mesh.vertices, golden["out.mesh0.vertices"], GOLDEN_SURFACE)


def test_exact_chunks_have_every_voxel_once(golden_decoder):
    _, model, latents = golden_decoder
    fine, twice = model.decode(latents), model.decode(latents, merge="official")
    expected = ops.subdivide_voxels(ops.subdivide_voxels(latents.coords))
    assert torch.equal(ops.unique_voxels(fine.coords).coords, ops.unique_voxels(expected).coords)
    assert len(fine) == len(expected) == 64 * len(latents)
    assert len(twice) > len(fine)
    # Each of them is as the official chunk that owns it has it: one of the copies there.
    row = ops.lookup_voxels(fine.coords, twice.coords)
    assert (row >= 0).all()
    error = (twice.feats - fine.feats[row]).abs().amax(1)
    least = torch.full((len(fine),), torch.inf).scatter_reduce(0, row, error, "amin")
    assert least.max() < 1e-4
    assert error.max() > 0.1  # and the others are not


# ---- Chunks ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_chunk_is_the_whole(model):
    latents = model.encode(sphere(), sphere_voxels()).mode()
    whole = model.decode_whole(latents).fine
    assert torch.equal(model.decode(latents, chunks=1).feats, whole.feats)
    pruned = model.decode_whole(latents, prune=True).fine
    assert torch.equal(model.decode(latents, chunks=1, prune=True).coords, pruned.coords)
    assert 0 < len(pruned) < len(whole)


@torch.no_grad()
def test_chunks_that_are_empty_or_pruned_away(model):
    coords = torch.tensor([[0, 1, 1, 1], [0, 15, 14, 15]], dtype=torch.int32)  # two corners of the grid
    latents = SparseTensor(coords, torch.randn(2, 4, generator=generator(0)))
    fine = model.decode(latents)
    assert len(fine) == 128
    for block in model.decoder.upsample:
        block.pruning[2].bias.data -= 1e6
    try:
        nothing = model.decode(latents, prune=True)
        assert len(nothing) == 0
        assert nothing.num_channels == 53
        with pytest.raises(NoSurfaceError, match="no surface"):
            model.extract(nothing)
    finally:
        for block in model.decoder.upsample:
            block.pruning[2].bias.data += 1e6
    none = SparseTensor(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 4), 1)
    assert len(model.decode(none)) == 0


@torch.no_grad()
def test_a_large_grid_and_a_far_corner():
    """1536 fine voxels along an axis: corners' keys go beyond 32 bits."""
    torch.manual_seed(0)
    model = TripoSFVAE(small_config(resolution=384)).eval()
    coords = torch.tensor([[0, 0, 0, 0], [0, 383, 383, 382], [0, 383, 383, 383]], dtype=torch.int32)
    fine = model.decode(SparseTensor(coords, torch.randn(3, 4, generator=generator(0))), chunks=4)
    assert fine.coords.max() == 1535
    assert len(fine) == 192
    surface = model.surface(fine)
    assert len(surface.corners) == 5**3 + 5 * 5 * 9
    assert surface.corners.max() == 1536
    assert surface.vertices.abs().max() <= 0.5 + 1 / 1536


@torch.no_grad()
def test_items_do_not_see_each_other(model):
    voxels = torch.cat([sphere_voxels(), sphere_voxels(item=1)[: len(sphere_voxels()) // 2]])
    clouds = [sphere(), sphere(seed=1)]
    posterior = model.encode(clouds, voxels)
    fine = model.decode(posterior.mode(), chunks=1)
    assert fine.batch_size == 2
    kl = posterior.kl()
    for item in range(2):
        rows = voxels[voxels[:, 0] == item] - torch.tensor([item, 0, 0, 0])
        alone = model.encode(clouds[item], rows.int())
        torch.testing.assert_close(alone.mean.feats, posterior.mean[item].feats, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.kl()[0], kl[item], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model.decode(alone.mode(), chunks=1).feats, fine[item].feats, rtol=1e-3, atol=1e-4
        )
    generators = [generator(1), generator(2)]
    drawn = posterior.sample(generators)
    again = model.encode(clouds[1], (voxels[voxels[:, 0] == 1] - torch.tensor([1, 0, 0, 0])).int())
    torch.testing.assert_close(again.sample(generator(2)).feats, drawn[1].feats, rtol=1e-4, atol=1e-4)


def test_points_without_a_voxel_count_nowhere(model):
    points, voxels = sphere(), sphere_voxels()
    kept = voxels[::2].contiguous()
    features = model.point_features(points, kept)
    inside, _ = voxel_places(points[:, :3], 16)
    rows = ops.lookup_voxels(kept, torch.nn.functional.pad(inside, (1, 0)))
    expected = model.point_features(points[rows >= 0], kept)
    torch.testing.assert_close(features.feats, expected.feats)
    empty = model.point_features(points[:0], voxels)
    assert torch.equal(empty.feats, torch.zeros_like(empty.feats))


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = TripoSFVAE(small_config()).train()
    for block in model.decoder.upsample:
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    decoded, posterior = model(sphere(500), sphere_voxels(), generator=generator(0))
    surface = model.surface(decoded.fine, training=True)
    loss = surface.vertices.square().sum() + posterior.kl().mean() + surface.weights.square().mean()
    loss = loss + sum(logits.square().mean() for logits in decoded.logits) + surface.said.square().mean()
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    for logits, coords in zip(decoded.logits, decoded.coords, strict=True):
        assert len(logits) == len(coords)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode(torch.zeros(4, 3), sphere_voxels()), ValueError, r"must have shape \(N, 6\)"),
        (lambda m: m.encode([[1.0]], sphere_voxels()), TypeError, r"`points\[0\]` must be a tensor"),
        (lambda m: m.encode(sphere(), sphere_voxels(item=1)), ValueError, "items below `batch_size` = 1"),
        (lambda m: m.decode(torch.zeros(2, 4)), TypeError, "`latents` must be a SparseTensor, got Tensor"),
        (
            lambda m: m.decode(SparseTensor(sphere_voxels()[:1], torch.zeros(1, 5))),
            ValueError,
            "`latents` must have 4 channels, got 5",
        ),
        (
            lambda m: m.decode(SparseTensor(sphere_voxels()[:1], torch.zeros(1, 4)), merge="all"),
            ValueError,
            "`merge` must be 'official' or 'exact', got 'all'",
        ),
        (
            lambda m: m.decode(SparseTensor(sphere_voxels()[:1], torch.zeros(1, 4)), chunks=3),
            ValueError,
            "`chunks` must divide the resolution of 16, got 3",
        ),
    ],
)
def test_wrong_inputs(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


# ---- Inputs from meshes ------------------------------------------------------------------------------------


def test_inputs_of_an_open_mesh(model):
    mesh = shapes.torus()
    upper = Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces][:, :, 2].mean(1) > 0])
    inputs = pipelines.sparse_inputs(upper, model, num_points=5000, generator=generator(0))
    assert inputs.points.shape == (5000, 6)
    assert inputs.points[:, :3].abs().max() <= 0.5
    torch.testing.assert_close(inputs.points[:, 3:].norm(dim=1), torch.ones(5000), rtol=1e-4, atol=1e-4)
    assert inputs.mesh.bounds.abs().max() == pytest.approx(0.5, abs=1e-5)
    # No point is without a voxel, and the mesh's own are among them.
    within, _ = voxel_places(inputs.points[:, :3], 16)
    assert (ops.lookup_voxels(inputs.voxels, torch.nn.functional.pad(within, (1, 0))) >= 0).all()
    touched = ops.voxelize_mesh(inputs.mesh.vertices, inputs.mesh.faces, 16, (-0.5, 0.5))
    assert (ops.lookup_voxels(inputs.voxels, torch.nn.functional.pad(touched, (1, 0))) >= 0).all()
    assert torch.equal(ops.unique_voxels(inputs.voxels).coords, inputs.voxels)  # sorted, each once
    again = pipelines.sparse_inputs(upper, model, num_points=5000, generator=generator(0))
    assert torch.equal(again.points, inputs.points)
    with torch.no_grad():
        fine = model.decode(model.encode(inputs.points, inputs.voxels).mode(), chunks=1)
    assert len(fine) == 64 * len(inputs.voxels)


# ---- Configuration, saving and loading ---------------------------------------------------------------------


def test_configuration_survives_json():
    for config in (*TripoSFVAE.configs.values(), small_config()):
        assert TripoSFConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("changes", [{"resolution": 0}, {"point_channels": 2}, {"depth": -1}, {"heads": 5}])
def test_configuration_is_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = models.load(tmp_path)
    assert isinstance(loaded, TripoSFVAE)
    assert loaded.config == model.config
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(
        CheckpointError, match="is a TripoSFVAE, and one of VecSetVAE, DoraVAE, LaGeM, VAT is needed"
    ):
        models.load(tmp_path, kind=models.FieldAutoencoder)


def test_published_model_has_the_official_parameters():
    with torch.device("meta"):
        model = TripoSFVAE(TripoSFVAE.configs["256"])
    names = {official.official_name(ours): tuple(p.shape) for ours, p in model.state_dict().items()}
    shape = {name: official.official_shape(name, size) for name, size in names.items()}
    assert shape["local_pc_encoder.fc_pos.weight"] == (512, 6)
    assert shape["local_pc_encoder.blocks.0.shortcut.weight"] == (256, 512)
    assert shape["encoder.input_layer.weight"] == (768, 1024)
    assert shape["encoder.blocks.11.attn.to_qkv.weight"] == (2304, 768)
    assert shape["encoder.out_layer.weight"] == (16, 768)
    assert shape["decoder.upsample.0.out_layers.0.conv.weight"] == (192, 3, 3, 3, 768)
    assert shape["decoder.upsample.0.skip_connection.conv.weight"] == (192, 1, 1, 1, 768)
    assert shape["decoder.upsample.0.pruning_head.mlp.0.weight"] == (768, 192)
    assert shape["decoder.upsample.1.out_layers.3.conv.weight"] == (96, 3, 3, 3, 96)
    assert shape["decoder.out_layer.weight"] == (53, 96)


def official_state(model: TripoSFVAE) -> dict[str, torch.Tensor]:
    """Our parameters in the official layout, written apart from the code that reads it."""
    state = {}
    for ours, tensor in model.state_dict().items():
        if ours.endswith(".skip.weight"):
            out_channels, channels = tensor.shape
            tensor = tensor.T.contiguous().reshape(out_channels, 1, 1, 1, channels)
        state[official.official_name(ours)] = tensor
    return state


@pytest.mark.parametrize("layout", ["dict", "safetensors", "ckpt"])
def test_official_files(tmp_path, layout):
    torch.manual_seed(0)
    model = TripoSFVAE(
        TripoSFConfig(point_hidden=4, point_depth=2, feature_dim=8, dim=256, depth=1, heads=4, ratio=0.25)
    )
    state = official_state(model)
    source = state if layout == "dict" else tmp_path / f"model.{layout}"
    if layout == "safetensors":
        save_file(state, source)
    elif layout == "ckpt":
        torch.save({"state_dict": state}, source)
    loaded = TripoSFVAE.from_official(source)
    assert loaded.config == model.config
    assert not loaded.training
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())


def test_every_difference_is_listed(model):
    state = official_state(model)
    del state["decoder.out_layer.bias"]
    state["decoder.more"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        TripoSFVAE.from_official(state, model.config)
    assert "missing    decoder.out_layer.bias (53,)" in str(caught.value)
    assert "extra      decoder.more (1,)" in str(caught.value)
    with pytest.raises(CheckpointError, match="is not a TripoSF autoencoder: it has no encoder"):
        TripoSFVAE.from_official({"x": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="its heads cannot be inferred, pass `config`"):
        TripoSFVAE.from_official({"encoder.input_layer.weight": torch.zeros(96, 8)})
