import pytest
import torch
from sparse_cases import full_grid, random_values, random_voxels, sphere_voxels

from fastshape import ops, testing
from fastshape.ops import sparse_conv as conv_module
from fastshape.reference import sparse as reference

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["submanifold", "pointwise", "strided", "inverse", "strided_by_three"]


def table_of(kind, coords):
    """The table, the reference's rows, and how many rows its features have."""
    coarse = reference.downsample_voxels(coords.cpu())[0].to(coords.device)
    if kind == "submanifold":
        return ops.neighbor_table(coords), reference.neighbor_table(coords)
    if kind == "pointwise":
        return ops.neighbor_table(coords, kernel_size=1), reference.neighbor_table(coords, kernel_size=1)
    if kind == "strided_by_three":
        options = {"kernel_size": 3, "stride": 2}
    else:
        options = {"kernel_size": 2, "stride": 2}
    table, rows = (
        ops.neighbor_table(coords, coarse, **options),
        reference.neighbor_table(coords, coarse, **options),
    )
    if kind == "inverse":
        return table.transposed(), reference.invert_table(rows, len(coords))
    return table, rows


def inputs_of(rows, num_feats, in_channels, out_channels, dtype=torch.float32, seed=0):
    size = round(rows.shape[1] ** (1 / 3))
    feats = random_values(num_feats, in_channels, seed=seed, dtype=dtype)
    weight = random_values(out_channels, size, size, size, in_channels, seed=seed + 1, dtype=dtype)
    bias = random_values(out_channels, seed=seed + 2, dtype=dtype)
    grad = random_values(len(rows), out_channels, seed=seed + 3, dtype=dtype)
    return feats, weight, bias, grad


def num_feats_of(table):
    return len(table.rows if table.inverse is None else table.inverse)


def check(backend, coords, kind, in_channels, out_channels, dtype):
    """Result and gradients against the reference in float64, its own error allowed twice."""
    table, rows = table_of(kind, backend.put(coords))
    rows = rows.cpu()
    given = inputs_of(rows, num_feats_of(table), in_channels, out_channels, dtype)

    def run(convolve, tensors, table):
        feats, weight, bias, grad = (t.detach() for t in tensors)
        for tensor in (feats, weight, bias):
            tensor.requires_grad_()
        out = convolve(feats, weight, bias, table)
        out.backward(grad)
        return out, feats.grad, weight.grad, bias.grad

    result = run(ops.sparse_conv3d, backend.put(*given), table)
    exact = run(reference.sparse_conv3d, [t.double() for t in given], rows)
    # The reference of 16-bit floats rounds every product's sum, the kernel once.
    same = run(reference.sparse_conv3d, given, rows) if dtype.itemsize >= 4 else [None] * 4
    for got, want, precise in zip(result, exact, same, strict=True):
        assert got.dtype == dtype
        testing.assert_accurate(got, want, precise)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("in_channels", "out_channels"), [(8, 16), (3, 5)])
def test_against_the_reference(backend, kind, dtype, in_channels, out_channels):
    check(backend, random_voxels(70, 4), kind, in_channels, out_channels, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("in_channels", "out_channels"), [(1, 1), (72, 8), (40, 72), (33, 31), (200, 33), (16, 136)]
)
def test_channels(backend, dtype, in_channels, out_channels):
    """Tiles and vector registers that are full, and that are not."""
    check(backend, random_voxels(140, 4), "strided", in_channels, out_channels, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_several_tiles(backend, dtype):
    """Some hundred rows under the emulation, some thousand elsewhere."""
    coords = sphere_voxels(8 if backend.name == "emulated" else 20)
    check(backend, coords, "submanifold", 16, 8, dtype)


def test_instruction_sets(instruction_set):
    for dtype in FLOATS:
        for channels in ((3, 5), (150, 40)):
            check(testing.Backend("cpu"), random_voxels(100, 4), "submanifold", *channels, dtype)


def test_processors_without_bfloat16():
    """The same as float, rounded once, on a set that has no products of bfloat16."""
    coords = random_voxels(100, 5)
    table, rows = table_of("submanifold", coords)
    feats, weight, bias, _ = inputs_of(rows, len(coords), 8, 8, torch.bfloat16)
    with testing.instruction_set("avx2" if "avx2" in testing.instruction_sets() else "portable"):
        result = ops.sparse_conv3d(feats, weight, bias, table)
        wide = ops.sparse_conv3d(feats.float(), weight.float(), bias.float(), table)
    assert torch.equal(result, wide.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dense_grid(backend, dtype):
    """Of a full grid it is torch's dense convolution; of two in a batch too."""
    size = (5, 4, 6)
    dense = random_values(2, 8, *size, dtype=dtype)
    weight, bias = random_values(16, 3, 3, 3, 8, dtype=dtype), random_values(16, dtype=dtype)
    feats = dense.permute(0, 2, 3, 4, 1).flatten(0, 3).contiguous()
    table = ops.neighbor_table(backend.put(full_grid(*size, batches=2)))
    result = ops.sparse_conv3d(*backend.put(feats, weight, bias), table)
    kernel = weight.permute(0, 4, 1, 2, 3).double()
    expected = torch.nn.functional.conv3d(dense.double(), kernel, bias.double(), padding=1)
    expected = expected.permute(0, 2, 3, 4, 1).flatten(0, 3)
    testing.assert_accurate(result, expected, floor=2e-6 if dtype == torch.float32 else None)


@pytest.mark.parametrize("batches", [1, 2])
def test_dense_strided_and_transposed(backend, batches):
    coords = full_grid(4, 6, 2, batches=batches)
    coarse = full_grid(2, 3, 1, batches=batches)
    table = ops.neighbor_table(*backend.put(coords, coarse), kernel_size=2, stride=2)
    dense = random_values(batches, 3, 4, 6, 2, dtype=torch.float64)
    weight = random_values(5, 2, 2, 2, 3, dtype=torch.float64)
    feats = dense.permute(0, 2, 3, 4, 1).flatten(0, 3).contiguous()
    result = ops.sparse_conv3d(*backend.put(feats, weight), None, table)
    expected = torch.nn.functional.conv3d(dense, weight.permute(0, 4, 1, 2, 3), stride=2)
    testing.assert_accurate(result, expected.permute(0, 2, 3, 4, 1).flatten(0, 3))

    back = random_values(3, 2, 2, 2, 5, dtype=torch.float64)
    result = ops.sparse_conv3d(result, backend.put(back), None, table.transposed())
    expected = torch.nn.functional.conv_transpose3d(expected, back.permute(4, 0, 1, 2, 3), stride=2)
    testing.assert_accurate(result, expected.permute(0, 2, 3, 4, 1).flatten(0, 3))


def test_batches_do_not_meet(backend):
    coords = sphere_voxels(6)
    table = ops.neighbor_table(backend.put(coords))
    feats, weight, bias, _ = backend.put(*inputs_of(table.rows.cpu(), len(coords), 8, 8))
    alone = ops.sparse_conv3d(feats, weight, bias, table)
    both = ops.neighbor_table(backend.put(sphere_voxels(6, batches=2)))
    result = ops.sparse_conv3d(torch.cat([feats, feats]), weight, bias, both)
    assert torch.equal(result, torch.cat([alone, alone]))


def test_one_voxel(backend):
    """Only the kernel's middle is multiplied."""
    table = ops.neighbor_table(backend.put(torch.tensor([[7, 9, 0, 4]])))
    feats, weight, bias, _ = inputs_of(table.rows.cpu(), 1, 8, 4, torch.float64)
    result = ops.sparse_conv3d(*backend.put(feats, weight, bias), table)
    testing.assert_accurate(result, feats @ weight[:, 1, 1, 1].T + bias)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(backend, kind):
    coords = random_voxels(12, 3)
    table, rows = table_of(kind, backend.put(coords))
    feats, weight, bias, _ = inputs_of(rows, num_feats_of(table), 2, 2)
    testing.check_gradients(
        lambda f, w, b: ops.sparse_conv3d(f, w, b, table), *backend.put(feats, weight, bias)
    )


# ---- Bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_order_of_voxels_makes_no_difference(backend, dtype):
    coords = sphere_voxels(9)
    order = torch.randperm(len(coords), generator=testing.generator(0))
    table, rows = table_of("submanifold", backend.put(coords))
    feats, weight, bias, _ = inputs_of(rows, len(coords), 24, 8, dtype)
    result = ops.sparse_conv3d(*backend.put(feats, weight, bias), table)
    other = ops.neighbor_table(backend.put(coords[order]))
    permuted = ops.sparse_conv3d(*backend.put(feats[order], weight, bias), other)
    assert torch.equal(permuted.cpu(), result.cpu()[order])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
def test_the_same_bits_for_any_number_of_threads(dtype, kind):
    coords = sphere_voxels(40)
    table, rows = table_of(kind, coords) if kind != "submanifold" else (ops.neighbor_table(coords), None)
    rows = table.rows
    given = inputs_of(rows, num_feats_of(table), 18, 34, dtype)

    def run(threads):
        with testing.num_threads(threads):
            feats, weight, bias = (t.clone().requires_grad_() for t in given[:3])
            out = ops.sparse_conv3d(feats, weight, bias, table)
            out.backward(given[3])
            return out, feats.grad, weight.grad

    results = [run(threads) for threads in (1, 2, 5)]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_on_every_device(backend, dtype):
    """With fused multiply-adds, in the order of (offset, input channel)."""
    if testing.instruction_sets() == ["portable"]:
        pytest.skip("this processor has no fused multiply-add")
    coords = sphere_voxels(7)
    rows = reference.neighbor_table(coords)
    feats, weight, bias, _ = inputs_of(rows, len(coords), 5, 3, dtype)
    result = ops.sparse_conv3d(*backend.put(feats, weight, bias), ops.neighbor_table(backend.put(coords)))
    expected = ops_on_cpu(feats, weight, bias, coords)
    assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schedules_make_no_difference(dtype):
    """Which thread of the emulated kernels runs first, and which block."""
    module = testing.emulated_module()
    if module is None:
        pytest.skip("no emulated module")
    coords = sphere_voxels(7)
    results = []
    with testing.emulated():
        for schedule in ("ascending", "descending", "random"):
            module.set_emulation_schedule(schedule, 7)
            try:
                table = ops.neighbor_table(coords)
                feats, weight, bias, grad = inputs_of(table.rows, len(coords), 40, 8, dtype)
                inputs = [t.requires_grad_() for t in (feats, weight, bias)]
                out = ops.sparse_conv3d(*inputs, table)
                results.append([out, *torch.autograd.grad(out, inputs, grad)])
            finally:
                module.set_emulation_schedule("ascending", 0)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def ops_on_cpu(feats, weight, bias, coords):
    from fastshape import _C, _library

    with _library.use_backend(_C):
        return ops.sparse_conv3d(feats, weight, bias, ops.neighbor_table(coords))


# ---- Edges -------------------------------------------------------------------------------------------------


def test_nothing(backend):
    nothing = backend.put(torch.zeros(0, 4, dtype=torch.int32))
    some = backend.put(full_grid(2, 2, 2))
    weight, bias = backend.put(torch.ones(3, 2, 2, 2, 4), torch.ones(3))
    for coords, queries, count in ((nothing, nothing, 0), (some, nothing, 0), (nothing, some, 8)):
        table = ops.neighbor_table(coords, queries, kernel_size=2, stride=2)
        feats = backend.put(torch.ones(len(coords), 4)).requires_grad_()
        weight.requires_grad_()
        weight.grad = None
        result = ops.sparse_conv3d(feats, weight, bias, table)
        assert torch.equal(result.cpu(), torch.ones(count, 3))
        result.sum().backward()
        assert torch.equal(feats.grad, torch.zeros_like(feats))
        assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_no_channels(backend):
    table = ops.neighbor_table(backend.put(full_grid(2, 1, 1)))
    empty = ops.sparse_conv3d(*backend.put(torch.ones(2, 0), torch.ones(3, 3, 3, 3, 0), torch.ones(3)), table)
    assert torch.equal(empty.cpu(), torch.ones(2, 3))
    none = ops.sparse_conv3d(*backend.put(torch.ones(2, 4), torch.ones(0, 3, 3, 3, 4)), None, table)
    assert none.shape == (2, 0)


def test_features_that_start_anywhere(backend):
    """A slice whose rows do not start at multiples of 16 bytes."""
    coords = backend.put(full_grid(3, 3, 1))
    table = ops.neighbor_table(coords)
    weight = backend.put(random_values(8, 3, 3, 3, 8, dtype=torch.float16))
    buffer = backend.put(random_values(9 * 8 + 1, dtype=torch.float16))
    feats = buffer[1:].view(9, 8)
    result = ops.sparse_conv3d(feats, weight, None, table)
    testing.assert_accurate(result, ops.sparse_conv3d(feats.double(), weight.double(), None, table))


def test_wrong_input(backend):
    table = ops.neighbor_table(backend.put(full_grid(2, 2, 1)))
    feats, weight, bias = backend.put(torch.ones(4, 8), torch.ones(5, 3, 3, 3, 8), torch.ones(5))
    with pytest.raises(
        TypeError, match="`feats` must be float32 or float64 or float16 or bfloat16, got int64"
    ):
        ops.sparse_conv3d(feats.long(), weight, bias, table)
    with pytest.raises(TypeError, match="`weight` must be float32 as `feats`, got float16"):
        ops.sparse_conv3d(feats, weight.half(), bias, table)
    with pytest.raises(TypeError, match="`bias` must be float32 as `feats`, got float64"):
        ops.sparse_conv3d(feats, weight, bias.double(), table)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(out_channels, n, n, n, in_channels\)"):
        ops.sparse_conv3d(feats, weight[:, :2, :2, :2], bias, table)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(out_channels, n, n, n, in_channels\)"):
        ops.sparse_conv3d(feats, weight.flatten(1, 3), bias, table)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(out_channels, K, in_channels\)"):
        ops.sparse_conv3d(feats[:, :4].contiguous(), weight, bias, table)
    with pytest.raises(ValueError, match="`weight` must be contiguous"):
        ops.sparse_conv3d(feats, weight.transpose(1, 2), bias, table)
    with pytest.raises(ValueError, match=r"`bias` must have shape \(out_channels,\), got \(4,\)"):
        ops.sparse_conv3d(feats, weight, bias[:4], table)
    with pytest.raises(ValueError, match="`feats` must be contiguous"):
        ops.sparse_conv3d(feats.T.contiguous().T, weight, bias, table)
    with pytest.raises(ValueError, match="a row for each of the table's 4 voxels, got 3"):
        ops.sparse_conv3d(feats[:3], weight, bias, table)
    with pytest.raises(ValueError, match=r"`feats` must have shape \(N, in_channels\), got \(4,\)"):
        ops.sparse_conv3d(feats[:, 0].contiguous(), weight, bias, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators(dtype):
    coords = random_voxels(40, 4)
    table, rows = table_of("strided", coords)
    feats, weight, bias, grad = inputs_of(rows, len(coords), 8, 8, dtype)
    testing.check_operator(conv_module._sparse_conv3d_op, feats, weight.flatten(1, 3), bias, table.rows, None)
    testing.check_operator(conv_module._weight_grad_op, grad, feats, table.rows)


def test_compiles():
    coords = random_voxels(40, 4)
    feats, weight, bias, _ = inputs_of(reference.neighbor_table(coords), len(coords), 8, 8)

    def convolve(feats, weight, bias, coords):
        return ops.sparse_conv3d(feats, weight, bias, ops.neighbor_table(coords))

    testing.check_compiles(convolve, feats, weight, bias, coords)
    testing.check_compiles(convolve, feats.requires_grad_(), weight, bias, coords)
