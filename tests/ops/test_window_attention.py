"""Attention within the windows of a sparse voxel grid."""

import dataclasses

import pytest
import torch
from attention_cases import (
    FLOATS,
    assert_all_accurate,
    cube,
    gammas,
    heads,
    plan_rows,
    result_and_gradients,
    voxels,
)

from fastshape import _C, _library, ops, testing
from fastshape.ops import attention
from fastshape.reference import attention as reference

SIZES = [(8, 0), (8, 4), (16, 8), (4, 2), (7, 3), (12, 6), (5, 0), (1, 0), (64, 0), (8, 11)]


def run(backend, q, k, v, coords, *, window=8, shift=0, **options):
    q, k, v = (x.to(backend.device) for x in (q, k, v))
    options = {n: o.to(backend.device) if isinstance(o, torch.Tensor) else o for n, o in options.items()}
    plan = ops.window_plan(backend.put(coords), window=window, shift=shift)
    return ops.sparse_window_attention(q, k, v, plan, **options).cpu()


# ---- The plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "shift"), SIZES)
def test_plan(backend, window, shift):
    coords = voxels(500, 30)
    plan = ops.window_plan(backend.put(coords), window=window, shift=shift)
    expected = reference.windows(coords, window, shift)
    found = [[] for _ in expected]
    for i, start, length in plan_rows(plan.to("cpu")):
        found[i] += range(start, start + length)
    assert plan.num_windows == len(expected)
    assert sorted(map(sorted, found)) == sorted(rows.tolist() for rows in expected)
    lengths = plan.cu_lengths.diff().tolist()
    assert lengths == [len(rows) for rows in expected] == list(map(len, found))
    assert plan.max_length == max(lengths)
    assert plan.max_coord == coords[:, 1:].max()
    assert plan.run_positions[-1] == plan.num_tokens == len(coords)
    if (window, shift) in ((8, 0), (64, 0)):
        assert len(plan.run_starts) == plan.num_windows
    if (window, shift) in ((8, 4), (16, 8), (4, 2)):
        assert plan.run_offsets.diff().max() <= 8


@pytest.mark.parametrize(("window", "shift"), [(8, 4), (6, 3), (2**20, 0), (2**20, 2**19), (3, 2**40 + 1)])
def test_plan_of_far_voxels(backend, window, shift):
    """Coordinates, numbers in the batch and windows that need all their bits."""
    coords = voxels(300, 2**20, batch=2**31)
    coords = torch.cat([coords, coords[::3] ^ torch.tensor([0, 1, 0, 1])]).unique(dim=0)
    coords = coords[reference.voxel_order(coords)].int().contiguous()
    plan = ops.window_plan(backend.put(coords), window=window, shift=shift).to("cpu")
    expected = reference.windows(coords, window, shift)
    rows = [[] for _ in expected]
    for i, start, length in plan_rows(plan):
        rows[i] += range(start, start + length)
    assert sorted(map(sorted, rows)) == sorted(part.tolist() for part in expected)
    assert plan.cu_lengths.diff().tolist() == [len(part) for part in expected]


def test_plans_are_equal_everywhere(backend):
    coords = voxels(400, 40)
    for window, shift in SIZES:
        plan = ops.window_plan(backend.put(coords), window=window, shift=shift).to("cpu")
        with _library.use_backend(_C):
            expected = ops.window_plan(coords, window=window, shift=shift)
        for name in ("cu_lengths", "run_offsets", "run_starts", "run_positions"):
            assert torch.equal(getattr(plan, name), getattr(expected, name))
        assert dataclasses.astuple(plan)[5:] == dataclasses.astuple(expected)[5:]


def test_plan_of_nothing(backend):
    plan = ops.window_plan(backend.put(torch.empty(0, 4, dtype=torch.int32)))
    assert (plan.num_tokens, plan.num_windows, plan.max_length) == (0, 0, 0)
    assert plan.cu_lengths.tolist() == plan.run_offsets.tolist() == plan.run_positions.tolist() == [0]


def test_wrong_plans(backend):
    coords = backend.put(voxels(60, 20))
    with pytest.raises(ValueError, match=r"`coords` must be in voxel order, .* in row 1 behind"):
        ops.window_plan(coords.flip(0).contiguous())
    spoiled = coords.clone()
    spoiled[7, 2] = -1
    with pytest.raises(ValueError, match=r"coordinates in \[0, 1048575\], got .*-1.* in row 7"):
        ops.window_plan(spoiled)
    with pytest.raises(ValueError, match="`coords` must be contiguous"):
        ops.window_plan(coords.T.contiguous().T)
    with pytest.raises(TypeError, match="`coords` must be int32, got int64"):
        ops.window_plan(coords.long())
    with pytest.raises(ValueError, match=r"`coords` must have shape \(N, 4\), got \(\d+, 3\)"):
        ops.window_plan(coords[:, 1:])
    with pytest.raises(ValueError, match="`window` must be at least 1 and `shift` at least 0, got 0 and 0"):
        ops.window_plan(coords, window=0)
    with pytest.raises(ValueError, match="`window` must be at least 1 and `shift` at least 0, got 8 and -4"):
        ops.window_plan(coords, shift=-4)
    with pytest.raises(TypeError, match=r"`coords` must be a torch\.Tensor"):
        ops.window_plan(None)


# ---- Against the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("head_dim", "window", "shift", "number", "size"),
    [(64, 8, 4, 260, 24), (32, 8, 0, 400, 9), (16, 7, 3, 90, 30), (72, 64, 0, 150, 20), (128, 8, 0, 120, 6)],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_against_the_reference(backend, dtype, head_dim, window, shift, number, size, prepared):
    """Many short windows, with a norm and a rotation or without; some long ones; all with gradients."""
    coords, num_heads = voxels(number, size), 2
    inputs = heads(len(coords), num_heads, head_dim, dtype=dtype)
    grad_out = heads(len(coords), num_heads, head_dim, dtype=dtype, seed=1, count=1)[0]
    names, options = [], {}
    if prepared:
        names, options = ["q_gamma", "k_gamma"], {"rope": ops.rope_table(size, head_dim)}
        inputs += [gamma.to(attention._wide_dtype(inputs[0])) for gamma in gammas(num_heads, head_dim)]

    def own(q, k, v, *gamma):
        options_here = {**options, **dict(zip(names, gamma, strict=True))}
        return run(backend, q, k, v, coords, window=window, shift=shift, **options_here)

    def expected(q, k, v, *gamma):
        options_here = {**options, **dict(zip(names, gamma, strict=True))}
        return reference.sparse_window_attention(q, k, v, coords, window=window, shift=shift, **options_here)

    results = result_and_gradients(own, [t.to(backend.device) for t in inputs], grad_out)
    wide = result_and_gradients(expected, [t.double() for t in inputs], grad_out)
    same = result_and_gradients(expected, inputs, grad_out)
    assert results[0].dtype == dtype
    assert_all_accurate(results, wide, same)


@pytest.mark.parametrize("head_dim", [16, 24, 40, 96, 104, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dimensions(backend, head_dim, dtype):
    coords = voxels(50, 11, batch=1)
    q, k, v = heads(len(coords), 1, head_dim, dtype=dtype)
    result = run(backend, q, k, v, coords)
    expected = reference.sparse_window_attention(q.double(), k.double(), v.double(), coords)
    testing.assert_accurate(result, expected, reference.sparse_window_attention(q, k, v, coords))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "window"), [(8, 8), (9, 16)])
def test_full_windows(backend, dtype, size, window):
    """512 tokens, which fit at once; 729, which do not."""
    coords = cube(size)
    inputs = heads(len(coords), 1, 16, dtype=dtype)
    grad_out = heads(len(coords), 1, 16, dtype=dtype, seed=1, count=1)[0]
    results = result_and_gradients(
        lambda q, k, v: run(backend, q, k, v, coords, window=window),
        [t.to(backend.device) for t in inputs],
        grad_out,
    )

    def expected(q, k, v):
        return reference.sparse_window_attention(q, k, v, coords, window=window)

    wide = result_and_gradients(expected, [t.double() for t in inputs], grad_out)
    assert_all_accurate(results, wide, result_and_gradients(expected, inputs, grad_out))


def test_scale_and_large_scores(backend):
    """Scores of some hundreds: the largest is subtracted before the exponential."""
    coords = voxels(80, 10)
    q, k, v = heads(len(coords), 2, 16, dtype=torch.float32)
    for scale in (0.0, 1.5, -2.0, 300.0):
        result = run(backend, q, k, v, coords, scale=scale)
        expected = reference.sparse_window_attention(q.double(), k.double(), v.double(), coords, scale=scale)
        same = reference.sparse_window_attention(q, k, v, coords, scale=scale)
        testing.assert_accurate(result, expected, same)


# ---- Properties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_selection(backend, dtype):
    """Keys are far apart and a query is like one of them: it gets that one's value."""
    coords = cube(2, start=3)
    keys = 30 * torch.eye(8, 16, dtype=dtype)[:, None]
    v = torch.randn(8, 1, 16, generator=testing.generator(0)).to(dtype)
    chosen = torch.randperm(8, generator=testing.generator(1))
    assert torch.equal(run(backend, keys[chosen], keys, v, coords), v[chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_keys_give_the_mean(backend, dtype):
    coords = voxels(200, 16)
    q, k, v = heads(len(coords), 2, 16, dtype=dtype)
    result = run(backend, q, k[:1].expand_as(k).contiguous(), v, coords, shift=4)
    expected = torch.empty_like(v, dtype=torch.float64)
    for rows in reference.windows(coords, 8, 4):
        expected[rows] = v[rows].double().mean(0, keepdim=True)
    testing.assert_accurate(result, expected, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_voxel_alone_gets_its_own_value(backend, dtype):
    coords = voxels(100, 12)
    q, k, v = heads(len(coords), 2, 24, dtype=dtype)
    assert torch.equal(run(backend, q, k, v, coords, window=1), v)


def test_batch_independence(backend):
    coords = voxels(200, 14, batch=3)
    q, k, v = heads(len(coords), 2, 16, dtype=torch.float32)
    whole = run(backend, q, k, v, coords, shift=4)
    for number in range(3):
        rows = coords[:, 0] == number
        alone = coords[rows].contiguous()
        alone[:, 0] = 0
        parts = [x[rows].contiguous() for x in (q, k, v)]
        assert torch.equal(run(backend, *parts, alone, shift=4), whole[rows])


def test_the_order_of_voxels_does_not_matter(backend):
    """Moved by a window along x and y, and mirrored: other orders within the windows."""
    coords = voxels(150, 16, batch=1)
    q, k, v = heads(len(coords), 2, 16, dtype=torch.float32)
    moved = coords.clone()
    moved[:, 1:] = 15 - coords[:, 1:]
    order = reference.voxel_order(moved)
    back = order.argsort()
    result = run(backend, q[order], k[order], v[order], moved[order].contiguous())[back]
    expected = reference.sparse_window_attention(q.double(), k.double(), v.double(), coords)
    testing.assert_accurate(result, expected)


def test_a_shift_moves_the_windows(backend):
    coords = cube(8)
    q, k, v = heads(len(coords), 1, 16, dtype=torch.float32)
    shifted = run(backend, q, k, v, coords, shift=4)
    corner = (coords[:, 1:] < 4).all(1)
    parts = [x[corner].contiguous() for x in (q, k, v, coords)]
    assert torch.equal(run(backend, *parts), shifted[corner])


def test_a_rotation_knows_distances_alone(backend):
    """Scores do not change where all voxels move by the same step."""
    coords = voxels(60, 8, batch=1)
    q, k, v = heads(len(coords), 2, 24, dtype=torch.float64)
    rope = ops.rope_table(40, 24)
    moved = coords.clone()
    moved[:, 1:] += 16
    here = run(backend, q, k, v, coords, rope=rope)
    assert testing.relative_error(run(backend, q, k, v, moved, rope=rope), here) < 1e-6  # a float32 table
    assert testing.relative_error(run(backend, q, k, v, coords), here) > 1e-2


# ---- Strides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed(backend, dtype):
    coords = voxels(200, 24)
    qkv = backend.put(torch.stack(heads(len(coords), 2, 16, dtype=dtype), 1))
    grad_out = backend.put(heads(len(coords), 2, 16, dtype=dtype, seed=1, count=1)[0])
    plan = ops.window_plan(backend.put(coords), shift=4)
    gamma = [g.float().to(backend.device) for g in gammas(2, 16)]

    def separate(qkv, *gamma):
        q, k, v = (part.contiguous() for part in qkv.unbind(1))
        return ops.sparse_window_attention(q, k, v, plan, q_gamma=gamma[0], k_gamma=gamma[1])

    def views(qkv, *gamma):
        return ops.sparse_window_attention(*qkv.unbind(1), plan, q_gamma=gamma[0], k_gamma=gamma[1])

    def packed(qkv, *gamma):
        return ops.sparse_window_attention_packed(qkv, plan, q_gamma=gamma[0], k_gamma=gamma[1])

    expected = result_and_gradients(separate, [qkv, *gamma], grad_out)
    for function in (views, packed):
        for result, want in zip(
            result_and_gradients(function, [qkv, *gamma], grad_out), expected, strict=True
        ):
            assert torch.equal(result, want)
    with torch.no_grad():
        assert torch.equal(packed(qkv, *gamma), expected[0])


# ---- Gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 4])
def test_gradcheck(backend, shift):
    coords = backend.put(voxels(6, 9, batch=1))
    plan = ops.window_plan(coords, shift=shift)
    inputs = heads(len(coords), 1, 16) + gammas(1, 16)
    rope = backend.put(ops.rope_table(9, 16))
    testing.check_gradients(
        lambda q, k, v, a, b: ops.sparse_window_attention(
            q, k, v, plan, scale=0.4, q_gamma=a, k_gamma=b, rope=rope
        ),
        *(t.to(backend.device) for t in inputs),
    )
    testing.check_gradients(
        lambda q, k, v: ops.sparse_window_attention(q, k, v, plan),
        *(t.to(backend.device) for t in inputs[:3]),
    )


def test_gradients_of_some(backend):
    coords = voxels(40, 9)
    q, k, v = backend.put(*heads(len(coords), 1, 16, dtype=torch.float32))
    plan = ops.window_plan(backend.put(coords))
    expected = result_and_gradients(lambda *x: ops.sparse_window_attention(*x, plan), [q, k, v], q)
    v.requires_grad_()
    (grad,) = torch.autograd.grad(ops.sparse_window_attention(q, k, v, plan), v, q)
    assert torch.equal(grad, expected[3])
    with torch.no_grad():
        assert not ops.sparse_window_attention(q, k, v, plan).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_instruction_sets(instruction_set, dtype):
    coords = voxels(700, 24)
    plan = ops.window_plan(coords, shift=4)
    inputs = heads(len(coords), 3, 24, dtype=dtype) + [g.float() for g in gammas(3, 24)]
    grad_out = heads(len(coords), 3, 24, dtype=dtype, seed=1, count=1)[0]

    def own(q, k, v, a, b):
        return ops.sparse_window_attention(q, k, v, plan, q_gamma=a, k_gamma=b)

    def expected(q, k, v, a, b):
        return reference.sparse_window_attention(q, k, v, coords, shift=4, q_gamma=a, k_gamma=b)

    results = []
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            results.append(result_and_gradients(own, inputs, grad_out))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    wide = result_and_gradients(expected, [t.double() for t in inputs], grad_out)
    assert_all_accurate(results[0], wide, result_and_gradients(expected, inputs, grad_out))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time(backend, dtype):
    coords = voxels(150, 40)
    inputs = backend.put(*heads(len(coords), 2, 16, dtype=dtype))
    plan = ops.window_plan(backend.put(coords))
    first, second = (
        result_and_gradients(lambda *x: ops.sparse_window_attention(*x, plan), inputs, inputs[0])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- The rest ----------------------------------------------------------------------------------------------


def test_empty(backend):
    plan = ops.window_plan(backend.put(torch.empty(0, 4, dtype=torch.int32)))
    gamma = [g.float().to(backend.device) for g in gammas(2, 16)]
    inputs = [*backend.put(*heads(0, 2, 16, dtype=torch.float32)), *gamma]
    results = result_and_gradients(
        lambda q, k, v, a, b: ops.sparse_window_attention(q, k, v, plan, q_gamma=a, k_gamma=b),
        inputs,
        inputs[0],
    )
    assert [tuple(r.shape) for r in results] == [(0, 2, 16)] * 4 + [(2, 16)] * 2
    assert (results[4] == 0).all()
    no_heads = backend.put(*heads(9, 0, 16, dtype=torch.float32))
    plan = ops.window_plan(backend.put(voxels(9, 30, batch=1)))
    assert ops.sparse_window_attention(*no_heads, plan).shape == (9, 0, 16)


def layout_of(backend, dtype=torch.float32):
    coords = backend.put(voxels(30, 9))
    plan = ops.window_plan(coords, shift=4)
    q, k, v = backend.put(*heads(len(coords), 2, 16, dtype=dtype))
    gamma = [g.float().to(backend.device) for g in gammas(2, 16)]
    rope = backend.put(ops.rope_table(9, 16))
    return q, k, v, attention._window_layout(q, plan, None, *gamma, rope), plan


def test_operators(backend):
    coords = backend.put(voxels(30, 9))
    testing.check_operator(attention._window_plan_op, coords, 8, 4)
    q, k, v, layout, _ = layout_of(backend)
    testing.check_operator(attention._attention_op, q, k, v, *layout)
    out, lse = attention._attention_op(q, k, v, *layout)
    testing.check_operator(attention._attention_backward_op, out, q, k, v, out, lse, *layout)
    bare = (*layout[:7], None, None, None)
    testing.check_operator(attention._attention_backward_op, out, q, k, v, out, lse, *bare)
    qkv = torch.stack([q, k, v], 1)
    testing.check_operator(attention._attention_backward_packed_op, out, qkv, out, lse, *layout)


def test_compiles():
    q, k, v, _, plan = layout_of(testing.Backend("cpu"))
    testing.check_compiles(lambda *x: ops.sparse_window_attention(*x, plan), q, k, v)

    def gradient(q, k, v):
        q = q.detach().requires_grad_()
        return torch.autograd.grad(ops.sparse_window_attention(q, k, v, plan).sum(), q)[0]

    expected = gradient(q, k, v)
    q = q.requires_grad_()
    compiled = torch.compile(
        lambda *x: ops.sparse_window_attention(*x, plan), fullgraph=True, backend="aot_eager"
    )
    compiled(q, k, v).sum().backward()
    assert torch.equal(q.grad, expected)


def test_wrong_inputs(backend):
    q, k, v, _, plan = layout_of(backend)
    n = len(q)
    call = ops.sparse_window_attention
    with pytest.raises(TypeError, match=r"`q` must be a torch\.Tensor, got list"):
        call([], k, v, plan)
    with pytest.raises(ValueError, match=rf"`q` must have shape \(N, H, D\), got \({n}, 32\)"):
        call(q.flatten(1), k, v, plan)
    with pytest.raises(ValueError, match=rf"`q` must have a row for each of the plan's {n} voxels, got 3"):
        call(q[:3], k[:3], v[:3], plan)
    with pytest.raises(TypeError, match="`q` must be float16, bfloat16, float32 or float64, got int32"):
        call(q.int(), k.int(), v.int(), plan)
    with pytest.raises(TypeError, match="`k` must be float32 as `q`, got float64"):
        call(q, k.double(), v, plan)
    with pytest.raises(ValueError, match=rf"`v` must have shape \({n}, 2, 16\), got \({n}, 1, 16\)"):
        call(q, k, v[:, :1], plan)
    with pytest.raises(ValueError, match="the head dimension must be a multiple of 8 from 16 to 128, got 12"):
        call(q[..., :12], k[..., :12], v[..., :12], plan)
    with pytest.raises(ValueError, match="the head dimension must be a multiple of 8 from 16 to 128, got 8"):
        call(q[..., :8], k[..., :8], v[..., :8], plan)
    strided = torch.stack([v, v], -1)[..., 0]
    with pytest.raises(ValueError, match="`v` must have its features side by side"):
        call(q, k, strided, plan)
    with pytest.raises(ValueError, match=r"`q_gamma` must have shape \(H, D\), got \(16,\)"):
        call(q, k, v, plan, q_gamma=q.new_ones(16))
    rope = backend.put(ops.rope_table(9, 16))
    with pytest.raises(ValueError, match="`rope` must have a row for every coordinate up to 8, got 8 rows"):
        call(q, k, v, plan, rope=rope[:8])
    with pytest.raises(ValueError, match="6 F at most the head dimension, 16, got"):
        call(q, k, v, plan, rope=backend.put(ops.rope_table(9, 24)))
    with pytest.raises(TypeError, match="`rope` must be float32, got float64"):
        call(q, k, v, plan, rope=rope.double())
    with pytest.raises(ValueError, match=r"`qkv` must have shape \(N, 3, H, D\), got"):
        ops.sparse_window_attention_packed(torch.stack([q, k], 1), plan)
    short = dataclasses.replace(plan, run_offsets=plan.run_offsets[:-1])
    with pytest.raises(ValueError, match=r"`run_offsets` must have shape \(S \+ 1,\)"):
        call(q, k, v, short)
