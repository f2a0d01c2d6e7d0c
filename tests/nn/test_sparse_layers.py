"""Sparse tensors and the layers over them: parity with official code, and what they promise beyond it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fastshape import ops
from fastshape.nn import (
    ModulatedSparseCrossBlock,
    SparseConv3d,
    SparseCrossAttention,
    SparseGroupNorm,
    SparseSelfAttention,
    SparseTensor,
    SparseTransformer,
    SparseTransformerBlock,
    SubdivideBlock,
    VoxelEmbed,
    sparseflex_surface,
)
from fastshape.testing import GOLDEN_FEATURES, assert_golden, generator


def voxels(count: int, size: int = 12, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Distinct voxels (count, 4) of `batch` items, sorted by item only."""
    draw = generator(seed)
    rows = torch.randperm(batch * size**3, generator=draw)[:count]
    item = rows // size**3
    rows = rows[item.argsort(stable=True)]
    coords = [rows // size**3, rows // size**2 % size, rows // size % size, rows % size]
    return torch.stack(coords, 1).int()


def random_tensor(
    count: int = 60, channels: int = 32, batch: int = 1, seed: int = 0, **options
) -> SparseTensor:
    coords = voxels(count, batch=batch, seed=seed, **options)
    return SparseTensor(coords, torch.randn(count, channels, generator=generator(seed)), batch)


# ---- SparseTensor ------------------------------------------------------------------------------------------


def test_what_follows_from_the_coordinates_is_computed_once():
    x = random_tensor(50, batch=2)
    other = x.replace(torch.zeros(50, 7)).to(torch.float64)
    assert other.num_channels == 7
    assert other.dtype == torch.float64
    assert other.neighbors() is x.neighbors()
    assert other.cu_lengths is x.cu_lengths
    assert other.items is x.items
    inner = x.sorted()
    assert inner.in_voxel_order
    assert other.sorted().coords is inner.coords
    assert other.sorted().window_plan(4, 2) is inner.window_plan(4, 2)
    assert inner.sorted() is inner
    assert repr(x) == "SparseTensor(50 voxels of 2 items, 32 channels, torch.float32, cpu)"


def test_sorting_and_back():
    x = random_tensor(80, batch=3)
    inner = x.sorted()
    order = ops.voxel_order(x.coords)
    assert torch.equal(inner.coords, x.coords[order])
    assert torch.equal(inner.feats, x.feats[order])
    assert torch.equal(x.restored(inner.replace(inner.feats * 2)).feats, x.feats * 2)
    assert x.restored(x) is x
    with pytest.raises(ValueError, match=r"must have been made of this tensor's `sorted\(\)`"):
        x.restored(random_tensor(80, batch=3, seed=1).sorted())
    with pytest.raises(ValueError, match="must be in voxel order"):
        x.window_plan(4)


def test_items():
    x = random_tensor(40, channels=2, batch=3)
    counts = x.coords[:, 0].bincount(minlength=3)
    assert x.offsets == [0, *counts.cumsum(0).tolist()]
    parts = list(x)
    assert [len(part) for part in parts] == counts.tolist()
    assert all(part.batch_size == 1 for part in parts)
    assert all(int(part.coords[:, 0].max()) == 0 for part in parts)
    assert torch.equal(x[-1].feats, parts[2].feats)
    again = SparseTensor.cat(parts)
    assert torch.equal(again.coords, x.coords)
    assert torch.equal(again.feats, x.feats)
    assert torch.equal(SparseTensor.cat([x[:1], x[1:]]).coords, x.coords)
    assert len(x[1:1]) == 0
    assert x[1:1].batch_size == 0
    with pytest.raises(IndexError, match="item 3 of a batch of 3"):
        x[3]
    mean = ops.segment_reduce(x.feats, x.items)
    torch.testing.assert_close(mean[1], parts[1].feats.mean(0))


def test_empty_items_and_empty_tensors():
    x = SparseTensor(torch.tensor([[1, 2, 3, 4]], dtype=torch.int32), torch.ones(1, 2), batch_size=3)
    assert x.offsets == [0, 0, 1, 1]
    assert [len(part) for part in x] == [0, 1, 0]
    none = SparseTensor(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 2))
    assert none.batch_size == 0
    assert none.offsets == [0]
    assert len(none.sorted()) == 0
    assert len(x.select(torch.zeros(1, dtype=torch.bool))) == 0
    assert x.select(torch.tensor([0])).batch_size == 3


def _tensor(coords, feats=None, *rest) -> SparseTensor:
    if isinstance(coords, list):
        coords = torch.tensor(coords, dtype=torch.int32)
    return SparseTensor(coords, torch.zeros(len(coords), 2) if feats is None else feats, *rest)


ONE = [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SparseTensor([1], torch.zeros(1, 2)), TypeError, "`coords` must be a tensor, got list"),
        (lambda: _tensor(torch.zeros(1, 4)), TypeError, "`coords` must be int32, got torch.float32"),
        (lambda: _tensor([[0, 0, 0]]), ValueError, r"shape \(N, 4\), got \(1, 3\)"),
        (lambda: _tensor(ONE, torch.zeros(2, 2)), ValueError, r"`feats` must have shape \(1, C\), a row"),
        (lambda: _tensor(ONE, torch.zeros(1, 2).int()), TypeError, "`feats` must be floating"),
        (lambda: _tensor([[1, 0, 0, 0], *ONE]), ValueError, "the rows of each item behind each other"),
        (lambda: _tensor([[2, 0, 0, 0]], None, 2), ValueError, "items below `batch_size` = 2, got 2"),
        (lambda: _tensor(ONE).replace(None), TypeError, "`feats` must be a tensor, got NoneType"),
        (lambda: SparseTensor.cat([]), ValueError, "at least one tensor"),
        (
            lambda: SparseTensor.cat([random_tensor(3, 2), random_tensor(3, 4)]),
            ValueError,
            "the same channels, got 2, 4",
        ),
        (lambda: random_tensor(3)[::2], ValueError, "must have the step 1, got 2"),
    ],
)
def test_wrong_tensors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- Parity ------------------------------------------------------------------------------------------------


def state(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}


@pytest.mark.parametrize("mode", ["windowed", "full"])
def test_golden_block(backend, golden_folder, mode):
    name = "window" if mode == "windowed" else "full"
    golden = load_file(golden_folder / f"sparse_block_{name}_a.safetensors")
    shift = 2 if mode == "windowed" else 0
    block = SparseTransformerBlock(48, heads=4, ratio=2.0, mode=mode, window=4, shift=shift, qk_norm=True)
    block.load_state_dict(state(golden))
    block = block.to(backend.device)
    feats = backend.put(golden["in.x"].requires_grad_())
    x = SparseTensor(backend.put(golden["in.coords"]), feats)
    y = x.restored(block(x.sorted())).feats
    assert_golden(y, golden["out.y"], GOLDEN_FEATURES)
    (y * backend.put(golden["in.cot"])).sum().backward()
    assert_golden(feats.grad, golden["grad.x"], GOLDEN_FEATURES)
    for ours, theirs in (
        (block.attn.to_qkv.weight, "attn.to_qkv.weight"),
        (block.attn.q_rms_norm.gamma, "attn.q_rms_norm.gamma"),
    ):
        assert_golden(ours.grad, golden[f"grad.state.{theirs}"], GOLDEN_FEATURES)
    if mode == "windowed":
        plan = x.sorted().window_plan(4, 2)
        lengths = plan.cu_lengths.diff().sort().values.cpu()
        assert torch.equal(lengths, golden["out.seq_lens"].sort().values)


def test_golden_modulated_block(backend, golden_folder):
    golden = load_file(golden_folder / "sparse_modulated_cross_block_a.safetensors")
    block = ModulatedSparseCrossBlock(48, 20, heads=4, ratio=2.0, qk_norm=True)
    block.load_state_dict(state(golden))
    block = block.to(backend.device)
    feats = backend.put(golden["in.x"].requires_grad_())
    x = SparseTensor(backend.put(golden["in.coords"]), feats)
    y = block(x, *backend.put(golden["in.mod"], golden["in.context"])).feats
    assert_golden(y, golden["out.y"], GOLDEN_FEATURES)
    (y * backend.put(golden["in.cot"])).sum().backward()
    assert_golden(feats.grad, golden["grad.x"], GOLDEN_FEATURES)


def test_golden_embedding(golden_folder):
    golden = load_file(golden_folder / "sparse_modulated_cross_block_a.safetensors")
    embedded = VoxelEmbed(50).half()(golden["in.ape_coords"])  # exact in a model of half precision too
    assert_golden(embedded, golden["out.ape"], GOLDEN_FEATURES)
    assert torch.equal(embedded[:, 48:], torch.zeros(4, 2))


# ---- Attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_heads_of_any_size(heads):
    """Heads that the kernels do not take are padded, norms and all: the same as plain attention."""
    dim = 24
    torch.manual_seed(0)
    layer = SparseSelfAttention(dim, heads=heads, qk_norm=True)
    torch.nn.init.uniform_(layer.q_rms_norm.gamma, 0.5, 2.0)
    x = random_tensor(20, dim)
    q, k, v = layer.to_qkv(x.feats).unflatten(-1, (3, heads, -1)).unbind(1)
    root = (dim // heads) ** 0.5
    q = torch.nn.functional.normalize(q, dim=-1) * layer.q_rms_norm.gamma * root
    k = torch.nn.functional.normalize(k, dim=-1) * layer.k_rms_norm.gamma * root
    scores = torch.einsum("qhd,khd->hqk", q, k) / root
    expected = layer.to_out(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1))
    torch.testing.assert_close(layer(x).feats, expected, rtol=1e-4, atol=1e-5)


def test_items_do_not_see_each_other():
    torch.manual_seed(0)
    x = random_tensor(60, 32, batch=2)
    for mode in ("windowed", "full"):
        model = SparseTransformer(32, 32, depth=2, heads=2, mode=mode, window=4)
        both = model(x)
        for item in range(2):
            torch.testing.assert_close(model(x[item]).feats, both[item].feats, rtol=1e-4, atol=1e-5)
    cross = SparseCrossAttention(32, 8, heads=2)
    context = torch.randn(2, 5, 8)
    both = cross(x, context)
    torch.testing.assert_close(cross(x[1], context[1:]).feats, both[1].feats, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_rows_does_not_matter():
    torch.manual_seed(0)
    model = SparseTransformer(16, 32, depth=2, heads=2, window=4)
    x = random_tensor(50, 16)
    order = torch.randperm(50)
    mixed = SparseTensor(x.coords[order], x.feats[order])
    torch.testing.assert_close(model(mixed).feats, model(x).feats[order], rtol=1e-4, atol=1e-5)


def test_rotation_sees_differences_of_places_only():
    torch.manual_seed(0)
    layer = SparseSelfAttention(48, heads=2, mode="windowed", window=16, rope=True)
    plain = SparseSelfAttention(48, heads=2, mode="windowed", window=16)
    plain.load_state_dict(layer.state_dict())
    x = random_tensor(30, 48, size=8).sorted()
    moved = SparseTensor(x.coords + torch.tensor([0, 3, 5, 1], dtype=torch.int32), x.feats)
    both = [SparseTensor(t.coords, t.feats) for t in (x, moved)]
    first, second = (t.restored(layer(t.sorted())).feats for t in both)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, plain(x).feats, atol=1e-3)
    with pytest.raises(ValueError, match="`rope` is for the mode 'windowed'"):
        SparseSelfAttention(48, heads=2, rope=True)


def test_modulation_may_be_shared():
    torch.manual_seed(0)
    own = ModulatedSparseCrossBlock(32, 8, heads=2)
    shared = ModulatedSparseCrossBlock(32, 8, heads=2, share_modulation=True)
    shared.load_state_dict(
        {name: value for name, value in own.state_dict().items() if not name.startswith("adaLN")}
    )
    x, vector, context = random_tensor(30, 32, batch=2), torch.randn(2, 32), torch.randn(2, 4, 8)
    expected = own(x, vector, context).feats
    assert torch.equal(shared(x, own.adaLN_modulation(vector), context).feats, expected)
    with pytest.raises(ValueError, match=r"`modulation` must have shape \(2, 192\), got \(2, 32\)"):
        shared(x, vector, context)
    with pytest.raises(ValueError, match=r"`context` must have shape \(2, L, 8\), got \(1, 4, 8\)"):
        own(x, vector, context[:1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseSelfAttention(30, heads=4), "`heads` must divide `dim`, got 4 and 30"),
        (lambda: SparseSelfAttention(32, heads=4, mode="swin"), "`mode` must be 'full' or 'windowed'"),
        (lambda: VoxelEmbed(5), "`dim` must be at least 6, got 5"),
    ],
)
def test_wrong_layers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_goes_through():
    model = SparseTransformer(4, 32, depth=2, heads=2)
    none = SparseTensor(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 4), 1)
    assert model(none).feats.shape == (0, 32)


# ---- Convolution, norm, subdivision ------------------------------------------------------------------------


def test_a_convolution_over_all_voxels_is_the_dense_one():
    torch.manual_seed(0)
    side = torch.arange(5)
    coords = torch.nn.functional.pad(torch.cartesian_prod(side, side, side), (1, 0)).int()
    layer = SparseConv3d(3, 4)
    x = SparseTensor(coords, torch.randn(125, 3))
    dense = x.feats.T.reshape(1, 3, 5, 5, 5)
    expected = torch.nn.functional.conv3d(dense, layer.weight.permute(0, 4, 1, 2, 3), layer.bias, padding=1)
    torch.testing.assert_close(layer(x).feats, expected[0].flatten(1).T, rtol=1e-4, atol=1e-5)


def test_a_group_norm_over_one_item_is_the_dense_one():
    torch.manual_seed(0)
    x = random_tensor(70, 8, batch=2)
    layer = SparseGroupNorm(8, 4)
    torch.nn.init.uniform_(layer.weight)
    torch.nn.init.uniform_(layer.bias)
    result = layer(x)
    for item in range(2):
        dense = x[item].feats.T[None]
        expected = torch.nn.functional.group_norm(dense, 4, layer.weight, layer.bias, 1e-5)[0].T
        torch.testing.assert_close(result[item].feats, expected, rtol=1e-4, atol=1e-5)
    half = layer.bfloat16()(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.feats.float(), result.feats, rtol=0.05, atol=0.05)


def test_gradients_of_norm_and_convolution():
    coords = voxels(12, size=3)
    layer, norm = SparseConv3d(2, 4).double(), SparseGroupNorm(4, 2).double()

    def run(feats: torch.Tensor) -> torch.Tensor:
        return norm(layer(SparseTensor(coords, feats))).feats

    feats = torch.randn(12, 2, dtype=torch.float64, generator=generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(run, feats)


def test_a_block_starts_as_its_skip_connection():
    torch.manual_seed(0)
    block = SubdivideBlock(8, 4, groups=2)
    x = random_tensor(10, 8)
    fine, logits = block(x)
    assert torch.equal(fine.coords, ops.subdivide_voxels(x.coords))
    expected = block.skip(x.feats).repeat_interleave(8, 0)
    torch.testing.assert_close(fine.feats, expected)
    assert logits.shape == (80,)
    pruned, same = block(x, prune=True)
    assert torch.equal(same, logits)
    assert torch.equal(pruned.coords, fine.coords[logits >= 0])
    assert SubdivideBlock(8, 4, groups=2, prunes=False)(x)[1] is None


# ---- SparseFlex --------------------------------------------------------------------------------------------


def ball_features(resolution: int, scaled: bool) -> SparseTensor:
    """The voxels near a sphere of radius 0.3, and what a head would say of it."""
    side = torch.arange(resolution)
    coords = torch.cartesian_prod(side, side, side)
    corner = torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)])
    places = (coords[:, None] + corner) / resolution - 0.5
    sdf = places.norm(dim=2) - 0.3
    near = (sdf.amin(1) < 0) & (sdf.amax(1) > 0)
    near = ops.dilate(near.view(1, resolution, resolution, resolution))[0].flatten()
    feats = torch.zeros(int(near.sum()), 53)
    feats[:, :8] = (sdf[near] + 1 / resolution) * (resolution / 4 if scaled else 1)
    return SparseTensor(torch.nn.functional.pad(coords[near], (1, 0)).int(), feats)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_sphere(scaled):
    surface = sparseflex_surface(ball_features(24, scaled), 24, scaled=scaled)
    assert surface.vertices.norm(dim=1).sub(0.3).abs().max() < 3e-3
    a, b, c = surface.vertices[surface.faces].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert volume.item() == pytest.approx(4 / 3 * torch.pi * 0.3**3, rel=0.04)
    double = sparseflex_surface(ball_features(24, scaled), 24, scaled=scaled, bounds=1.0)
    assert torch.equal(double.faces, surface.faces)


def test_the_surface_ends_where_voxels_end():
    x = ball_features(24, True)
    upper = x.select(x.coords[:, 3] >= 12)
    surface = sparseflex_surface(upper, 24)
    assert 0 < len(surface.faces) < 0.6 * len(sparseflex_surface(x, 24).faces)
    assert surface.vertices[surface.faces].amin() >= -0.31
    assert surface.vertices[surface.faces][..., 2].amin() > -0.02
    assert len(sparseflex_surface(x.select(torch.zeros(len(x), dtype=torch.bool)), 24).faces) == 0


def test_wrong_heads():
    x = ball_features(8, True)
    with pytest.raises(ValueError, match="`x` must be of one item, got 2"):
        sparseflex_surface(SparseTensor.cat([x, x]), 8)
    with pytest.raises(ValueError, match="must have 53 channels, or 101 with colors, got 52"):
        sparseflex_surface(x.replace(x.feats[:, :52]), 8)
