import pytest
import torch

from fastshape import ops, testing
from fastshape.ops import quantize
from fastshape.reference import quantize as reference

SIZES = [(1, 1, 1), (37, 53, 16), (130, 700, 4), (96, 1, 8), (50, 300, 33), (7, 64, 256), (530, 40, 5)]


def vectors(num_rows, num_codes, dim, seed=0, dtype=torch.float32):
    g = testing.generator(seed)
    x = torch.randn(num_rows, dim, generator=g, dtype=dtype)
    return x, torch.randn(num_codes, dim, generator=g, dtype=dtype)


def test_by_hand():
    codebook = torch.tensor([[0.0, 0], [4, 0], [0, 4], [4, 0]])
    x = torch.tensor([[3.0, 1], [1, 3], [-9, -9], [2, 0]])
    # (2, 0) is as far from code 0 as from codes 1 and 3.
    assert reference.nearest_code(x, codebook).tolist() == [1, 2, 0, 0]
    indices, square_distance = reference.topk_codes(x[:1], codebook, 3)
    assert indices.tolist() == [[1, 3, 0]]
    assert square_distance.tolist() == [[2, 2, 10]]
    directions = torch.tensor([[9.0, 9.0], [0.1, 0.0]])
    assert reference.nearest_code(torch.tensor([[1.0, 0.2]]), directions, cosine=True).tolist() == [1]
    sums, counts = reference.code_sums(x, torch.tensor([1, 1, 5, 0]), 3)
    assert sums.tolist() == [[2, 0], [4, 4], [0, 0]]
    assert counts.tolist() == [1, 2, 0]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_against_the_reference(backend, sizes, dtype, cosine):
    x, codebook = vectors(*sizes, dtype=dtype)
    expected = reference.nearest_code(x, codebook, cosine)
    x, codebook = backend.put(x, codebook)
    indices, counts = ops.nearest_code(x, codebook, cosine=cosine, return_counts=True)
    assert torch.equal(indices.cpu(), expected)
    assert torch.equal(counts.cpu(), expected.bincount(minlength=sizes[1]))
    assert torch.equal(ops.nearest_code(x, codebook, cosine=cosine), indices)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES)
def test_top_codes(backend, sizes, dtype, cosine):
    x, codebook = vectors(*sizes, dtype=dtype)
    for k in {1, min(5, sizes[1]), min(32, sizes[1])}:
        expected = reference.topk_codes(x, codebook, k, cosine)
        result = ops.topk_codes(*backend.put(x, codebook), k, cosine=cosine)
        assert torch.equal(result[0].cpu(), expected[0])
        assert torch.equal(result[1].cpu(), expected[1])


def test_instruction_sets(instruction_set):
    """More codes than a block of the first cache, more rows than a piece of work."""
    for sizes in ((200, 3000, 16), (40, 65, 3), (13, 40, 255)):
        for dtype in (torch.float32, torch.float64):
            x, codebook = vectors(*sizes, seed=1, dtype=dtype)
            assert torch.equal(ops.nearest_code(x, codebook), reference.nearest_code(x, codebook))
            result = ops.topk_codes(x, codebook, 7)
            expected = reference.topk_codes(x, codebook, 7)
            assert torch.equal(result[0], expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_to_the_lowest_index(backend, dtype):
    """Codes on a lattice, each four times: distances are exact."""
    g = testing.generator(3)
    codebook = torch.randint(-2, 3, (60, 3), generator=g).to(dtype).repeat(4, 1)
    codebook = torch.cat([codebook, -codebook.flip(0)])  # the mean is zero
    x = torch.randint(-3, 4, (150, 3), generator=g).to(dtype) / 2
    distance = (x[:, None] - codebook).square().sum(-1)
    expected = distance.argsort(dim=1, stable=True)
    result = ops.topk_codes(*backend.put(x, codebook), 9)[0].cpu()
    assert torch.equal(result, expected[:, :9])
    assert torch.equal(ops.nearest_code(*backend.put(x, codebook)).cpu(), expected[:, 0])


@pytest.mark.parametrize("offset", [0.0, 30.0, 300.0])
@pytest.mark.parametrize("scale", [1e-30, 3e-5, 1.0, 1e25])
def test_offsets_and_scales(backend, scale, offset):
    """What vectors and codes have in common, and their scale, cost no digits."""
    x, codebook = vectors(200, 500, 16, seed=2, dtype=torch.float64)
    x, codebook = ((x + offset) * scale).float(), ((codebook + offset) * scale).float()
    square = (x.double()[:, None] - codebook.double()).square().sum(-1)
    best = square.amin(1)
    found = square.gather(1, ops.nearest_code(*backend.put(x, codebook)).cpu()[:, None])[:, 0]
    assert (found <= best * (1 + 1e-5)).all()


def test_numbers_that_are_none(backend):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[nan, 0.0], [0.0, 1.0], [inf, inf]])
    codebook = torch.tensor([[1.0, 0.0], [nan, 1.0], [0.0, 0.9]])
    # The mean of the codes is NaN, and so is every score.
    assert ops.nearest_code(*backend.put(x, codebook)).tolist() == [0, 0, 0]
    codebook[1] = torch.tensor([-1.0, 0.5])
    assert ops.nearest_code(*backend.put(x[:2], codebook)).tolist() == [0, 2]
    assert ops.nearest_code(*backend.put(x[:2], torch.zeros(3, 2)), cosine=True).tolist() == [0, 0]
    assert ops.nearest_code(*backend.put(x[1:2], torch.zeros(3, 2))).tolist() == [0]


def test_half_precision(backend):
    x, codebook = vectors(60, 90, 8)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = x.to(dtype)
        expected = ops.nearest_code(*backend.put(rounded.float(), codebook))
        assert torch.equal(ops.nearest_code(*backend.put(rounded, codebook)), expected)
        both = ops.nearest_code(*backend.put(rounded, codebook.to(dtype)))
        assert torch.equal(both, ops.nearest_code(*backend.put(rounded.float(), codebook.to(dtype).float())))


def test_threads_and_turns(backend):
    x, codebook = vectors(777, 333, 16, seed=4)
    x, codebook = backend.put(x, codebook)
    expected = ops.nearest_code(x, codebook, return_counts=True)
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            result = ops.nearest_code(x, codebook, return_counts=True)
            assert torch.equal(result[0], expected[0])
            assert torch.equal(result[1], expected[1])
    for rows in (1, 5, 96, 500):  # a row's code does not depend on the others
        assert torch.equal(ops.nearest_code(x[:rows], codebook), expected[0][:rows])


def test_memory_is_not_n_by_k():
    x, codebook = vectors(5000, 4000, 8)
    assert testing.peak_bytes(lambda: ops.nearest_code(x, codebook)) < 5000 * 4000 / 50


def test_shapes_and_empty_input(backend):
    x, codebook = vectors(24, 10, 4)
    x, codebook = backend.put(x, codebook)
    flat = ops.nearest_code(x, codebook)
    assert torch.equal(ops.nearest_code(x.view(2, 3, 4, 4), codebook), flat.view(2, 3, 4))
    assert ops.nearest_code(x[0], codebook).shape == ()
    indices, counts = ops.nearest_code(x[:0], codebook, return_counts=True)
    assert indices.shape == (0,)
    assert counts.tolist() == [0] * 10
    assert ops.topk_codes(x[:0].view(0, 3, 4), codebook, 2)[0].shape == (0, 3, 2)


def test_wrong_input(backend):
    x, codebook = backend.put(*vectors(6, 5, 4))
    with pytest.raises(ValueError, match=r"`x` must have as many components as the codes.*\(6, 3\)"):
        ops.nearest_code(x[:, :3].contiguous(), codebook)
    with pytest.raises(ValueError, match="`x` must be contiguous"):
        ops.nearest_code(x[:, :4].T.contiguous().T, codebook)
    with pytest.raises(ValueError, match=r"`codebook` must have shape \(K, D\), got \(4,\)"):
        ops.nearest_code(x, codebook[0])
    with pytest.raises(ValueError, match="`codebook` must have 1 to 65536 codes, got 0"):
        ops.nearest_code(x, codebook[:0])
    with pytest.raises(ValueError, match="1 to 256 components a code, got 257"):
        ops.nearest_code(*backend.put(torch.zeros(2, 257), torch.zeros(3, 257)))
    with pytest.raises(TypeError, match="`x` must be float32 or float64, got int64"):
        ops.nearest_code(x.long(), codebook)
    with pytest.raises(TypeError, match="`codebook` must be float32 as `x`, got float64"):
        ops.nearest_code(x, codebook.double())
    for k in (0, 6, -1):
        with pytest.raises(ValueError, match=rf"`k` must be in \[1, 5\], got {k}"):
            ops.topk_codes(x, codebook, k)


# ---- Sums by code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_code_sums(backend, dtype):
    g = testing.generator(0)
    for rows, num_codes, dim in ((0, 3, 4), (500, 7, 16), (300, 1000, 3), (40, 2, 70)):
        values = torch.randn(rows, dim, generator=g, dtype=dtype)
        codes = torch.randint(-1, num_codes + 1, (rows,), generator=g)  # some are not there
        expected = reference.code_sums(values, codes, num_codes)
        sums, counts = ops.code_sums(*backend.put(values, codes), num_codes)
        assert torch.equal(sums.cpu(), expected[0])
        assert torch.equal(counts.cpu(), expected[1])
        with testing.num_threads(3):
            assert torch.equal(ops.code_sums(*backend.put(values, codes), num_codes)[0], sums)


def test_code_sums_of_many_equal_codes(backend):
    values = torch.full((3000, 2), 0.1)
    sums, counts = ops.code_sums(*backend.put(values, torch.ones(3000, dtype=torch.int64)), 3)
    assert counts.tolist() == [0, 3000, 0]
    assert sums[1, 0].item() == pytest.approx(3000 * values[0, 0].item(), rel=1e-7)


def test_wrong_sums(backend):
    values, codes = backend.put(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`values` must have a vector for each of `codes`"):
        ops.code_sums(values, codes[:3], 5)
    with pytest.raises(ValueError, match="`num_codes` must be positive, got 0"):
        ops.code_sums(values, codes, 0)
    with pytest.raises(TypeError, match="`codes` must be int64"):
        ops.code_sums(values, codes.int(), 5)


# ---- Operators ---------------------------------------------------------------------------------------------


def test_operators(backend):
    x, codebook = backend.put(*vectors(9, 12, 4))
    for count in (False, True):
        testing.check_operator(quantize._nearest_code_op, x, codebook, False, count)
    testing.check_operator(quantize._topk_codes_op, x, codebook, 3, True)
    codes = ops.nearest_code(x, codebook)
    testing.check_operator(quantize._code_sums_op, x, codes, 12, 1)


def test_compiles():
    x, codebook = vectors(9, 12, 4)

    def everything(x, codebook):
        codes, counts = ops.nearest_code(x, codebook, return_counts=True)
        return codes, counts, *ops.topk_codes(x, codebook, 3), *ops.code_sums(x, codes, 12)

    testing.check_compiles(everything, x, codebook)
