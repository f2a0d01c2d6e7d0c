"""FlexiCubes: its tables, and the surfaces and gradients of the published code."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_flexicubes import by_row

from fastshape import losses, ops, testing
from fastshape.ops import dual_topology
from fastshape.reference import flexicubes as reference
from fastshape.reference import flexicubes_table

ROOT = Path(__file__).resolve().parent.parent.parent


# ---- The tables --------------------------------------------------------------------------------------------


def test_the_table_is_what_the_data_says(monkeypatch):
    path = ROOT / "scripts" / "flexicubes_table.py"
    if not path.exists():
        pytest.skip("no source tree")
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("flexicubes_table_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "csrc" / "isosurface" / "flexicubes_table.h").read_text() == script.table()


def test_the_data_is_the_published_one(golden_folder):
    golden = load_file(golden_folder / "flexicubes_tables_a.safetensors")
    ambiguous = flexicubes_table.ambiguous_cases()
    for case in range(256):
        groups = flexicubes_table.case_vertices(case)
        assert len(groups) == golden["in.num_vd_table"][case]
        for vertex in range(4):
            row = golden["in.dmc_table"][case, vertex].tolist()
            group = groups[vertex] if vertex < len(groups) else []
            assert row == group + [-1] * (7 - len(group))
        row = golden["in.check_table"][case].tolist()
        axis, direction, other = ambiguous.get(case, (0, 0, 0))
        step = [direction * (k == axis) for k in range(3)]
        assert row == [int(case in ambiguous), *step, other]


def test_a_vertex_has_every_crossed_edge_once():
    for case in range(256):
        crossed = [e for e, (a, b) in enumerate(flexicubes_table.EDGES) if (case >> a ^ case >> b) & 1]
        assert sorted(edge for group in flexicubes_table.case_vertices(case) for edge in group) == crossed


def test_a_corner_alone():
    """Worked out by hand: one vertex, at the mean of the three crossings; no quad."""
    sdf = torch.ones(2, 2, 2, dtype=torch.float64)
    sdf[0, 0, 0] = -1 / 3
    cubes, points = reference.lattice((2, 2, 2))
    surface = reference.flexicubes(sdf.flatten(), cubes, points.double())
    torch.testing.assert_close(surface.vertices, torch.full((1, 3), 1 / 12, dtype=torch.float64))
    assert tuple(surface.faces.shape) == (0, 3)
    assert surface.deviation.abs().max() < 1e-12


# ---- Against the published code ----------------------------------------------------------------------------


def golden_loss(surface, golden, mode):
    loss = (surface.vertices.cpu() * golden[f"out.{mode}.cot"]).sum()
    return loss + 0.5 * surface.deviation.mean().cpu() + 3 * surface.deviation.sum().cpu()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_dense(backend, golden_folder, mode):
    golden = load_file(golden_folder / "flexicubes_dense_a.safetensors")
    sdf, deform, weights = (golden[f"in.{name}"].requires_grad_() for name in ("sdf", "deform", "weights"))
    positions = golden["in.grid_vertices"] + deform.tanh() * (1 - 1e-8) / 16
    beta, alpha, gamma = weights[:, :12], weights[:, 12:20], weights[:, 20]
    cubes, _ = reference.lattice((9, 9, 9))
    assert torch.equal(cubes, golden["in.cubes"].long())
    options = {"training": mode == "train", "face_order": "nv"}
    moved = (t.to(backend.device) for t in (sdf.view(9, 9, 9), positions, beta, alpha, gamma))
    names = ("sdf", "positions", "beta", "alpha", "gamma")
    ours = ops.flexicubes(**dict(zip(names, moved, strict=True)), **options)
    plain = reference.flexicubes(sdf, cubes, positions, *reference.activate(beta, alpha, gamma), **options)
    for surface in (ours, plain):
        assert torch.equal(surface.faces.cpu(), golden[f"out.{mode}.faces"].long())
        testing.assert_golden(surface.vertices, golden[f"out.{mode}.vertices"], testing.GOLDEN_SURFACE)
        testing.assert_golden(surface.deviation, golden[f"out.{mode}.L_dev"], testing.GOLDEN_SURFACE)
        grads = torch.autograd.grad(
            golden_loss(surface, golden, mode), (sdf, deform, weights), retain_graph=True
        )
        for name, grad in zip(("sdf", "deform", "weights"), grads, strict=True):
            testing.assert_gradients_match(grad, golden[f"grad.{mode}.{name}"])


def test_golden_dense_without_weights(backend, golden_folder):
    golden = load_file(golden_folder / "flexicubes_dense_a.safetensors")
    sdf, points = backend.put(golden["in.sdf"].view(9, 9, 9), golden["in.grid_vertices"])
    surface = ops.flexicubes(sdf, positions=points, face_order="nv")
    assert torch.equal(surface.faces.cpu(), golden["out.noweights.faces"].long())
    testing.assert_golden(surface.vertices, golden["out.noweights.vertices"], testing.GOLDEN_SURFACE)
    testing.assert_golden(surface.deviation, golden["out.noweights.L_dev"], testing.GOLDEN_SURFACE)
    vertices, faces = ops.dual_marching_cubes(sdf, positions=points)
    assert torch.equal(vertices, surface.vertices)
    assert torch.equal(by_row(faces.cpu()), by_row(surface.faces.cpu()))
    topology = dual_topology.dual_surface_op(sdf, None, 0.0, True, 0)
    assert torch.equal(topology[2].cpu().short(), golden["out.case_ids"])
    assert torch.equal(topology[1].cpu(), golden["out.surf_cubes"].nonzero()[:, 0])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_sparse(backend, golden_folder, mode):
    """The head of TripoSF's decoder: corners averaged over the voxels that share them."""
    golden = load_file(golden_folder / "sparse_flexicubes_a.safetensors")
    resolution = 12
    features = backend.put(golden["in.feats"]).requires_grad_()
    corners = ops.voxel_corners(backend.put(golden["in.coords"]), resolution=resolution)
    assert torch.equal(corners.cubes.cpu(), golden["out.cube_idx"].long())
    sdf = features[:, :8] * 4 / resolution - 1 / resolution
    said = torch.cat([sdf[:, :, None], features[:, 8:32].view(-1, 8, 3)], 2)
    mean = ops.corner_mean(said, corners)
    consistency = losses.corner_consistency_loss(said, mean, corners.cubes)
    torch.testing.assert_close(consistency.cpu(), golden["out.con_loss"])
    half = (1 - 1e-8) / (2 * resolution)
    positions = corners.coords[:, 1:] / resolution - 0.5 + half * mean[:, 1:].tanh()
    testing.assert_golden(positions, golden["out.corner_pos"][:-1], testing.GOLDEN_SURFACE)
    surface = ops.flexicubes(
        mean[:, 0].contiguous(),
        cubes=corners.cubes,
        positions=positions,
        beta=features[:, 32:44],
        alpha=features[:, 44:52],
        gamma=features[:, 52],
        training=mode == "train",
        face_order="trellis",
    )
    assert torch.equal(surface.faces.cpu(), golden[f"out.{mode}.faces"].long())
    testing.assert_golden(surface.vertices, golden[f"out.{mode}.vertices"], testing.GOLDEN_SURFACE)
    testing.assert_golden(surface.deviation, golden[f"out.{mode}.L_dev"], testing.GOLDEN_SURFACE)
    golden_loss(surface, golden, mode).backward()
    testing.assert_gradients_match(features.grad, golden[f"grad.{mode}.feats"])
    assert torch.equal(surface.vertex_cubes.unique().cpu(), golden["out.surf_cubes"].nonzero()[:, 0])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_colors(backend, golden_folder, mode):
    """The head of TRELLIS' decoder: on the whole lattice, outside where there is no voxel."""
    golden = load_file(golden_folder / "trellis_features2mesh_a.safetensors")
    n = 10
    coords = backend.put(golden["in.coords"])
    features = backend.put(golden["in.feats"]).requires_grad_()
    corners = ops.voxel_corners(coords, resolution=n)
    said = torch.cat(
        [
            (features[:, :8] - 1 / n)[:, :, None],
            features[:, 8:32].view(-1, 8, 3),
            features[:, 53:].view(-1, 8, 6),
        ],
        2,
    )
    mean = ops.corner_mean(said, corners)
    consistency = losses.corner_consistency_loss(said, mean, corners.cubes)
    default = torch.zeros((n + 1) ** 3, 10, device=backend.device)
    default[:, 0] = 1
    x, y, z = corners.coords[:, 1:].long().unbind(1)
    place = (x * (n + 1) + y) * (n + 1) + z
    lattice = default.index_put((place,), mean)
    cube = coords[:, 1:].long() @ torch.tensor([n * n, n, 1], device=backend.device)
    weights = torch.zeros(n**3, 21, device=backend.device).index_put((cube,), features[:, 32:53])
    points = reference.lattice((n + 1,) * 3)[1].to(backend.device)
    surface = ops.flexicubes(
        lattice[:, 0].view(n + 1, n + 1, n + 1).contiguous(),
        positions=points / n - 0.5 + (1 - 1e-8) / (2 * n) * lattice[:, 1:4].tanh(),
        features=lattice[:, 4:].sigmoid(),
        beta=weights[:, :12],
        alpha=weights[:, 12:20],
        gamma=weights[:, 20],
        training=mode == "train",
        face_order="trellis",
    )
    assert torch.equal(surface.faces.cpu(), golden[f"out.{mode}.faces"].long())
    testing.assert_golden(surface.vertices, golden[f"out.{mode}.vertices"], testing.GOLDEN_SURFACE)
    testing.assert_golden(surface.features, golden[f"out.{mode}.vertex_attrs"], testing.GOLDEN_SURFACE)
    testing.assert_golden(surface.deviation, golden[f"out.{mode}.L_dev"], testing.GOLDEN_SURFACE)
    loss = (surface.vertices.cpu() * golden[f"out.{mode}.cot"]).sum()
    loss = loss + (surface.features.cpu() * golden[f"out.{mode}.cot_attrs"]).sum()
    if mode == "train":
        regularizer = consistency + 0.5 * losses.deviation_loss(surface.deviation)
        regularizer = regularizer + 0.2 * losses.weight_loss(features[:, 32:52])
        torch.testing.assert_close(regularizer.cpu(), golden["out.train.reg_loss"])
        loss = loss + 5 * regularizer.cpu()
    loss.backward()
    testing.assert_gradients_match(features.grad, golden[f"grad.{mode}.feats"])
