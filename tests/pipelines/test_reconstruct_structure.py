"""A structure autoencoder from mesh to mesh: voxels in, voxels out, files, and the command."""

from __future__ import annotations

import json

import pytest
import torch

from fastshape import geometry, models, ops, pipelines
from fastshape.cli import main
from fastshape.geometry import Mesh, NoSurfaceError, shapes
from fastshape.models import SparseStructureConfig, SparseStructureVAE
from fastshape.pipelines.structure import tokens_to_volume, volume_to_tokens
from fastshape.testing import icosphere

CONFIG = SparseStructureConfig(
    resolution=16, channels=(2, 4), latent_channels=8, num_res_blocks=0, num_res_blocks_middle=0
)


def exact() -> SparseStructureVAE:
    """A model whose latents are the voxels themselves, eight to a latent, and whose logits are right."""
    torch.manual_seed(0)
    model = SparseStructureVAE(CONFIG).eval()

    def encode(occupancy: torch.Tensor) -> torch.Tensor:
        parts = occupancy.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)  # (B, 1, 8, 8, 8, 2, 2, 2)
        moments = parts.flatten(5).squeeze(1).movedim(-1, 1)
        return torch.cat([moments, torch.full_like(moments, -30.0)], 1)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        from fastshape.nn import pixel_shuffle_3d

        return pixel_shuffle_3d(latents, 2) * 20 - 10

    model.encoder.forward = encode  # type: ignore[method-assign]
    model.decoder.forward = decode  # type: ignore[method-assign]
    return model


def test_a_right_model_gives_the_mesh_back():
    mesh = Mesh(shapes.torus().vertices * 3.0 + 5.0, shapes.torus().faces)
    stages = []
    result = pipelines.reconstruct(mesh, exact(), num_samples=2000, on_stage=stages.append)
    assert result.voxel_iou == 1.0
    assert stages == ["sample", "encode", "decode", "extract", "evaluate"]
    assert result.encoded.tokens == (512,)
    assert result.evaluation is not None
    # Half a voxel of 1/8 outside, in the frame of [-1, 1].
    assert result.evaluation.scores.chamfer_l1 < 0.1
    size = mesh.bounds[1] - mesh.bounds[0]
    grown = result.mesh.bounds[1] - result.mesh.bounds[0]
    assert (grown > size - 1e-3).all()
    assert (grown < size + 2 * 6.0 / 16).all()  # at most a voxel on either side


def test_an_open_surface_stays_open():
    """Half a sphere is a bowl: not filled, and one voxel thick."""
    vertices, faces = icosphere(3, 0.9)
    upper = faces[vertices[faces][:, :, 2].mean(1) > 0]
    result = pipelines.reconstruct(Mesh(vertices, upper), exact(), metrics=False)
    assert result.voxel_iou == 1.0
    assert result.evaluation is None
    ball = pipelines.reconstruct(Mesh(vertices, faces), exact(), metrics=False)
    assert result.mesh.volume < 0.35 * ball.mesh.volume


def test_other_extents_are_undone():
    model = exact()
    spec = geometry.PrepareSpec.preset("structure", voxels=16, extent=0.5)
    model.metadata = models.CheckpointMetadata(preparation=spec.to_dict())
    mesh = shapes.torus()
    small = pipelines.reconstruct(mesh, model, metrics=False)
    plain = pipelines.reconstruct(mesh, exact(), metrics=False)
    torch.testing.assert_close(small.mesh.vertices, plain.mesh.vertices, rtol=1e-4, atol=1e-4)


def test_tokens_are_the_volume():
    volume = torch.randn(1, 8, 3, 3, 3)
    tokens = volume_to_tokens(volume)
    assert tokens.shape == (1, 27, 8)
    assert torch.equal(tokens[0, 5], volume[0, :, 0, 1, 2])
    assert torch.equal(tokens_to_volume(tokens), volume)
    with pytest.raises(ValueError, match="must be a cube of tokens, got 26"):
        tokens_to_volume(tokens[:, :26])


def test_encode_and_decode_by_file(tmp_path):
    model = exact()
    encoded = pipelines.encode_mesh(shapes.torus(), model)
    pipelines.save_latents(encoded, tmp_path / "torus.fsh")
    read = pipelines.load_latents(tmp_path / "torus.fsh")
    mesh = pipelines.decode_latents(read, model)
    expected = pipelines.reconstruct(shapes.torus(), model, metrics=False).mesh
    assert torch.equal(mesh.vertices, expected.vertices)
    sampled = pipelines.encode_mesh(shapes.torus(), model, sample_posterior=True, seed=3)
    assert not torch.equal(sampled.latents[0], encoded.latents[0])
    assert pipelines.token_counts(model, None) == pipelines.token_counts(model, 512) == 512
    with pytest.raises(ValueError, match="is always 512, got 64"):
        pipelines.encode_mesh(shapes.torus(), model, num_tokens=64)


def test_nothing_occupied_has_no_surface():
    model = exact()
    model.decoder.forward = lambda latents: torch.full((1, 1, 16, 16, 16), -1.0)  # type: ignore[method-assign]
    with pytest.raises(NoSurfaceError, match="no voxel is occupied"):
        pipelines.reconstruct(shapes.torus(), model)


def test_inputs_are_the_voxels_of_the_mesh():
    voxels, normalization, mesh = pipelines.structure_inputs(shapes.torus(), exact())
    assert torch.equal(voxels, ops.voxelize_mesh(mesh.vertices, mesh.faces, 16))
    torch.testing.assert_close(normalization.undo_mesh(mesh).vertices.float(), shapes.torus().vertices)


def test_the_commands(capsys, tmp_path):
    torch.manual_seed(0)
    model = SparseStructureVAE(CONFIG)
    with torch.no_grad():
        model.decoder.out_layer[2].bias.fill_(5.0)  # whatever it is shown, all of it is occupied
    model.save_pretrained(tmp_path / "model")
    geometry.save(shapes.torus(), tmp_path / "torus.ply")
    words = ["reconstruct", tmp_path / "torus.ply", "-m", tmp_path / "model", "-o", tmp_path / "out.ply"]
    assert main([str(word) for word in [*words, "--no-picture"]]) == 0, capsys.readouterr().err
    assert "voxel IoU 0." in capsys.readouterr().out
    assert geometry.load(tmp_path / "out.ply").num_faces > 0
    for command in (
        ["encode", tmp_path / "torus.ply", "-m", tmp_path / "model", "-o", tmp_path / "z.fsh"],
        ["decode", tmp_path / "z.fsh", "-m", tmp_path / "model", "-o", tmp_path / "z.ply"],
        ["info", tmp_path / "model"],
    ):
        assert main([str(word) for word in command]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "the voxels that the surface touches, 16 along an axis" in out
    folder = tmp_path / "many"
    folder.mkdir()
    for segments in (6, 9):
        geometry.save(shapes.torus(segments=segments), folder / f"{segments}.ply")
    words = ["reconstruct", folder, "-m", tmp_path / "model", "-o", tmp_path / "results", "--no-picture"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert ", the least 0." in capsys.readouterr().out
    record = json.loads((tmp_path / "results" / "shapes" / "6.json").read_text())
    assert 0 < record["voxel_iou"] < 1


def test_the_shipped_weights_leave_an_opening_open():
    """A bowl that they never saw: most voxels come back, and none where its lid would be."""
    vertices, faces = icosphere(4, 0.9)
    kept, faces = faces[vertices[faces][:, :, 2].mean(1) < 0].unique(return_inverse=True)
    mesh = Mesh(vertices[kept], faces)
    result = pipelines.reconstruct(mesh, models.load("structure-tiny"), metrics=False)
    assert result.voxel_iou is not None
    assert result.voxel_iou > 0.8
    lid = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    lid = lid[lid[:, :2].norm(dim=1) < 0.6] * torch.tensor([1.0, 1.0, 0.0])
    away = geometry.DistanceField(result.mesh, dtype=torch.float32).unsigned(lid.contiguous())
    assert away.min() > 0.2
