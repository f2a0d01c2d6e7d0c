import pytest
import torch
from sparse_cases import random_values

from fastshape import ops, testing
from fastshape.ops import segments as segments_module
from fastshape.reference import sparse as reference

MODES = ["sum", "mean", "mean_with_zero", "max"]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def random_index(count, num_segments, seed=0):
    """Some of them below 0 or too large, most segments not empty."""
    return torch.randint(-1, num_segments + 1, (count,), generator=testing.generator(seed))


@pytest.mark.parametrize(("count", "num_segments"), [(1, 1), (200, 30), (30, 200), (1000, 3), (0, 4), (5, 0)])
def test_make_segments(backend, count, num_segments):
    index = random_index(count, num_segments)
    segments = ops.make_segments(backend.put(index), num_segments)
    clean = torch.where(index < 0, num_segments, index)
    assert torch.equal(segments.order.cpu().long(), clean.sort(stable=True).indices)
    counts = torch.bincount(clean, minlength=num_segments + 1)[:num_segments]
    assert torch.equal(segments.offsets.cpu(), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    assert segments.num_segments == num_segments


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 5, 70])
def test_reduce(backend, mode, dtype, width):
    index, values = random_index(200, 30), random_values(200, width, dtype=dtype)
    segments = ops.make_segments(backend.put(index), 30)
    result = ops.segment_reduce(backend.put(values), segments, mode=mode)
    assert result.dtype == dtype
    exact = reference.segment_reduce(values.double(), index, 30, mode)
    testing.assert_accurate(result, exact, reference.segment_reduce(values, index, 30, mode))
    if mode == "max":
        assert torch.equal(result.cpu(), exact.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gather(backend, dtype):
    index, values = random_index(100, 20), random_values(20, 7, dtype=dtype)
    segments = ops.make_segments(backend.put(index), 20)
    result = ops.gather_segments(backend.put(values), segments)
    assert torch.equal(result.cpu(), reference.gather_segments(values, index))


def test_sixteen_bits_are_summed_in_float(backend):
    """4096 ones in bfloat16 would stay at 256."""
    values = torch.ones(4096, 1, dtype=torch.bfloat16)
    segments = ops.make_segments(backend.put(torch.zeros(4096, dtype=torch.int64)), 1)
    assert ops.segment_reduce(backend.put(values), segments, mode="sum").item() == 4096


def test_max_of_nan_and_of_equals(backend):
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([[1.0, -inf, 3.0], [nan, -inf, 3.0], [2.0, -inf, 1.0]], dtype=torch.float64)
    values = backend.put(values).requires_grad_()
    segments = ops.make_segments(backend.put(torch.zeros(3, dtype=torch.int64)), 2)
    result = ops.segment_reduce(values, segments, mode="max")
    torch.testing.assert_close(
        result.cpu(), torch.tensor([[nan, -inf, 3], [0, 0, 0]]).double(), equal_nan=True
    )
    result.backward(torch.ones_like(result))
    assert values.grad.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("mode", MODES)
def test_gradients(backend, mode):
    index, values = random_index(25, 6), random_values(25, 3)
    segments = ops.make_segments(backend.put(index), 6)
    testing.check_gradients(lambda v: ops.segment_reduce(v, segments, mode=mode), backend.put(values))
    testing.check_gradients(lambda v: ops.gather_segments(v, segments), backend.put(random_values(6, 3)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_against_the_reference(backend, mode, dtype):
    index, values, grad = random_index(80, 9), random_values(80, 5, dtype=dtype), random_values(9, 5, seed=1)
    given = backend.put(values).requires_grad_()
    segments = ops.make_segments(backend.put(index), 9)
    ops.segment_reduce(given, segments, mode=mode).backward(backend.put(grad.to(dtype)))
    wide = values.double().requires_grad_()
    reference.segment_reduce(wide, index, 9, mode).backward(grad.to(dtype).double())
    testing.assert_accurate(given.grad, wide.grad)


def test_the_same_bits_for_any_number_of_threads():
    index, values = random_index(20000, 40), random_values(20000, 100)
    results = []
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            segments = ops.make_segments(index, 40)
            results.append([ops.segment_reduce(values, segments, mode=mode) for mode in MODES])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_same_bits_on_every_device(backend):
    index, values = random_index(500, 7), random_values(500, 9)
    result = ops.segment_reduce(backend.put(values), ops.make_segments(backend.put(index), 7))
    expected = []
    for s in range(7):
        rows, total = values[index == s], torch.zeros(9)
        for row in rows:
            total = total + row
        expected.append(total / max(1, len(rows)))
    assert torch.equal(result.cpu(), torch.stack(expected))


def test_nothing(backend):
    segments = ops.make_segments(backend.put(torch.zeros(0, dtype=torch.int64)), 3)
    values = backend.put(torch.zeros(0, 4)).requires_grad_()
    for mode in MODES:
        result = ops.segment_reduce(values, segments, mode=mode)
        assert result.tolist() == [[0] * 4] * 3
        result.sum().backward()
    assert ops.gather_segments(backend.put(torch.ones(3, 4)), segments).shape == (0, 4)
    assert ops.segment_reduce(backend.put(torch.zeros(0, 0)), segments).shape == (3, 0)


def test_wrong_input(backend):
    index, values = backend.put(torch.tensor([0, 1, 1]), torch.ones(3, 2))
    segments = ops.make_segments(index, 2)
    with pytest.raises(TypeError, match="`index` must be int64"):
        ops.make_segments(index.int(), 2)
    with pytest.raises(ValueError, match=r"`index` must have shape \(N,\)"):
        ops.make_segments(index[None], 2)
    with pytest.raises(ValueError, match="`index` must be contiguous"):
        ops.make_segments(index[::2], 2)
    with pytest.raises(ValueError, match="`num_segments` must not be negative, got -1"):
        ops.make_segments(index, -1)
    with pytest.raises(TypeError, match="`values` must be float32 or float64 or float16 or bfloat16"):
        ops.segment_reduce(values.int(), segments)
    with pytest.raises(ValueError, match=r"`values` must have shape \(N, C\), got \(3,\)"):
        ops.segment_reduce(values[:, 0].contiguous(), segments)
    with pytest.raises(ValueError, match="`values` must be contiguous"):
        ops.segment_reduce(values.T.contiguous().T, segments)
    with pytest.raises(ValueError, match=r"`order` must have shape \(N,\)|`order` must have shape"):
        ops.segment_reduce(values[:2], segments)
    with pytest.raises(
        ValueError, match="`mode` must be one of sum, mean, mean_with_zero, max, got 'median'"
    ):
        ops.segment_reduce(values, segments, mode="median")
    with pytest.raises(ValueError, match="a row for each of 2 segments, got 3"):
        ops.gather_segments(values, segments)
    with pytest.raises(ValueError, match=r"`values` must have shape \(S, C\), got \(2,\)"):
        ops.gather_segments(values[:2, 0].contiguous(), segments)


def test_operators():
    segments = ops.make_segments(random_index(40, 6), 6)
    values, grad = random_values(40, 3), random_values(6, 3)
    testing.check_operator(segments_module._make_segments_op, segments.ids, 6)
    for mode in range(4):
        arguments = (values, segments.order, segments.offsets, mode)
        testing.check_operator(segments_module._segment_reduce_op, *arguments)
    testing.check_operator(segments_module._gather_segments_op, grad, segments.ids, None)
    best = torch.zeros(6, 3, dtype=torch.int32)
    testing.check_operator(segments_module._gather_segments_op, grad, segments.ids, best)


@pytest.mark.parametrize("mode", MODES)
def test_compiles(mode):
    index, values = random_index(40, 6), random_values(40, 3)

    def pooled(values, index):
        segments = ops.make_segments(index, 6)
        return ops.gather_segments(ops.segment_reduce(values, segments, mode=mode), segments)

    testing.check_compiles(pooled, values, index)
    testing.check_compiles(pooled, values.requires_grad_(), index)
