import pytest
import torch
from sparse_cases import full_grid, random_voxels, sphere_voxels

from fastshape import _library, ops, testing
from fastshape.ops import sparse as sparse_module
from fastshape.reference import sparse as reference

INTEGERS = [torch.int32, torch.int64]

# ---- lookup_voxels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(("count", "size"), [(1, 1), (200, 4), (500, 30)])
def test_lookup(backend, dtype, count, size):
    """Voxels that are there twice among them: the first row is found."""
    coords = random_voxels(count, size, dtype=dtype, distinct=False)
    queries = random_voxels(300, size + 2, batches=3, seed=1, dtype=dtype, distinct=False) - 1
    found = ops.lookup_voxels(*backend.put(coords, queries))
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), reference.lookup_voxels(coords, queries))


@pytest.mark.parametrize("step", [4, 1 << 10, 1 << 17])
def test_lookup_of_a_coarse_lattice(backend, step):
    """Coordinates that share their low bits, up to 2^20, find their slots too."""
    coords = full_grid(8, 8, 8) * torch.tensor([1, step, step, step], dtype=torch.int32)
    coords = coords[torch.randperm(len(coords), generator=testing.generator(0))].contiguous()
    rows = ops.lookup_voxels(*backend.put(coords, coords.flip(0).contiguous()))
    assert torch.equal(rows.cpu(), torch.arange(len(coords)).flip(0))


def test_lookup_of_large_coordinates(backend):
    """Nothing is packed: coordinates beyond 32 bits, and negative ones, are other voxels."""
    big = 2**40
    coords = torch.tensor([[0, big, 0, 0], [big, 0, 0, 0], [0, -1, -big, 7], [0, 0, 0, 0]])
    queries = torch.cat([coords.flip(0), torch.tensor([[0, big + 1, 0, 0], [0, 0, big, 0]])])
    assert ops.lookup_voxels(*backend.put(coords, queries)).tolist() == [3, 2, 1, 0, -1, -1]


def test_lookup_in_nothing(backend):
    nothing = torch.zeros(0, 4, dtype=torch.int32)
    some = full_grid(2, 1, 1)
    assert ops.lookup_voxels(*backend.put(nothing, some)).tolist() == [-1, -1]
    assert ops.lookup_voxels(*backend.put(some, nothing)).shape == (0,)


# ---- neighbor_table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 2)])
def test_submanifold_table(backend, dtype, kernel_size, dilation):
    coords = random_voxels(150, 6, dtype=dtype)
    options = {"kernel_size": kernel_size, "dilation": dilation}
    table = ops.neighbor_table(backend.put(coords), **options)
    expected = reference.neighbor_table(coords, **options)
    assert table.inverse is None
    assert table.rows.dtype == torch.int32
    assert torch.equal(table.rows.cpu(), expected)
    assert torch.equal(reference.invert_table(expected, len(coords)), expected.flip(1))
    assert torch.equal(table.transposed().rows.cpu(), expected.flip(1))


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (3, 2), (3, 1), (1, 1), (2, 1)])
def test_table_of_queries(backend, kernel_size, stride):
    coords = random_voxels(150, 8)
    queries = reference.downsample_voxels(coords, stride)[0]
    queries = torch.cat([queries, queries[:3] + torch.tensor([5, 0, 0, 0], dtype=torch.int32)])
    options = {"kernel_size": kernel_size, "stride": stride}
    table = ops.neighbor_table(*backend.put(coords, queries), **options)
    expected = reference.neighbor_table(coords, queries, **options)
    assert torch.equal(table.rows.cpu(), expected)
    inverse = reference.invert_table(expected, len(coords))
    assert torch.equal(table.inverse.cpu(), inverse)
    back = table.transposed()
    assert torch.equal(back.rows.cpu(), inverse)
    assert torch.equal(back.inverse.cpu(), expected)


@pytest.mark.parametrize("kernel_size", [1, 2, 3])
def test_order_of_rows(backend, kernel_size):
    """Rows with neighbors at the same offsets stand together."""
    coords = random_voxels(200, 6)
    rows = reference.neighbor_table(coords, kernel_size=kernel_size)
    here, order = backend.put(rows, torch.empty(len(rows), dtype=torch.int32))
    module = _library.backend()
    workspace = None
    if backend.name != "cpu":
        size = module.order_rows_workspace_bytes(len(rows))
        workspace = torch.empty(size, dtype=torch.uint8, device=here.device)
    module.order_rows(here, workspace, order)
    bits = ((rows >= 0).long() << torch.arange(rows.shape[1])).sum(1)
    assert torch.equal(order.cpu().long(), bits.sort(stable=True).indices)
    table = ops.neighbor_table(*backend.put(coords, coords), kernel_size=kernel_size)
    if backend.name == "cpu":
        assert table.order.shape == table.inverse_order.shape == (0,)
    else:
        assert torch.equal(table.order.cpu(), order.cpu())
        assert table.inverse_order.long().sort().values.tolist() == list(range(len(coords)))


@pytest.mark.parametrize("schedule", ["ascending", "descending", "random"])
def test_table_does_not_depend_on_who_comes_first(schedule):
    module = testing.emulated_module()
    if module is None:
        pytest.skip("no emulated module")
    coords = torch.cat([sphere_voxels(10), sphere_voxels(10).flip(0)])
    with testing.emulated():
        module.set_emulation_schedule(schedule, 7)
        try:
            rows = ops.lookup_voxels(coords, coords)
            with pytest.raises(ValueError, match=f"again in row {len(coords) // 2}"):
                ops.neighbor_table(coords)
        finally:
            module.set_emulation_schedule("ascending", 0)
    assert torch.equal(rows, reference.lookup_voxels(coords, coords))


def test_threads_make_no_difference():
    coords = torch.cat([sphere_voxels(40), sphere_voxels(40).flip(0)])
    found = []
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            found.append(ops.lookup_voxels(coords, coords))
            with pytest.raises(ValueError, match=f"again in row {len(coords) // 2}"):
                ops.neighbor_table(coords)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_tables_of_nothing(backend):
    nothing = backend.put(torch.zeros(0, 4, dtype=torch.int32))
    some = backend.put(full_grid(2, 2, 1))
    assert ops.neighbor_table(nothing).rows.shape == (0, 27)
    table = ops.neighbor_table(some, nothing, kernel_size=2, stride=2)
    assert table.rows.shape == (0, 8)
    assert table.inverse.tolist() == [[-1] * 8] * 4
    assert ops.neighbor_table(nothing, some).rows.tolist() == [[-1] * 27] * 4


def test_wrong_tables(backend):
    coords = backend.put(full_grid(2, 2, 2))
    with pytest.raises(TypeError, match=r"`coords` must be int32 or int64"):
        ops.neighbor_table(coords.float())
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 4\), got \(8, 3\)"):
        ops.neighbor_table(coords[:, 1:].contiguous())
    with pytest.raises(ValueError, match="`coords` must be contiguous"):
        ops.neighbor_table(coords[::2])
    with pytest.raises(TypeError, match="`queries` must be int32 as `coords`, got int64"):
        ops.neighbor_table(coords, coords.long())
    with pytest.raises(ValueError, match=r"`queries` must have shape \(M, 4\)"):
        ops.neighbor_table(coords, coords.flatten())
    with pytest.raises(ValueError, match="`kernel_size` must be 1, 2 or 3, got 5"):
        ops.neighbor_table(coords, kernel_size=5)
    with pytest.raises(ValueError, match="`stride` must be positive, got 0"):
        ops.neighbor_table(coords, coords, stride=0)
    with pytest.raises(ValueError, match="`dilation` must be positive, got -1"):
        ops.neighbor_table(coords, dilation=-1)
    with pytest.raises(ValueError, match="without `queries`, `kernel_size` must be odd"):
        ops.neighbor_table(coords, kernel_size=2)
    twice = torch.cat([coords, coords[3:4]])
    with pytest.raises(
        ValueError, match=r"`coords` must have no voxel twice, got \[0, 0, 1, 1\] again in row 8"
    ):
        ops.neighbor_table(twice)
    with pytest.raises(ValueError, match="`queries` must have no voxel twice"):
        ops.neighbor_table(coords, twice)


# ---- unique_voxels, downsample_voxels ----------------------------------------------------------------------


def check_segments(segments, index, num_segments):
    assert segments.num_segments == num_segments
    assert torch.equal(segments.ids.cpu(), index)
    clean = torch.where((index >= 0) & (index < num_segments), index, num_segments)
    order = clean.sort(stable=True).indices
    assert torch.equal(segments.order.cpu().long(), order)
    counts = torch.bincount(clean, minlength=num_segments + 1)[:num_segments]
    assert torch.equal(segments.offsets.cpu(), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(
    ("count", "size", "factor"), [(1, 9, 1), (300, 4, 1), (300, 9, 2), (200, 30, 4), (300, 9, 3)]
)
def test_unique(backend, dtype, count, size, factor):
    coords = random_voxels(count, size, batches=3, dtype=dtype, distinct=False)
    voxels, segments = ops.downsample_voxels(backend.put(coords), factor)
    expected, index = reference.downsample_voxels(coords, factor)
    assert voxels.dtype == dtype
    assert torch.equal(voxels.cpu(), expected)
    check_segments(segments, index, len(expected))
    if factor == 1:
        same = ops.unique_voxels(backend.put(coords))
        assert torch.equal(same.coords.cpu(), expected)


def test_unique_of_sorted_ones_is_the_list(backend):
    coords = sphere_voxels(12, batches=2)
    voxels, segments = ops.unique_voxels(backend.put(coords))
    assert torch.equal(voxels.cpu(), coords)
    check_segments(segments, torch.arange(len(coords)), len(coords))


def test_unique_of_axes_of_twenty_bits(backend):
    most = 2**20 - 1
    coords = torch.tensor([[15, most, 0, most], [0, 0, 0, 0], [15, most, 0, most], [3, 0, most, 1]])
    voxels, segments = ops.unique_voxels(backend.put(coords))
    assert voxels.tolist() == [[0, 0, 0, 0], [3, 0, most, 1], [15, most, 0, most]]
    assert segments.ids.tolist() == [2, 0, 2, 1]


def test_unique_of_nothing(backend):
    voxels, segments = ops.downsample_voxels(backend.put(torch.zeros(0, 4, dtype=torch.int32)))
    assert voxels.shape == (0, 4)
    assert segments.offsets.tolist() == [0]
    assert segments.ids.shape == segments.order.shape == (0,)


def test_wrong_voxels(backend):
    coords = backend.put(full_grid(2, 2, 2))
    with pytest.raises(TypeError, match="`coords` must be int32 or int64"):
        ops.unique_voxels(coords.double())
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 4\)"):
        ops.unique_voxels(coords[:, :3].contiguous())
    with pytest.raises(ValueError, match="`coords` must be contiguous"):
        ops.unique_voxels(coords[::2])
    with pytest.raises(ValueError, match="`coords` must not be negative"):
        ops.unique_voxels(coords - 1)
    with pytest.raises(ValueError, match="at most 64 together"):
        ops.unique_voxels(coords.long() << 22)
    with pytest.raises(ValueError, match="`factor` must be positive, got 0"):
        ops.downsample_voxels(coords, 0)
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 4\), got \(8, 3\)"):
        ops.subdivide_voxels(coords[:, 1:])


# ---- subdivide_voxels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
def test_subdivide(backend, dtype):
    coords = random_voxels(40, 9, dtype=dtype)
    children = ops.subdivide_voxels(backend.put(coords))
    assert children.dtype == dtype
    assert torch.equal(children.cpu(), reference.subdivide_voxels(coords))
    coarse, segments = ops.downsample_voxels(children.contiguous())
    assert torch.equal(coarse.cpu(), coords.unique(dim=0))
    assert segments.offsets.diff().unique().tolist() == [8]


def test_subdivide_features(backend):
    feats = backend.put(torch.arange(6.0).view(3, 2).requires_grad_())
    children = ops.subdivide_features(feats)
    assert torch.equal(children, feats.repeat_interleave(8, 0))
    children.backward(torch.ones_like(children))
    assert torch.equal(feats.grad, torch.full_like(feats, 8))


# ---- Operators ---------------------------------------------------------------------------------------------


def test_operators():
    coords = random_voxels(60, 6)
    queries = reference.downsample_voxels(coords)[0]
    testing.check_operator(sparse_module._neighbor_table_op, coords, None, 3, 1, 1)
    testing.check_operator(sparse_module._neighbor_table_op, coords, queries, 2, 2, 1)
    testing.check_operator(sparse_module._lookup_voxels_op, coords, queries)
    testing.check_operator(sparse_module._unique_voxels_op, coords, 2)


def test_compiles():
    coords = random_voxels(60, 6)

    def tables(coords):
        coarse = ops.downsample_voxels(coords).coords
        table = ops.neighbor_table(coords, coarse, kernel_size=2, stride=2)
        return coarse, table.rows, table.inverse, ops.lookup_voxels(coords, ops.subdivide_voxels(coarse))

    testing.check_compiles(tables, coords)
