import pytest
import torch
from raster_cases import cpu_kernels, soup, to_clip

from fastshape import ops, testing
from fastshape.ops import raster
from fastshape.reference import raster as reference


def seen_by_reference(clip, faces, size, dtype):
    ids, weights, *_ = reference.rasterize(clip, faces, size)
    return ids, weights.to(dtype)


def test_the_middle_of_a_triangle():
    values = torch.tensor([[3.0, 0], [6, 0], [9, 30]])
    ids = torch.tensor([[0, -1]])
    weights = torch.full((1, 2, 3), 1 / 3)
    result = reference.interpolate(values, torch.tensor([[0, 1, 2]]), ids, weights)
    assert result[0, 0].tolist() == pytest.approx([6, 10])
    assert result[0, 1].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_against_the_reference(backend, dtype, channels):
    clip, faces = soup(20, seed=1)
    ids, weights = seen_by_reference(clip, faces, (12, 15), dtype)
    g = testing.generator(0)
    values = torch.randn(len(clip), channels, generator=g, dtype=dtype)
    grad = torch.randn(12, 15, channels, generator=g, dtype=dtype)

    def run(function, values, weights, *others):
        values, weights = values.requires_grad_(), weights.requires_grad_()
        result = function(values, *others, weights)
        return result.detach().cpu(), *torch.autograd.grad(result, (values, weights), grad.to(result))

    got = run(ops.interpolate, *backend.put(values, weights, faces, ids))
    same = run(reference.interpolate, values.clone(), weights.clone(), faces, ids)
    want = run(reference.interpolate, values.double(), weights.double(), faces, ids)
    assert (ids < 0).any()
    for a, b, c in zip(got, same, want, strict=True):
        testing.assert_accurate(a, c, b)


def test_many_pixels_of_one_triangle(backend):
    """Runs of a vertex that are longer than a warp, beside short ones."""
    side = 40 if backend.name == "emulated" else 300
    clip, faces = soup(6, seed=4, dtype=torch.float64, spread=0.6)
    clip[:, 3] = clip[:, 3].abs() + 1
    clip[:3] = torch.tensor([[-1.0, -1, 0.9, 1], [3, -1, 0.9, 1], [-1, 3, 0.9, 1]])
    seen = ops.rasterize(*backend.put(clip, faces), side)
    assert (seen.triangle_id == 0).sum() > 0.3 * side**2
    values = backend.put(torch.ones(len(clip), 1, dtype=torch.float64)).requires_grad_()
    result = ops.interpolate(values, backend.put(faces), seen.triangle_id, seen.barycentrics)
    weight = torch.randn(side, side, 1, generator=testing.generator(0), dtype=torch.float64)
    (grad,) = torch.autograd.grad(result, values, weight.to(result))
    expected = torch.zeros(len(clip), dtype=torch.float64)
    ids, shares = seen.triangle_id.cpu(), seen.barycentrics.cpu()
    shown = ids >= 0
    expected.index_add_(0, faces[ids[shown]].flatten(), (shares[shown] * weight[shown]).flatten())
    testing.assert_accurate(grad[:, 0], expected, floor=1e-13)  # a sum of 10^5 numbers


def test_one_set_and_many(backend):
    sphere, faces = testing.icosphere(1)
    clip = torch.stack([to_clip(sphere, turn=t) for t in (0.0, 1.0, 2.0, 3.0, 4.0)])
    clip, faces = backend.put(clip, faces)
    seen = ops.rasterize(clip, faces, (9, 14))
    values = torch.randn(5, len(sphere), 2, generator=testing.generator(0)).to(backend.device)
    grad = torch.randn(5, 9, 14, 2, generator=testing.generator(1)).to(backend.device)
    results = {}
    for threads in (1, 2, 5):
        with testing.num_threads(threads):
            for name, sets in (("each", values), ("one", values[0])):
                sets = sets.clone().requires_grad_()
                result = ops.interpolate(sets, faces, seen.triangle_id, seen.barycentrics)
                back = torch.autograd.grad(result, sets, grad)[0]
                results.setdefault(name, []).append((result.detach(), back))
    for found in results.values():
        for other in found[1:]:
            assert torch.equal(other[0], found[0][0])
            assert torch.equal(other[1], found[0][1])
    total = torch.zeros(len(sphere), 2)
    for b in range(5):
        for name, sets in (("each", values[b]), ("one", values[0])):
            sets = sets.clone().requires_grad_()
            alone = ops.interpolate(sets, faces, seen.triangle_id[b], seen.barycentrics[b])
            assert torch.equal(alone, results[name][0][0][b])
            back = torch.autograd.grad(alone, sets, grad[b])[0]
            if name == "each":
                assert torch.equal(back, results[name][0][1][b])
            else:
                total += back.cpu()
    testing.assert_gradients_match(results["one"][0][1], total, tolerance=1e-6)


def test_backends_agree(backend):
    sphere, faces = testing.icosphere(2)
    clip = to_clip(sphere)
    with cpu_kernels():
        seen = ops.rasterize(clip, faces, (21, 18))
        expected = ops.interpolate(sphere.float(), faces, *seen[:2])
    inputs = backend.put(sphere.float(), faces, *seen[:2])
    assert torch.equal(ops.interpolate(*inputs).cpu(), expected)


def test_gradients(backend):
    clip, faces = soup(9, seed=6, dtype=torch.float64)
    ids, weights = seen_by_reference(clip, faces, (5, 4), torch.float64)
    values = torch.randn(len(clip), 2, generator=testing.generator(0), dtype=torch.float64)
    values, weights, faces, ids = backend.put(values, weights, faces, ids)
    testing.check_gradients(lambda v, w: ops.interpolate(v, faces, ids, w), values, weights)


def test_nothing_to_see(backend):
    """Background, faces and vertices that are not there: zeros, and no gradient."""
    ids = torch.tensor([[-1, 5, 2**40], [0, 1, -7]])
    faces = torch.tensor([[0, 1, 9], [0, 1, 2]])
    values = torch.ones(3, 2, dtype=torch.float64)
    weights = torch.full((2, 3, 3), 1 / 3, dtype=torch.float64)
    values, faces, ids, weights = backend.put(values, faces, ids, weights)
    values, weights = values.requires_grad_(), weights.requires_grad_()
    result = ops.interpolate(values, faces, ids, weights)
    assert ((result != 0).any(-1).cpu() == torch.tensor([[False] * 3, [False, True, False]])).all()
    grads = torch.autograd.grad(result.sum(), (values, weights))
    torch.testing.assert_close(grads[0], torch.full_like(grads[0], 1 / 3))
    assert torch.equal((grads[1] != 0).any(-1), (result != 0).any(-1))
    for shape in ((0, 3, 3), (2, 0, 3)):
        empty = torch.zeros(shape, dtype=torch.int64, device=backend.device)
        none = torch.zeros(*shape, 3, dtype=torch.float64, device=backend.device)
        result = ops.interpolate(values, faces, empty, none)
        assert result.shape == (*shape, 2)
        assert (torch.autograd.grad(result.sum(), values)[0] == 0).all()


def test_operators(backend):
    clip, faces = soup(4)
    ids, weights = seen_by_reference(clip, faces, (5, 6), torch.float32)
    values, faces, ids, weights = backend.put(clip[None], faces, ids[None], weights[None])
    testing.check_operator(raster._interpolate_op, values, faces, ids, weights)
    result = raster._interpolate_op(values, faces, ids, weights)
    testing.check_operator(raster._interpolate_backward_op, result, values, faces, ids)


def test_compiles():
    clip, faces = soup(4)
    ids, weights = seen_by_reference(clip, faces, (5, 6), torch.float32)
    testing.check_compiles(lambda v, w: ops.interpolate(v, faces, ids, w), clip, weights)


def test_wrong_inputs():
    clip, faces = soup(4)
    ids, weights = seen_by_reference(clip, faces, (5, 6), torch.float32)
    with pytest.raises(
        ValueError, match=r"`attributes` must have shape \(V, C\) or \(B, V, C\), got \(12,\)"
    ):
        ops.interpolate(clip[:, 0].contiguous(), faces, ids, weights)
    with pytest.raises(
        ValueError, match="`attributes` must be of one set or of 1, one for each image, got 2"
    ):
        ops.interpolate(torch.stack([clip, clip]), faces, ids, weights)
    with pytest.raises(TypeError, match="`barycentrics` must be float32 as `attributes`, got float64"):
        ops.interpolate(clip, faces, ids, weights.double())
    with pytest.raises(
        ValueError, match=r"`barycentrics` must have shape \(B, H, W, 3\), got \(1, 5, 5, 3\)"
    ):
        ops.interpolate(clip, faces, ids, weights[:, 1:].contiguous())
    with pytest.raises(TypeError, match="`triangle_id` must be int64, got int32"):
        ops.interpolate(clip, faces, ids.int(), weights)
    with pytest.raises(ValueError, match="`attributes` must be contiguous"):
        ops.interpolate(clip.T.contiguous().T, faces, ids, weights)
