"""TRELLIS' structured latents: the closed surface of its decoder, and what the model promises beyond it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastshape import losses, models
from fastshape.checkpoints.triposf import official_name
from fastshape.geometry import NoSurfaceError
from fastshape.models import CheckpointError, SLatConfig, SLatVAE
from fastshape.nn import SparseTensor, sparseflex_surface
from fastshape.testing import GOLDEN_SURFACE, assert_golden, assert_gradients_match, generator


def small_config(**changes) -> SLatConfig:
    sizes = {"resolution": 8, "feature_dim": 6, "dim": 64, "depth": 2, "heads": 2, "ratio": 1.0, "groups": 8}
    return SLatConfig(**{**sizes, "latent_channels": 4, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SLatVAE(small_config()).eval()


def features(count: int = 20, seed: int = 0) -> SparseTensor:
    """Voxels of the grid's inner 6^3, so that no surface meets its border."""
    rows = torch.randperm(216, generator=generator(seed))[:count].sort().values
    coords = torch.stack([0 * rows, rows // 36 + 1, rows // 6 % 6 + 1, rows % 6 + 1], 1).int()
    return SparseTensor(coords, torch.randn(count, 6, generator=generator(seed)))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_surface(backend, golden_folder, mode):
    """The official head works on the whole lattice; ours on the voxels and their neighbors."""
    golden = load_file(golden_folder / "trellis_features2mesh_a.safetensors")
    feats = backend.put(golden["in.feats"].requires_grad_())
    x = SparseTensor(backend.put(golden["in.coords"].int()), feats)
    surface = sparseflex_surface(x, 10, scaled=False, closed=True, training=mode == "train")
    assert torch.equal(surface.faces.cpu(), golden[f"out.{mode}.faces"].long())
    assert_golden(surface.vertices, golden[f"out.{mode}.vertices"], GOLDEN_SURFACE)
    assert_golden(surface.colors, golden[f"out.{mode}.vertex_attrs"], GOLDEN_SURFACE)
    assert_golden(surface.deviation, golden[f"out.{mode}.L_dev"], GOLDEN_SURFACE)
    loss = (surface.vertices.cpu() * golden[f"out.{mode}.cot"]).sum()
    loss = loss + (surface.colors.cpu() * golden[f"out.{mode}.cot_attrs"]).sum()
    if mode == "train":
        regularizer = losses.corner_consistency_loss(surface.said, surface.mean, surface.cubes)
        regularizer = regularizer + 0.5 * losses.deviation_loss(surface.deviation)
        regularizer = regularizer + 0.2 * losses.weight_loss(surface.weights[:, :20])
        torch.testing.assert_close(regularizer.cpu(), golden["out.train.reg_loss"])
        loss = loss + 5 * regularizer.cpu()
    loss.backward()
    assert_gradients_match(feats.grad, golden[f"grad.{mode}.feats"])


def model_surface_is_closed_without_it(model: SLatVAE, fine: SparseTensor) -> bool:
    faces = sparseflex_surface(fine, 32, scaled=False).faces
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    return bool((edges.unique(dim=0, return_counts=True)[1] % 2 == 0).all())


@torch.no_grad()
def test_verbs(model):
    x = features()
    posterior = model.encode(x)
    assert posterior.mean.num_channels == 4
    fine = model.decode(posterior.mode())
    assert len(fine) == 64 * len(x)
    assert fine.num_channels == 101
    mesh = model.extract(fine)
    # Whatever the decoder says: outside is all around, so that no edge is open.
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    assert (edges.unique(dim=0, return_counts=True)[1] % 2 == 0).all()
    assert not model_surface_is_closed_without_it(model, fine)
    assert mesh.bounds.abs().max() < 0.5 + 1 / 32
    again, other = model(x)
    assert torch.equal(again.feats, fine.feats)
    assert torch.equal(other.mean.feats, posterior.mean.feats)
    assert SLatVAE(small_config(colors=False)).decode(posterior.mode()).num_channels == 53


def test_no_surface(model):
    fine = SparseTensor(features().coords, torch.ones(20, 101))
    with pytest.raises(NoSurfaceError, match="no surface"):
        model.extract(fine)
    with pytest.raises(ValueError, match="`features` must have 6 channels, got 5"):
        model.encode(SparseTensor(features().coords, torch.zeros(20, 5)))
    with pytest.raises(TypeError, match="`latents` must be a SparseTensor, got list"):
        model.decode([])


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = SLatVAE(small_config()).train()
    for block in model.decoder.upsample:
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    fine, posterior = model(features(), generator=generator(0))
    (fine.feats.square().mean() + posterior.kl().mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_configuration_and_saving(model, tmp_path):
    for config in (*SLatVAE.configs.values(), small_config()):
        assert SLatConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for changes in ({"resolution": 0}, {"depth": -1}, {"heads": 5}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            small_config(**changes)
    model.save_pretrained(tmp_path)
    loaded = models.load(tmp_path)
    assert isinstance(loaded, SLatVAE)
    assert loaded.fingerprint() == model.fingerprint()


def test_official_files(tmp_path):
    torch.manual_seed(0)
    model = SLatVAE(SLatConfig(feature_dim=8, dim=256, depth=1, heads=4, ratio=0.25))
    halves: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "decoder": {}}
    for ours, tensor in model.state_dict().items():
        half, _, name = official_name(ours).partition(".")
        if ours.endswith(".skip.weight"):  # the memory of (in, out) under the shape of (out, 1, 1, 1, in)
            out_channels, channels = tensor.shape
            tensor = tensor.T.contiguous().reshape(out_channels, 1, 1, 1, channels)
        halves[half][name] = tensor
    assert "upsample.0.out_layers.3.conv.weight" in halves["decoder"]
    assert not any("pruning" in name for name in halves["decoder"])
    paths = []
    for half, state in halves.items():
        paths.append(tmp_path / f"{half}.safetensors")
        save_file(state, paths[-1])
    loaded = SLatVAE.from_official(*paths)
    assert loaded.config == model.config
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
    del halves["decoder"]["out_layer.bias"]
    with pytest.raises(CheckpointError, match=r"missing    decoder\.out_layer\.bias \(101,\)"):
        SLatVAE.from_official(halves["encoder"], halves["decoder"])
    with pytest.raises(CheckpointError, match="is not TRELLIS' structured latents: it has no encoder"):
        SLatVAE.from_official({"x": torch.zeros(1)}, halves["decoder"])
