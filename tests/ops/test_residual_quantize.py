import json

import pytest
import torch
from safetensors.torch import load_file

from fastshape import ops, testing
from fastshape.ops import quantize
from fastshape.reference import quantize as reference

_MARGIN = 1e-4  # below it the golden's own arithmetic decides between two codes


def inputs(rows=70, levels=3, codes=40, dim=8, shared=False, seed=0, dtype=torch.float32):
    g = testing.generator(seed)
    books = torch.randn(levels, codes, dim, generator=g, dtype=dtype)
    books = books * 0.6 ** torch.arange(levels, dtype=dtype)[:, None, None]
    return torch.randn(rows, dim, generator=g, dtype=dtype), books[0].clone() if shared else books


def test_by_hand():
    x = torch.tensor([[5.0, 1.0]])
    books = torch.tensor([[[4.0, 0.0], [0, 4]], [[1.0, 1.0], [9, 9]]])
    codes, quantized, codebook_loss, _ = reference.residual_quantize(x, books, 2)
    assert codes.tolist() == [[0, 0]]
    assert quantized.tolist() == [[5, 1]]
    assert codebook_loss.tolist() == [1, 0]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_reference(backend, dtype, shared, cosine):
    for rows, codes, dim in ((70, 40, 8), (1, 1, 3), (210, 33, 50)):
        x, books = inputs(rows, 3, codes, dim, shared, dtype=dtype)
        want = reference.residual_quantize(x, books, 3, cosine)
        x, books = backend.put(x, books)
        got = ops.residual_quantize(x, books, num_levels=3, cosine=cosine, return_counts=True)
        assert torch.equal(got.codes.cpu(), want[0])
        assert torch.equal(got.quantized.cpu(), want[1])
        testing.assert_accurate(got.codebook_loss, want[2].double(), floor=1e-6)
        assert torch.equal(got.codebook_loss, got.commitment_loss)
        for level in range(3):
            assert torch.equal(got.counts[level].cpu(), want[0][:, level].bincount(minlength=codes))
        assert torch.equal(ops.residual_decode(got.codes, books), got.quantized)
        fewer = books if shared else books[:2]
        coarse = ops.residual_decode(got.codes[:, :2].contiguous(), fewer)
        want = reference.residual_quantize(x.cpu(), fewer.cpu(), 2, cosine)
        assert torch.equal(coarse.cpu(), want[1])


def losses_of(function, x, books, weight, levels, cosine=False):
    result = function(x, books, levels, cosine)
    _, quantized, codebook_loss, commitment_loss = result[:4]
    by_level = torch.arange(1.0, levels + 1, dtype=x.dtype, device=x.device)
    return (quantized * weight).sum() + (codebook_loss * by_level).sum() + (commitment_loss / by_level).sum()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_against_the_reference(backend, dtype, shared):
    x, books = inputs(shared=shared, dtype=dtype)
    weight = torch.randn(x.shape, generator=testing.generator(5), dtype=dtype)

    def run(function, *tensors):
        x, books, weight = tensors
        x, books = x.requires_grad_(), books.requires_grad_()
        return torch.autograd.grad(losses_of(function, x, books, weight, 3), (x, books))

    got = run(
        lambda x, books, levels, cosine: ops.residual_quantize(x, books, num_levels=levels, cosine=cosine),
        *backend.put(x, books, weight),
    )
    same = run(reference.residual_quantize, x.clone(), books.clone(), weight)
    want = run(reference.residual_quantize, x.double(), books.double(), weight.double())
    for a, b, c in zip(got, same, want, strict=True):
        testing.assert_accurate(a, c, b)


def test_true_gradients(backend):
    """Of one level, where nothing that is held fast depends on what is differentiated."""
    x, books = backend.put(*inputs(20, 1, 9, 3, dtype=torch.float64))
    testing.check_gradients(lambda x: ops.residual_quantize(x, books).commitment_loss, x)
    testing.check_gradients(lambda books: ops.residual_quantize(x, books).codebook_loss, books)
    x, books = backend.put(*inputs(20, 3, 9, 3, dtype=torch.float64))
    testing.check_gradients(lambda x: ops.residual_quantize(x, books).commitment_loss, x)


def test_the_same_bits_on_every_run(backend):
    x, books = backend.put(*inputs(500, 3, 5))
    results = []
    for threads in (1, 1, 2, 5):
        with testing.num_threads(threads):
            a, b = x.clone().requires_grad_(), books.clone().requires_grad_()
            result = ops.residual_quantize(a, b, return_counts=True)
            grads = torch.autograd.grad(result.codebook_loss.sum() + result.quantized.sum(), (a, b))
            results.append((result.codes, result.quantized, result.counts, *grads))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_instruction_sets(instruction_set):
    x, books = inputs(130, 4, 90, 16)
    want = reference.residual_quantize(x, books, 4)
    assert torch.equal(ops.residual_quantize(x, books).codes, want[0])


def test_tiny_residuals(backend):
    """Forty levels, each 0.6 of the former: the last residuals are of scale 1e-8, and still all differ."""
    g = testing.generator(0)
    directions = torch.randn(40, 64, 3, generator=g)
    books = directions * 0.6 ** torch.arange(40)[:, None, None]
    x = torch.randn(50, 3, generator=g)
    result = ops.residual_quantize(*backend.put(x, books))
    assert result.codebook_loss[-1] < 1e-15
    assert all(len(result.codes[:, level].unique()) > 10 for level in range(40))
    assert torch.equal(result.codes.cpu(), reference.residual_quantize(x, books, 40)[0])


def test_half_precision_shapes_and_empty_input(backend):
    x, books = inputs(24)
    half = ops.residual_quantize(*backend.put(x.bfloat16(), books))
    full = ops.residual_quantize(*backend.put(x.bfloat16().float(), books))
    assert half.quantized.dtype == torch.float32
    assert torch.equal(half.codes, full.codes)
    batch = ops.residual_quantize(*backend.put(x.view(2, 3, 4, 8), books))
    assert batch.codes.shape == (2, 3, 4, 3)
    assert batch.quantized.shape == (2, 3, 4, 8)
    none, books = backend.put(torch.zeros(0, 8), books)
    a, b = none.requires_grad_(), books.requires_grad_()
    result = ops.residual_quantize(a, b)
    assert result.codes.shape == (0, 3)
    grads = torch.autograd.grad(result.quantized.sum() + result.codebook_loss.nan_to_num().sum(), (a, b))
    assert (grads[1] == 0).all()


def test_wrong_input(backend):
    x, books = backend.put(*inputs())
    with pytest.raises(ValueError, match="`num_levels` must be given"):
        ops.residual_quantize(x, books[0])
    with pytest.raises(ValueError, match=r"one codebook for each of 4 levels, got shape \(3, 40, 8\)"):
        ops.residual_quantize(x, books, num_levels=4)
    with pytest.raises(ValueError, match=r"levels must be in \[1, 4096\], got 0"):
        ops.residual_quantize(x, books[0], num_levels=0)
    with pytest.raises(ValueError, match=r"`x` must have as many components"):
        ops.residual_quantize(x[:, :5].contiguous(), books)
    with pytest.raises(TypeError, match="`codebooks` must be float32 as `x`, got float64"):
        ops.residual_quantize(x, books.double())
    with pytest.raises(TypeError, match="`codes` must be int64"):
        ops.residual_decode(torch.zeros(3, 3, device=x.device), books)
    with pytest.raises(ValueError, match="`codebooks` must have one codebook for each of 2 levels"):
        ops.residual_decode(torch.zeros(3, 2, dtype=torch.int64, device=x.device), books)


def test_codes_that_are_not_there(backend):
    codes = torch.tensor([[0, -1, 40], [2**40, 3, 1]])
    _, books = inputs()
    decoded = ops.residual_decode(*backend.put(codes, books)).cpu()
    assert torch.equal(decoded, torch.stack([books[0, 0], books[1, 3] + books[2, 1]]))


# ---- Golden: vector-quantize-pytorch -----------------------------------------------------------------------


def golden(folder, name):
    tensors = load_file(folder / f"{name}.safetensors")
    config = json.loads((folder / f"{name}.json").read_text())["config"]
    books = torch.stack(
        [tensors[f"state.layers.{i}._codebook.embed"][0] for i in range(config["num_quantizers"])]
    )
    return tensors, config, books


def assert_same_codes(got, want, margin):
    """Up to the first level at which a row's codes are nearly as near as each other."""
    clear = (margin > _MARGIN).cumprod(-1).bool()
    assert clear.float().mean() > 0.9
    assert torch.equal(got[clear], want[clear])
    return clear.all(-1)


@pytest.mark.parametrize("name", ["vqpt_rvq_a", "vqpt_rvq_shared_a", "vqpt_rvq_cos_a"])
def test_golden(backend, golden_folder, name):
    g, config, books = golden(golden_folder, name)
    cosine, levels = config["use_cosine_sim"], config["num_quantizers"]
    x, w, on = g["in.x"], g["in.w"], backend.put(books)
    result = ops.residual_quantize(backend.put(x), on, cosine=cosine, return_counts=True)
    same = assert_same_codes(result.codes.cpu(), g["out.eval.indices"], g["out.eval.argmin_margin"])
    assert same.all()  # so everything below can be compared whole
    testing.assert_golden(result.quantized, g["out.eval.quantized"], testing.GOLDEN_CODES)
    decoded = ops.residual_decode(backend.put(g["out.eval.indices"]), on)
    testing.assert_golden(decoded, g["out.eval.output_from_indices"], testing.GOLDEN_CODES)
    assert torch.equal(result.codes.cpu(), g["out.train.indices"])

    # Their module brings what it compares with codes of length one to length one as well, and commits to it.
    if not cosine:
        a = backend.put(x).requires_grad_()
        result = ops.residual_quantize(a, on)
        weight = config["commitment_weight"]
        testing.assert_golden(result.commitment_loss * weight, g["out.train.losses"], testing.GOLDEN_CODES)
        # They hand the gradient of the sum to x once a level.
        total = levels * (result.quantized * backend.put(w)).mean() + weight * result.commitment_loss.sum()
        testing.assert_golden(torch.autograd.grad(total, a)[0], g["out.train.grad_x"], testing.GOLDEN_CODES)


@pytest.mark.parametrize("name", ["vqpt_rvq_a", "vqpt_rvq_shared_a"])
def test_golden_statistics(backend, golden_folder, name):
    """One step of the running means of each level's codebook; the one of all levels takes a step for each."""
    g, config, books = golden(golden_folder, name)
    shared, num_codes = config["shared_codebook"], config["codebook_size"]
    left, on = backend.put(g["in.x"], books)
    codes = ops.residual_quantize(left, on).codes
    for level in range(config["num_quantizers"]):
        if level == 0 or not shared:
            state = f"state.layers.{level}._codebook"
            size, total = backend.put(g[f"{state}.cluster_size"][0], g[f"{state}.embed_avg"][0])
        code = codes[..., level].contiguous()
        sums, counts = ops.code_sums(left, code, num_codes)
        book = ops.ema_codebook(size, total, counts, sums, decay=config["decay"])
        left = left - on[level][code]
        if level == config["num_quantizers"] - 1 or not shared:
            after = f"out.train.after.layers.{level}._codebook"
            testing.assert_golden(size, g[f"{after}.cluster_size"][0], testing.GOLDEN_CODES)
            testing.assert_golden(total, g[f"{after}.embed_avg"][0], testing.GOLDEN_CODES)
            testing.assert_golden(book, g[f"{after}.embed"][0], testing.GOLDEN_CODES)


# ---- Operators ---------------------------------------------------------------------------------------------


def test_operators(backend):
    x, books = backend.put(*inputs(6, 3, 9, 4))
    for count in (False, True):
        testing.check_operator(quantize._residual_quantize_op, x, books, 3, False, count)
    codes = ops.residual_quantize(x, books).codes
    testing.check_operator(quantize._residual_decode_op, codes, books)
    weights = torch.ones(3, device=x.device)
    testing.check_operator(quantize._residual_quantize_backward_op, x, books, codes, weights, weights)


def test_compiles():
    x, books = inputs(6, 3, 9, 4)
    testing.check_compiles(lambda x, books: ops.residual_quantize(x, books)[:4], x, books)
    x = x.requires_grad_()
    testing.check_compiles(lambda x, books: ops.residual_quantize(x, books).quantized * 2, x, books)
