"""TripoSF from mesh to mesh: any mesh in, its voxels, latents with voxels, files, and the command."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastshape import geometry, models, nn, ops, pipelines
from fastshape.checkpoints import triposf as official
from fastshape.cli import main
from fastshape.geometry import Mesh, NoSurfaceError, shapes
from fastshape.models import CheckpointError, TripoSFConfig, TripoSFVAE
from fastshape.models.triposf import _voxel_numbers
from fastshape.nn import SparseTensor
from fastshape.pipelines import LatentsError
from fastshape.pipelines.triposf import sparseflex_of
from fastshape.runtime.memory import peak_of
from fastshape.testing import icosphere

CONFIG = TripoSFConfig(
    resolution=5, point_hidden=4, point_depth=2, feature_dim=8, dim=256, depth=1, heads=4, ratio=0.25
)


def bowl() -> Mesh:
    """Half a sphere, open above."""
    vertices, faces = icosphere(3, 0.9)
    kept, faces = faces[vertices[faces][:, :, 2].mean(1) < 0].unique(return_inverse=True)
    return Mesh(vertices[kept], faces)


def open_edges(mesh: Mesh) -> torch.Tensor:
    """The edges (E, 2) that one face has."""
    edges = torch.cat([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)]).sort(1).values
    edges, counts = edges.unique(dim=0, return_counts=True)
    return edges[counts == 1]


@pytest.fixture(scope="module")
def model() -> TripoSFVAE:
    torch.manual_seed(0)
    model = TripoSFVAE(CONFIG).eval()
    for block in model.decoder.upsample:
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> str:
    """The model in a file as the official repository has it."""
    state = {}
    for ours, tensor in model.state_dict().items():
        if ours.endswith(".skip.weight"):
            tensor = tensor.T.contiguous().reshape(tensor.shape[0], 1, 1, 1, tensor.shape[1])
        state[official.official_name(ours)] = tensor.clone()
    path = tmp_path_factory.mktemp("triposf") / "vae.safetensors"
    save_file(state, path)
    return str(path)


def right(mesh: Mesh) -> TripoSFVAE:
    """A model whose decoder says of a mesh what is right."""
    torch.manual_seed(0)
    model = TripoSFVAE(CONFIG).eval()

    def decode(latents: SparseTensor, **options: object) -> SparseTensor:
        normalized, _ = geometry.normalize(mesh, extent=0.5)
        return sparseflex_of(normalized, 20)

    model.decode = decode  # type: ignore[method-assign]
    return model


# ---- Open surfaces -----------------------------------------------------------------------------------------


def test_sparseflex_of_an_open_surface_is_open():
    mesh = Mesh(bowl().vertices / 2, bowl().faces)
    fine = sparseflex_of(mesh, 64)
    surface = TripoSFVAE(CONFIG).at_resolution(16).surface(fine)
    result = Mesh(surface.vertices, surface.faces)
    # It ends where the bowl does, all around.
    rims = []
    for one in (mesh, result):
        ends = one.vertices[open_edges(one)]
        rims.append(torch.cat([ends[:, 0] + share * (ends[:, 1] - ends[:, 0]) for share in (0.0, 0.3, 0.6)]))
    apart = torch.cdist(*(rim.double() for rim in rims))
    assert apart.amin(0).max() < 2 / 64
    assert apart.amin(1).max() < 2 / 64
    assert (result.vertices.norm(dim=1) - 0.45).abs().max() < 0.5 / 64
    area = geometry.Mesh(mesh.vertices, mesh.faces).area
    assert abs(result.area / area - 1) < 0.06
    # Seen from the same side.
    normals = torch.linalg.cross(
        *(result.vertices[result.faces[:, i]] - result.vertices[result.faces[:, 0]] for i in (1, 2))
    )
    assert ((normals * result.vertices[result.faces].mean(1)).sum(1) > 0).float().mean() > 0.99


@pytest.mark.parametrize("resolution", [1290, 1536, 4096])
def test_keys_beyond_32_bits(resolution):
    """A small ball in the far corner of a grid whose corners' numbers need 64 bits."""
    vertices, faces = icosphere(2, 12.0)
    middle = 0.5 - 14.0 / resolution
    fine = sparseflex_of(Mesh(vertices / resolution + middle, faces), resolution)
    assert fine.coords.max() > resolution - 5
    surface = nn.sparseflex_surface(fine, resolution)
    result = Mesh(surface.vertices, surface.faces)
    assert result.is_watertight
    radius = ((result.vertices.double() - middle) * resolution).norm(dim=1)
    assert (radius - 12.0).abs().max() < 1.0
    plain = (fine.coords[:, 1:] - fine.coords[:, 1:].min(0).values).int().contiguous()
    near = nn.sparseflex_surface(fine.replace(fine.feats), resolution)
    moved = SparseTensor(torch.nn.functional.pad(plain, (1, 0)), fine.feats)
    assert torch.equal(nn.sparseflex_surface(moved, resolution).faces, near.faces)


def test_a_right_decoder_gives_an_open_mesh_back():
    mesh = Mesh(bowl().vertices * 7.0 + 3.0, bowl().faces)
    stages = []
    result = pipelines.reconstruct(
        mesh, right(mesh), num_points=2000, num_samples=5000, on_stage=stages.append
    )
    assert stages == ["sample", "encode", "decode", "extract", "evaluate"]
    size = (mesh.bounds[1] - mesh.bounds[0]).max()
    voxel = size / 20
    assert ((result.mesh.bounds - mesh.bounds).abs() < voxel).all()
    assert len(open_edges(result.mesh)) > 50
    assert result.evaluation is not None
    assert result.evaluation.scores.chamfer_l1 < 2 * 2 / 20


# ---- Latents -----------------------------------------------------------------------------------------------


def test_latents_know_their_voxels(model, tmp_path):
    mesh = bowl()
    encoded = pipelines.encode_mesh(mesh, model, resolution=28, num_points=3000, seed=3)
    assert encoded.resolution == 7
    assert encoded.coords.shape == (encoded.num_tokens, 3)
    assert encoded.coords.dtype == torch.int32
    assert encoded.latents[0].shape == (1, len(encoded.coords), 8)
    inputs = pipelines.sparse_inputs(
        mesh, model.at_resolution(7), num_points=3000, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(encoded.coords, inputs.voxels[:, 1:])
    assert encoded.num_bytes == encoded.num_tokens * (8 + 3) * 4
    path = tmp_path / "bowl.fsh"
    pipelines.save_latents(encoded, path)
    loaded = pipelines.load_latents(path)
    assert torch.equal(loaded.coords, encoded.coords)
    assert loaded.resolution == 7
    first, second = (pipelines.decode_latents(e, model) for e in (encoded, loaded))
    assert torch.equal(first.vertices, second.vertices)
    expected = pipelines.reconstruct(mesh, model, resolution=28, num_points=3000, seed=3, metrics=False)
    assert torch.equal(first.vertices, expected.mesh.vertices)
    assert torch.equal(first.faces, expected.mesh.faces)
    with pytest.raises(LatentsError, match="of a surface of 28 voxels along an axis, got `resolution` 20"):
        pipelines.decode_latents(loaded, model, resolution=20)
    drawn = pipelines.encode_mesh(mesh, model, num_points=3000, seed=3, sample_posterior=True)
    again = pipelines.encode_mesh(mesh, model, num_points=3000, seed=3, sample_posterior=True)
    assert torch.equal(drawn.latents[0], again.latents[0])
    assert drawn.resolution == 5


def test_latents_without_voxels(model):
    encoded = pipelines.encode_mesh(bowl(), model, num_points=500)
    with pytest.raises(LatentsError, match="have no voxels, which TripoSFVAE needs"):
        pipelines.decode_latents(replace(encoded, coords=None, resolution=None), model)


def test_tokens_follow_from_the_mesh(model):
    assert pipelines.token_counts(model, None) is None
    with pytest.raises(ValueError, match="follows from the mesh, one for each voxel, got 64"):
        pipelines.encode_mesh(bowl(), model, num_tokens=64)
    with pytest.raises(ValueError, match="must be a positive multiple of 4, got 30"):
        pipelines.encode_mesh(bowl(), model, resolution=30)


# ---- Chunks ------------------------------------------------------------------------------------------------


def test_memory_decides_the_chunks(model):
    finer = model.at_resolution(64)
    voxels = ops.voxelize_mesh(bowl().vertices / 2, bowl().faces, 64, (-0.5, 0.5))
    tokens = SparseTensor(torch.nn.functional.pad(voxels, (1, 0)), torch.zeros(len(voxels), 8), 1)
    assert finer.chunk_count(tokens) == 4
    assert finer.chunk_count(tokens, memory=1 << 40) == 4
    counts = [finer.chunk_count(tokens, memory=memory) for memory in (1 << 28, 1 << 26, 1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert 64 % counts[-1] == 0
    assert finer.chunk_count(tokens, chunks=2, memory=1) == 2
    assert model.at_resolution(6).chunk_count(tokens) == 2
    assert finer.config.resolution == 64
    assert model.config.resolution == 5
    assert finer.decoder is model.decoder


@torch.no_grad()
def subdivision_memory() -> tuple[int | None, int]:
    """Bytes that a subdivision took, None where the system does not tell, and what the estimate says."""
    torch.manual_seed(0)
    model = TripoSFVAE(CONFIG).eval().at_resolution(16)
    voxels = ops.voxelize_mesh(bowl().vertices / 2, bowl().faces, 16, (-0.5, 0.5))
    tokens = model.decoder(SparseTensor(torch.nn.functional.pad(voxels, (1, 0)), torch.zeros(len(voxels), 8)))
    model.decoder.subdivide(tokens)  # libraries allocate their own at the first call
    cpu = torch.device("cpu")
    # What the system rounds up to large pages differs from call to call, and only adds.
    peaks = [peak_of(lambda: model.decoder.subdivide(tokens), cpu, exact=True) for _ in range(5)]
    peak = None if None in peaks else min(p for p in peaks if p is not None)
    return peak, 4 * _voxel_numbers(model.config) * len(tokens)


def test_smaller_chunks_take_less_memory():
    """What the estimate says of a chunk holds for it; in a process without a history in its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak, estimate = pool.submit(subdivision_memory).result()
    if peak is None:
        pytest.skip("the system does not tell the memory")
    assert 0.3 * estimate < peak < 1.3 * estimate


def test_nothing_kept_is_no_surface(model):
    for block in model.decoder.upsample:
        block.pruning[2].bias.data -= 1e6
    try:
        with pytest.raises(NoSurfaceError, match="no surface"):
            pipelines.reconstruct(bowl(), model, num_points=500)
        kept = pipelines.reconstruct(bowl(), model, num_points=500, prune=False, metrics=False)
        assert kept.mesh.num_faces > 0
    finally:
        for block in model.decoder.upsample:
            block.pruning[2].bias.data += 1e6


# ---- Commands ----------------------------------------------------------------------------------------------


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_the_commands(capsys, tmp_path, weights):
    """An official checkpoint, a raw open mesh, and files between."""
    mesh, out, z = tmp_path / "bowl.ply", tmp_path / "out.ply", tmp_path / "z.fsh"
    geometry.save(bowl(), mesh)
    family = ("-m", "triposf", "--weights", weights)
    assert run("reconstruct", mesh, *family, "-o", out, "--resolution", 20, "--no-picture") == 0, (
        capsys.readouterr().err
    )
    assert geometry.load(out).num_faces > 0
    assert run("encode", mesh, *family, "-o", z, "--resolution", 20) == 0, capsys.readouterr().err
    assert run("decode", z, *family, "-o", tmp_path / "back.ply") == 0, capsys.readouterr().err
    assert (tmp_path / "back.ply").read_bytes() == out.read_bytes()
    capsys.readouterr()
    assert run("info", z) == 0
    assert "of voxels, 5 along an axis" in capsys.readouterr().out
    assert run("decode", z, "-o", tmp_path / "back.ply") == 2
    assert "-m FAMILY --weights FILE" in capsys.readouterr().err
    for words, message in (
        (("reconstruct", mesh, "-m", "triposf", "-o", out), "-m triposf is a family: give its official"),
        (("reconstruct", mesh, "--weights", weights, "-o", out), "say of which family"),
        (("encode", mesh, *family, "--tokens", 8, "-o", z), "follows from the mesh"),
        (("encode", mesh, "-m", "dora", "--weights", weights, "-o", z), "vae.safetensors"),
        (("encode", mesh, "-m", "structure", "--weights", weights, "-o", z), "two files"),
        (("encode", mesh, "-m", "nothing", "--weights", weights, "-o", z), "there is no family 'nothing'"),
        (("encode", mesh, "-m", "triposf", "--weights", tmp_path / "no", "-o", z), "does not exist"),
    ):
        assert run(*words) == 2
        assert message in capsys.readouterr().err


def test_a_saved_model_and_a_folder(capsys, tmp_path, model):
    model.save_pretrained(tmp_path / "model")
    assert run("info", tmp_path / "model") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "819,200 points on the surface, with normals, and the voxels at it, 5 along an axis" in said
    folder = tmp_path / "many"
    folder.mkdir()
    geometry.save(bowl(), folder / "bowl.ply")
    geometry.save(shapes.torus(segments=9), folder / "torus.ply")
    (folder / "bad.obj").write_text("v 0 0 0\n")
    words = ("reconstruct", folder, "-m", tmp_path / "model", "-o", tmp_path / "out", "--no-picture")
    assert run(*words) == 1, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "shapes" / "bowl.json").read_text())
    assert record["status"] == "ok"
    assert record["tokens"][0] > 10
    assert record["settings"]["prune"] is True


def test_official_families():
    for kind, count in models.OFFICIAL.values():
        assert hasattr(kind, "from_official")
        assert count in (1, 2)
    with pytest.raises(CheckpointError, match="there is no family 'x' of official checkpoints"):
        models.load_official("x", ["a"])
