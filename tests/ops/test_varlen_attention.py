"""Attention within packed sequences."""

import pytest
import torch
from attention_cases import FLOATS, assert_all_accurate, gammas, heads, result_and_gradients

from fastshape import ops, testing
from fastshape.ops import attention
from fastshape.reference import attention as reference


def offsets(*lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


CASES = {
    "long": ((150, 70), (150, 70)),
    "cross": ((40, 3, 70), (9, 130, 1)),
    "empty": ((5, 0, 9, 4), (3, 6, 0, 8)),
    "many": ((3,) * 70, (2, 5) * 35),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prepared", [False, True])
def test_against_the_reference(backend, dtype, case, prepared):
    cu_q, cu_k = (offsets(*lengths) for lengths in CASES[case])
    (q,) = heads(int(cu_q[-1]), 2, 32, dtype=dtype, count=1)
    k, v = heads(int(cu_k[-1]), 2, 32, dtype=dtype, count=2, seed=1)
    inputs, names = [q, k, v], []
    if prepared:
        names = ["q_gamma", "k_gamma"]
        inputs += [gamma.to(attention._wide_dtype(q)) for gamma in gammas(2, 32)]
    (grad_out,) = heads(len(q), 2, 32, dtype=dtype, count=1, seed=2)

    def own(*inputs):
        options = dict(zip(names, inputs[3:], strict=True))
        return ops.varlen_attention(*inputs[:3], *backend.put(cu_q, cu_k), **options)

    def expected(*inputs):
        options = dict(zip(names, inputs[3:], strict=True))
        return reference.varlen_attention(*inputs[:3], cu_q, cu_k, **options)

    results = result_and_gradients(own, [t.to(backend.device) for t in inputs], grad_out)
    wide = result_and_gradients(expected, [t.double() for t in inputs], grad_out)
    assert_all_accurate(results, wide, result_and_gradients(expected, inputs, grad_out))
    if case == "empty":
        assert (results[0][5:14].double().abs().sum(dim=(1, 2)) == 0).tolist() == [True] * 9


def test_a_sequence_longer_than_a_chunk(backend):
    cu_q, cu_k = offsets(30), offsets(1100)
    (q,) = heads(30, 1, 16, dtype=torch.float32, count=1)
    k, v = heads(1100, 1, 16, dtype=torch.float32, count=2, seed=1)
    results = result_and_gradients(
        lambda *x: ops.varlen_attention(*x, *backend.put(cu_q, cu_k)), backend.put(q, k, v), q
    )
    wide = result_and_gradients(
        lambda *x: reference.varlen_attention(*x, cu_q, cu_k), [t.double() for t in (q, k, v)], q
    )
    assert_all_accurate(results, wide, [None] * 4)


def test_gradcheck(backend):
    cu_q, cu_k = backend.put(offsets(2, 3), offsets(4, 1))
    (q,) = heads(5, 1, 16, count=1)
    k, v = heads(5, 1, 16, count=2, seed=1)
    testing.check_gradients(
        lambda q, k, v, a, b: ops.varlen_attention(q, k, v, cu_q, cu_k, q_gamma=a, k_gamma=b),
        *(t.to(backend.device) for t in (q, k, v, *gammas(1, 16))),
    )


def test_threads():
    cu = offsets(700, 20, 90)
    q, k, v = heads(810, 2, 16, dtype=torch.float32)
    results = []
    for threads in (1, 3):
        with testing.num_threads(threads):
            results.append(result_and_gradients(lambda *x: ops.varlen_attention(*x, cu, cu), [q, k, v], q))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_sequences(backend):
    none = backend.put(offsets())
    q, k, v = backend.put(*heads(0, 2, 16, dtype=torch.float32))
    assert ops.varlen_attention(q, k, v, none, none).shape == (0, 2, 16)


def test_compiles():
    cu = offsets(7, 9)
    q, k, v = heads(16, 2, 16, dtype=torch.float32)
    testing.check_compiles(lambda *x: ops.varlen_attention(*x), q, k, v, cu, cu)


def test_wrong_inputs(backend):
    q, k, v = backend.put(*heads(16, 2, 16, dtype=torch.float32))
    cu = backend.put(offsets(7, 9))
    with pytest.raises(TypeError, match="`cu_seqlens_q` must be int32, got int64"):
        ops.varlen_attention(q, k, v, cu.long(), cu)
    with pytest.raises(ValueError, match=r"`cu_seqlens_k` must have shape \(3,\), got \(2,\)"):
        ops.varlen_attention(q, k, v, cu, backend.put(offsets(16)))
    with pytest.raises(TypeError, match=r"`q` must be a torch\.Tensor, got NoneType"):
        ops.varlen_attention(None, k, v, cu, cu)
    if backend.name == "cuda":
        return
    for wrong in ([0, 7, 15], [1, 7, 16], [0, 17, 16], [0, -1, 16]):
        offsets_here = torch.tensor(wrong, dtype=torch.int32)
        with pytest.raises(ValueError, match=r"`cu_seqlens_k` must ascend from 0 to 16, got"):
            ops.varlen_attention(q, k, v, cu, offsets_here)
