import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastshape import ops, testing
from fastshape.ops import multiscale
from fastshape.reference import quantize as reference

RESAMPLINGS = ["grid", "line", "matrix"]


def make_resampling(kind, dtype=torch.float32):
    if kind == "grid":
        return ops.grid_resampling([1, 2, 3, 5], dtype=dtype)
    if kind == "line":
        return ops.line_resampling([1, 4, 9, 21], dtype=dtype)
    g = testing.generator(9)
    scores = [torch.randn(length, 21, generator=g, dtype=dtype) for length in (1, 3, 7)]
    return ops.matrix_resampling([s.softmax(1) for s in scores], [s.T.softmax(1) for s in scores])


def inputs(resampling, batch=2, codes=40, dim=8, phis=3, seed=0, dtype=torch.float32):
    """z, codebook, weights and biases of phi."""
    g = testing.generator(seed)
    cells = resampling.grid[0] * resampling.grid[1]
    return (
        torch.randn(batch, cells, dim, generator=g, dtype=dtype),
        torch.randn(codes, dim, generator=g, dtype=dtype) * 0.7,
        torch.randn(phis, dim, dim, 3, 3, generator=g, dtype=dtype) * (0.3 / dim),
        torch.randn(phis, dim, generator=g, dtype=dtype) * 0.1,
    )


def by_reference(z, codebook, weight, bias, resampling, **options):
    scales = len(resampling.scales)
    index = ops.shared_phi_index(scales, len(weight)) if weight is not None else ()
    return reference.multiscale_residual_quantize(
        z,
        codebook,
        resampling.grid,
        [resampling.matrices(s) for s in range(scales)],
        None if weight is None else (weight, bias),
        index,
        **options,
    )


def on(resampling, backend):
    return resampling.to(backend.device)


# ---- Resampling --------------------------------------------------------------------------------------------


def test_resampling_is_that_of_torch():
    g = testing.generator(0)
    grid = torch.randn(2, 3, 13, 13, generator=g, dtype=torch.float64)
    resampling = ops.grid_resampling([1, 2, 5, 8, 13], dtype=torch.float64)
    for s, side in enumerate([1, 2, 5, 8]):
        down_y, down_x, up_y, up_x = resampling.matrices(s)
        area = torch.nn.functional.interpolate(grid, size=(side, side), mode="area")
        torch.testing.assert_close(torch.einsum("iy,jx,bcyx->bcij", down_y, down_x, grid), area)
        back = torch.nn.functional.interpolate(area, size=(13, 13), mode="bicubic")
        torch.testing.assert_close(torch.einsum("yi,xj,bcij->bcyx", up_y, up_x, area), back)
        tokens = resampling.down(grid.flatten(2).transpose(1, 2), s)
        torch.testing.assert_close(tokens, area.flatten(2).transpose(1, 2))
    assert torch.equal(resampling.matrices(4)[0], torch.eye(13, dtype=torch.float64))
    assert torch.equal(resampling.matrices(4)[2], torch.eye(13, dtype=torch.float64))
    assert resampling.tokens == (1, 4, 25, 64, 169)
    line = torch.randn(2, 3, 20, generator=g, dtype=torch.float64)
    resampling = ops.line_resampling([3, 7, 20], dtype=torch.float64)
    for s, length in enumerate([3, 7]):
        down, up = resampling.matrices(s)[1::2]
        area = torch.nn.functional.interpolate(line, size=length, mode="area")
        torch.testing.assert_close(line @ down.T, area)
        back = torch.nn.functional.interpolate(area, size=20, mode="linear")
        torch.testing.assert_close(area @ up.T, back)


def test_wrong_resampling():
    with pytest.raises(ValueError, match=r"`sides` must be positive with the largest last, got \(2, 1\)"):
        ops.grid_resampling([2, 1])
    with pytest.raises(ValueError, match="`lengths` must be positive"):
        ops.line_resampling([0, 1])
    with pytest.raises(
        ValueError, match=r"shapes \(L, 5\) and \(5, L\), got \(2, 5\) and \(2, 5\) for scale 0"
    ):
        ops.matrix_resampling([torch.zeros(2, 5)], [torch.zeros(2, 5)])
    with pytest.raises(ValueError, match="a matrix a scale, got 0 and 1"):
        ops.matrix_resampling([], [torch.zeros(2, 5)])


def test_shared_phi_index():
    assert ops.shared_phi_index(12, 4) == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert ops.shared_phi_index(4, 4) == (0, 1, 2, 3)
    assert ops.shared_phi_index(10, 1) == (0,) * 10
    assert ops.shared_phi_index(1, 3) == (0,)
    assert ops.shared_phi_index(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)  # two ties, as rounding has them
    for phis in range(2, 9):
        edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
        ticks = np.linspace(edge, 1 - edge, phis)
        for scales in range(2, 33):
            expected = [int(np.abs(ticks - s / (scales - 1)).argmin()) for s in range(scales)]
            assert ops.shared_phi_index(scales, phis) == tuple(expected)
    with pytest.raises(ValueError, match="there must be scales"):
        ops.shared_phi_index(0, 1)


# ---- Against the reference ---------------------------------------------------------------------------------


def test_by_hand():
    """Two scales of a line of two: the mean's code, then what is left of each."""
    z = torch.tensor([[[5.0], [3.0]]])
    codebook = torch.tensor([[-1.0], [1.0], [4.0]])
    resampling = ops.line_resampling([1, 2])
    codes, quantized, loss, _, later = by_reference(z, codebook, None, None, resampling)
    assert codes.tolist() == [[2, 1, 0]]
    assert quantized.flatten().tolist() == [5, 3]
    assert loss.tolist() == [1, 0]
    assert later.flatten().tolist() == [4, 4]


@pytest.mark.parametrize("with_phi", [False, True])
@pytest.mark.parametrize("kind", RESAMPLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_reference(backend, dtype, kind, with_phi):
    resampling = make_resampling(kind, dtype)
    for cosine in (False, True):
        z, codebook, weight, bias = inputs(resampling, dtype=dtype)
        if not with_phi:
            weight = bias = None
        want = by_reference(z, codebook, weight, bias, resampling, cosine=cosine)
        z, codebook = backend.put(z, codebook)
        phi = backend.put(weight, bias) if with_phi else None
        here = on(resampling, backend)
        got = ops.multiscale_residual_quantize(z, codebook, here, phi=phi, cosine=cosine, return_counts=True)
        assert torch.equal(got.codes.cpu(), want[0])
        assert torch.equal(got.quantized.cpu(), want[1])
        testing.assert_accurate(got.codebook_loss, want[2], floor=1e-5)
        assert torch.equal(got.codebook_loss, got.commitment_loss)
        by_scale = want[0].split(resampling.tokens, 1)
        for s, codes in enumerate(by_scale):
            assert torch.equal(got.counts[s].cpu(), codes.flatten().bincount(minlength=len(codebook)))
        decoded, later = ops.multiscale_decode(got.codes, codebook, here, phi=phi, return_inputs=True)
        assert torch.equal(decoded, got.quantized)
        assert torch.equal(later.cpu(), want[4])


@pytest.mark.parametrize("dim", [1, 3, 16, 33])
def test_components(backend, dim):
    resampling = ops.grid_resampling([1, 3, 10])
    tensors = inputs(resampling, 1, 20, dim, 2, seed=dim)
    want = by_reference(*tensors, resampling)
    z, codebook, weight, bias = backend.put(*tensors)
    got = ops.multiscale_residual_quantize(z, codebook, on(resampling, backend), phi=(weight, bias))
    assert torch.equal(got.codes.cpu(), want[0])
    assert torch.equal(got.quantized.cpu(), want[1])


def test_wide_grids(backend):
    """A line that takes several tiles of the convolution, and several searches' worth of tokens."""
    resampling = ops.line_resampling([2, 600])
    tensors = inputs(resampling, 1, 9, 4, 1)
    want = by_reference(*tensors, resampling)
    z, codebook, weight, bias = backend.put(*tensors)
    got = ops.multiscale_residual_quantize(z, codebook, on(resampling, backend), phi=(weight, bias))
    assert torch.equal(got.codes.cpu(), want[0])
    assert torch.equal(got.quantized.cpu(), want[1])


def test_instruction_sets(instruction_set):
    resampling = ops.grid_resampling([1, 2, 4, 9])
    for dim in (5, 16):
        tensors = inputs(resampling, 3, 50, dim, 2)
        want = by_reference(*tensors, resampling)
        z, codebook, weight, bias = tensors
        got = ops.multiscale_residual_quantize(z, codebook, resampling, phi=(weight, bias))
        assert torch.equal(got.codes, want[0])
        assert torch.equal(got.quantized, want[1])


# ---- Gradients ---------------------------------------------------------------------------------------------


def total(result, weight):
    """Every loss with another weight."""
    _, quantized, codebook_loss, commitment_loss = result[:4]
    scales = torch.arange(1.0, len(codebook_loss) + 1, dtype=quantized.dtype, device=quantized.device)
    return (quantized * weight).sum() + (codebook_loss * scales).sum() + (commitment_loss / scales).sum()


@pytest.mark.parametrize("with_phi", [False, True])
@pytest.mark.parametrize("kind", RESAMPLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_against_the_reference(backend, dtype, kind, with_phi):
    resampling = make_resampling(kind, dtype)
    tensors = inputs(resampling, 3, dim=5, dtype=dtype)[: 4 if with_phi else 2]
    grad = torch.randn(tensors[0].shape, generator=testing.generator(3), dtype=dtype)

    def run(function, tensors, grad):
        tensors = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(total(function(*tensors, *[None] * (4 - len(tensors))), grad), tensors)

    def kernel(z, codebook, weight, bias):
        phi = None if weight is None else (weight, bias)
        return ops.multiscale_residual_quantize(z, codebook, on(resampling, backend), phi=phi)

    codes = by_reference(*tensors, *[None] * (4 - len(tensors)), resampling)[0]

    def expected(*tensors):
        double = resampling.to(tensors[0].dtype)
        return by_reference(*tensors, double, codes=codes)

    got = run(kernel, [backend.put(t) for t in tensors], backend.put(grad))
    same = run(expected, tensors, grad)
    want = run(expected, [t.double() for t in tensors], grad.double())
    for a, b, c in zip(got, same, want, strict=True):
        testing.assert_accurate(a, c, b)


def test_true_gradients(backend):
    resampling = on(ops.grid_resampling([1, 2, 3], dtype=torch.float64), backend)
    z, codebook, weight, bias = backend.put(*inputs(resampling, 2, 7, 2, 2, dtype=torch.float64))

    def losses(z, codebook, weight, bias):
        return ops.multiscale_residual_quantize(z, codebook, resampling, phi=(weight, bias))

    testing.check_gradients(lambda z: losses(z, codebook, weight, bias).commitment_loss, z)
    testing.check_gradients(lambda w, b: losses(z, codebook, w, b).codebook_loss, weight, bias)
    testing.check_gradients(lambda e: losses(z, e, weight, bias).codebook_loss, codebook)


def test_the_same_bits_on_every_run(backend):
    resampling = on(make_resampling("grid"), backend)
    tensors = backend.put(*inputs(resampling, 5))
    results = []
    for threads in (1, 1, 2, 7):
        with testing.num_threads(threads):
            z, codebook, weight, bias = leaves = [t.clone().requires_grad_() for t in tensors]
            result = ops.multiscale_residual_quantize(z, codebook, resampling, phi=(weight, bias))
            grads = torch.autograd.grad(total(result, 1.0), leaves)
            results.append((result.codes, result.quantized, *grads))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


# ---- Golden: VAR -------------------------------------------------------------------------------------------


def tokens_of(image):
    return image.flatten(2).transpose(1, 2).contiguous()


@pytest.mark.parametrize("name", ["var_vq2_small_a", "var_vq2_znorm_a", "var_vq2_vat1024_a"])
def test_golden(backend, golden_folder, name):
    g = load_file(golden_folder / f"{name}.safetensors")
    about = json.loads((golden_folder / f"{name}.json").read_text())
    config = about["config"]
    prefix = "quant_resi." + ("qresi_ls." if config["share_quant_resi"] else "")
    phis = sum(key.startswith(f"state.{prefix}") and key.endswith("weight") for key in g)

    def of_phi(begin, end):
        return torch.stack([g[f"{begin}{prefix}{i}.{end}"] for i in range(phis)])

    leaves = [
        backend.put(t.clone()).requires_grad_()
        for t in (
            tokens_of(g["in.f"]),
            g["state.embedding.weight"],
            of_phi("state.", "weight"),
            of_phi("state.", "bias"),
        )
    ]
    z, codebook, weight, bias = leaves
    assert ops.shared_phi_index(len(config["v_patch_nums"]), phis) == tuple(about["phi_index_per_scale"])
    resampling = on(ops.grid_resampling(config["v_patch_nums"]), backend)
    options = {"phi": (weight, bias), "phi_ratio": config["quant_resi"]}
    result = ops.multiscale_residual_quantize(
        z, codebook, resampling, cosine=config["using_znorm"], **options
    )
    clear = g["out.argmin_margin"] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(result.codes.cpu()[clear], g["out.idx"][clear])
    assert torch.equal(result.codes.cpu(), g["out.idx"])  # so that all that follows can be compared
    testing.assert_golden(result.quantized, tokens_of(g["out.f_hat"]), testing.GOLDEN_CODES)
    loss = (result.codebook_loss + config["beta"] * result.commitment_loss).mean()
    testing.assert_golden(loss, g["out.loss"], testing.GOLDEN_CODES)
    grads = torch.autograd.grad((result.quantized * backend.put(tokens_of(g["in.w"]))).mean() + loss, leaves)
    for got, want in zip(
        grads,
        (
            tokens_of(g["out.grad_f"]),
            g["out.grad_embedding"],
            of_phi("out.grad_", "weight"),
            of_phi("out.grad_", "bias"),
        ),
        strict=True,
    ):
        testing.assert_golden(got, want)

    with torch.no_grad():
        codes = backend.put(g["out.idx"])
        decoded, later = ops.multiscale_decode(codes, codebook, resampling, return_inputs=True, **options)
        testing.assert_golden(decoded, tokens_of(g["out.f_hat_from_idx"]), testing.GOLDEN_CODES)
        testing.assert_golden(later, g["out.var_input"], testing.GOLDEN_CODES)
        counts = [sum(resampling.tokens[: s + 1]) for s in range(len(resampling.tokens))]
        for s, end in enumerate(counts):
            if f"out.f_hat_scale{s}" in g:
                coarse = ops.multiscale_decode(codes[:, :end].contiguous(), codebook, resampling, **options)
                testing.assert_golden(coarse, tokens_of(g[f"out.f_hat_scale{s}"]), testing.GOLDEN_CODES)


# ---- Odds and ends -----------------------------------------------------------------------------------------


def test_bytes_and_back(backend):
    """A stream's beginning is a coarser shape."""
    resampling = on(make_resampling("grid"), backend)
    z, codebook, weight, bias = backend.put(*inputs(resampling, 1))
    phi = (weight, bias)
    codes = ops.multiscale_residual_quantize(z, codebook, resampling, phi=phi).codes
    data = ops.pack_tokens(codes[0], scales=resampling.tokens, num_codes=len(codebook))
    errors = []
    for length in (len(data), len(data) - 5, len(data) - 25, 25):
        read = ops.unpack_tokens(data[:length], partial=True)
        shape = ops.multiscale_decode(backend.put(read.codes)[None], codebook, resampling, phi=phi)
        errors.append(float((shape - z).square().mean()))
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_half_precision_and_empty_input(backend):
    resampling = on(make_resampling("grid"), backend)
    z, codebook, weight, bias = backend.put(*inputs(resampling))
    half = ops.multiscale_residual_quantize(z.bfloat16(), codebook, resampling)
    full = ops.multiscale_residual_quantize(z.bfloat16().float(), codebook, resampling)
    assert half.quantized.dtype == torch.float32
    assert torch.equal(half.codes, full.codes)
    leaves = [t.clone().requires_grad_() for t in (z[:0], codebook, weight, bias)]
    none = ops.multiscale_residual_quantize(leaves[0], leaves[1], resampling, phi=(leaves[2], leaves[3]))
    assert none.codes.shape == (0, 39)
    assert none.quantized.shape == (0, 25, 8)
    grads = torch.autograd.grad(none.quantized.sum() + none.codebook_loss.nan_to_num().sum(), leaves)
    assert all((grad == 0).all() for grad in grads)
    nothing, later = ops.multiscale_decode(half.codes[:, :0], codebook, resampling, return_inputs=True)
    assert not nothing.any()
    assert later.shape == (2, 0, 8)


def test_codes_that_are_not_there(backend):
    resampling = on(ops.line_resampling([1, 2]), backend)
    codebook = backend.put(torch.tensor([[1.0], [2.0]]))
    codes = backend.put(torch.tensor([[1, -1, 2**40], [5, 0, 1]]))
    assert ops.multiscale_decode(codes, codebook, resampling).tolist() == [[[2], [2]], [[1], [2]]]


def test_wrong_input(backend):
    resampling = on(make_resampling("grid"), backend)
    z, codebook, weight, bias = backend.put(*inputs(resampling))
    quantize = ops.multiscale_residual_quantize
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, M, D\), got \(2, 24, 8\)"):
        quantize(z[:, :24].contiguous(), codebook, resampling)
    with pytest.raises(ValueError, match="`z` must be contiguous"):
        quantize(z.transpose(0, 1).contiguous().transpose(0, 1), codebook, resampling)
    with pytest.raises(TypeError, match="`factors` must be float64 as `codebook`, got float32"):
        quantize(z.double(), codebook.double(), resampling)
    with pytest.raises(TypeError, match="`z` must be float32 as `codebook`, got float64"):
        quantize(z.double(), codebook, resampling)
    with pytest.raises(ValueError, match=r"`phi` must have shape \(P, D, D, 3, 3\), got \(3, 8, 8, 3\)"):
        quantize(z, codebook, resampling, phi=(weight[..., 0], bias))
    with pytest.raises(ValueError, match=r"`phi_bias` must have shape \(P, D\), got \(2, 8\)"):
        quantize(z, codebook, resampling, phi=(weight, bias[:2]))
    with pytest.raises(ValueError, match="one entry for each of 4 scales"):
        quantize(z, codebook, resampling, phi=(weight, bias), phi_index=(0, 1))
    with pytest.raises(ValueError, match=r"`phi_index` must be in \[0, 3\), got 3 for scale 3"):
        quantize(z, codebook, resampling, phi=(weight, bias), phi_index=(0, 1, 2, 3))
    with pytest.raises(ValueError, match=r"T the tokens of all or of the first of the scales.*got \(2, 7\)"):
        ops.multiscale_decode(torch.zeros(2, 7, dtype=torch.int64), codebook, resampling)
    with pytest.raises(ValueError, match="there must be 1 to 32 scales, got 33"):
        quantize(z, codebook, on(ops.grid_resampling([5] * 33), backend))


def test_one_cuda_graph():
    """Nothing in forward or backward allocates or waits: both are captured, and replayed on other numbers."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    resampling = ops.grid_resampling([1, 2, 3, 5], device="cuda")
    tensors = [t.cuda() for t in inputs(resampling)]
    leaves = [t.clone().requires_grad_() for t in tensors]

    def step(z, codebook, weight, bias):
        result = ops.multiscale_residual_quantize(z, codebook, resampling, phi=(weight, bias))
        return (result.codes, *torch.autograd.grad(total(result, 1.0), (z, codebook, weight, bias)))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(*leaves)
    with torch.no_grad():
        leaves[0].mul_(-0.5)
    graph.replay()
    expected = step(*[t.detach().clone().requires_grad_() for t in leaves])
    for got, want in zip(result, expected, strict=True):
        assert torch.equal(got, want)


def arguments(resampling, backend):
    z, codebook, weight, bias = backend.put(*inputs(resampling, 2, 6, 3, 2))
    sizes, weight, bias = multiscale._phi_arguments(resampling, (weight, bias), None)
    place = (resampling.factors, resampling.bands, sizes, list(resampling.grid))
    return z, codebook, place, weight, bias


def test_operators(backend):
    resampling = on(ops.grid_resampling([1, 2, 3]), backend)
    z, codebook, place, weight, bias = arguments(resampling, backend)
    for keep in (False, True):
        call = (z, codebook, *place, weight, bias, 0.5, False, keep, keep)
        testing.check_operator(multiscale._multiscale_quantize_op, *call)
    codes, _, _, residuals, _ = multiscale._multiscale_quantize_op(*call)
    call = (codes, codebook, *place, weight, bias, 0.5, True)
    testing.check_operator(multiscale._multiscale_decode_op, *call)
    weights = torch.ones(3, device=z.device)
    call = (codes, residuals, codebook, *place, weight, bias, 0.5, weights, weights)
    testing.check_operator(multiscale._multiscale_backward_op, *call)
    call = (codes, residuals, codebook, *place, None, None, 0.5, weights, weights)
    testing.check_operator(multiscale._multiscale_backward_op, *call)


def test_compiles():
    resampling = ops.grid_resampling([1, 2, 3])
    z, codebook, weight, bias = inputs(resampling, 2, 6, 3, 2)

    def everything(z, codebook, weight, bias):
        result = ops.multiscale_residual_quantize(z, codebook, resampling, phi=(weight, bias))
        return (*result[:4], ops.multiscale_decode(result.codes, codebook, resampling, phi=(weight, bias)))

    testing.check_compiles(everything, z, codebook, weight, bias)
    testing.check_compiles(everything, z.requires_grad_(), codebook, weight, bias)
