"""Farthest point sampling against its naive definition: equal to the bit, ties included."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from fastshape import ops, testing
from fastshape.ops.sampling import _farthest_op, _farthest_with_distances_op
from fastshape.reference import sampling as reference_sampling

INF, NAN = math.inf, math.nan


def assert_same(points, num_samples, **options):
    """The operator and the reference give the same indices and distances."""
    got = ops.farthest_point_sampling(points, num_samples, return_distances=True, **options)
    host = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    want = reference_sampling.farthest_point_sampling(
        points.cpu(), num_samples, return_distances=True, **host
    )
    assert torch.equal(got[0].cpu(), want[0])
    assert torch.equal(got[1].cpu(), want[1])
    assert torch.equal(ops.farthest_point_sampling(points, num_samples, **options), got[0])


# ---- The rule ----------------------------------------------------------------------------------------------


def test_reference_on_a_line():
    # From 0: the far end 9, then 4 (distance 4; 5 has 4 too, the lower index wins), ...
    points = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [5, 0, 0], [9, 0, 0]]])
    indices, distances = reference_sampling.farthest_point_sampling(points, 6, return_distances=True)
    assert indices.tolist() == [[0, 3, 1, 2, -1, -1]]
    assert distances.tolist() == [[INF, 9, 4, 1, 0, 0]]


def test_on_a_line(backend):
    assert_same(backend.put(torch.tensor([[[0.0, 0, 0], [4, 0, 0], [5, 0, 0], [9, 0, 0]]])), 6)


@pytest.mark.parametrize(
    ("count", "num"), [(1, 1), (2, 2), (15, 7), (16, 16), (17, 17), (200, 50), (700, 300)]
)
def test_random(backend, count, num):
    assert_same(backend.put(testing.random_points(2, count, seed=count)), num)


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_ties_go_to_the_lowest_index(backend, steps):
    assert_same(backend.put(testing.lattice_points(2, 600, steps=steps, seed=steps)), 200)


def test_used_up_cloud_repeats_its_lowest_index(backend):
    points = testing.lattice_points(1, 3, steps=4).repeat(1, 10, 1)
    points = torch.cat([torch.full((1, 1, 3), NAN), points], dim=1)
    assert_same(backend.put(points), 40, start=5)
    indices = ops.farthest_point_sampling(backend.put(points), 40, start=5)
    assert indices[0, 3:30].unique().tolist() == [1]
    assert indices[0, 30:].unique().tolist() == [-1]


def test_more_picks_than_points(backend):
    assert_same(backend.put(testing.random_points(2, 5)), 9)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_points_change_nothing(backend, bad):
    points = testing.random_points(2, 90)
    points[0, ::3, 1] = bad
    points[1, :40, 0] = bad
    assert_same(backend.put(points), 70)
    indices = ops.farthest_point_sampling(backend.put(points), 70)
    assert (indices[0] % 3 != 0).logical_or(indices[0] == -1).all()
    assert (indices[0] == -1).sum() == 10
    assert indices[1, 0] == 40  # 0 is not finite: the lowest finite index starts


def test_only_non_finite_points(backend):
    points = backend.put(torch.full((1, 7, 3), NAN))
    indices, distances = ops.farthest_point_sampling(points, 3, return_distances=True)
    assert indices.tolist() == [[-1, -1, -1]]
    assert distances.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6, 1e18, 1e30, 3e38])
def test_any_magnitude(backend, scale):
    # Squares overflow to inf from 1e19 on and underflow below 1e-19: then everything ties.
    assert_same(backend.put(testing.random_points(1, 300) * scale), 60)


def test_an_outlier_does_not_matter(backend):
    points = testing.random_points(1, 900)
    points[0, 17] = 1e12
    assert_same(backend.put(points), 120)


# ---- Batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths(backend, dtype):
    points, lengths = backend.put(
        testing.random_points(5, 130), torch.tensor([130, 0, 1, 77, 16], dtype=dtype)
    )
    assert_same(points, 20, lengths=lengths)


def test_one_number_for_each_cloud(backend):
    points = backend.put(testing.random_points(4, 60))
    assert_same(points, [5, 0, 60, 17])
    assert_same(points, (5, 5, 5, 5))
    assert_same(points, [0, 0, 0, 0])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed(backend, dtype):
    points, bounds = backend.put(
        testing.random_points(300), torch.tensor([0, 100, 100, 101, 300], dtype=dtype)
    )
    assert_same(points, 12, cu_seqlens=bounds)
    assert_same(points, [50, 3, 2, 80], cu_seqlens=bounds)


def test_start(backend):
    points, start = backend.put(testing.random_points(3, 50), torch.tensor([7, 0, 49]))
    assert_same(points, 10, start=start)
    assert_same(points, 10, start=49)
    # Outside its cloud: the lowest index starts.
    assert_same(points, 10, start=start, lengths=backend.put(torch.tensor([50, 50, 49])))


def test_random_start(backend):
    points = backend.put(testing.random_points(64, 40))
    lengths = backend.put(torch.arange(64) % 39 + 1)

    def run(seed):
        generator = torch.Generator(backend.device).manual_seed(seed)
        return ops.farthest_point_sampling(points, 3, lengths=lengths, start="random", generator=generator)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    first = run(0)[:, 0]
    assert ((first >= 0) & (first < lengths)).all()
    assert first.unique().numel() > 10


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 3)])
@pytest.mark.parametrize("num", [0, 4])
def test_empty(backend, shape, num):
    indices, distances = ops.farthest_point_sampling(
        backend.put(torch.zeros(shape)), num, return_distances=True
    )
    assert indices.shape == distances.shape == (shape[0], num)
    assert (indices == -1).all()
    assert (distances == 0).all()


def test_empty_packed(backend):
    points, bounds = backend.put(torch.zeros(0, 3), torch.tensor([0, 0]))
    assert ops.farthest_point_sampling(points, 2, cu_seqlens=bounds).tolist() == [-1, -1]
    assert ops.farthest_point_sampling(points, [], cu_seqlens=bounds[:1]).shape == (0,)


# ---- Official results --------------------------------------------------------------------------------------


def test_golden_ratios(backend, golden_folder):
    tensors = load_file(golden_folder / "fps_a.safetensors")
    about = json.loads((golden_folder / "fps_a.json").read_text())
    for case in about["cases"]:
        name = case["case"]
        counts = tensors[f"in.{name}.counts"]
        points, bounds = backend.put(
            tensors[f"in.{name}.pos"], torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        )
        nums = [ops.num_samples_from_ratio(n, case["ratio"]) for n in case["counts"]]
        assert nums == case["n_out"]
        indices = ops.farthest_point_sampling(points, nums, cu_seqlens=bounds)
        assert torch.equal(indices.cpu(), tensors[f"out.{name}.idx"])


def test_golden_published_sizes(backend, golden_folder):
    tensors = load_file(golden_folder / "fps_large_a.safetensors")
    for name in ("0", "1"):
        want = tensors[f"out.{name}.idx"].long()
        points = backend.put(tensors[f"in.{name}.points"])
        assert torch.equal(ops.farthest_point_sampling(points, want.shape[1]).cpu(), want)
    points = backend.put(tensors["in.chain.points"])
    for level in (1, 2, 3):  # each level samples the one before
        want = tensors[f"out.chain.idx_level{level}"].long()
        indices = ops.farthest_point_sampling(points, len(want))
        assert torch.equal(indices[0].cpu(), want)
        points = points[:, indices[0]]


def test_num_samples_from_ratio():
    # The published sizes are exact; these are the ones where float32 rounds up.
    assert ops.num_samples_from_ratio(2048, 512 / 2048) == 512
    assert ops.num_samples_from_ratio(10000, 768 / 10000) == 769
    assert ops.num_samples_from_ratio(20000, 3072 / 20000) == 3073
    assert ops.num_samples_from_ratio(0, 0.5) == 0
    with pytest.raises(ValueError, match=r"`ratio` must lie in \(0, 1\], got 0"):
        ops.num_samples_from_ratio(5, 0.0)
    with pytest.raises(ValueError, match="`length` must be at least 0"):
        ops.num_samples_from_ratio(-1, 0.5)


# ---- The CPU kernel: every instruction set, any number of threads ------------------------------------------


def naive(points, num, start):
    """The rule in numpy, fast enough for thousands of cases."""
    finite = np.isfinite(points).all(axis=1)
    indices, distances = np.full(num, -1), np.zeros(num, np.float32)
    if not finite.any():
        return indices, distances
    pick = start if finite[start] else int(finite.argmax())
    nearest = np.where(finite, np.float32(INF), np.float32(-1))
    for k in range(min(num, int(finite.sum()))):
        pick = int(nearest.argmax()) if k > 0 else pick  # argmax: the first of the largest
        indices[k], distances[k] = pick, np.sqrt(nearest[pick])
        with np.errstate(all="ignore"):
            d = points - points[pick]
            squared = (d[:, 0] * d[:, 0] + d[:, 1] * d[:, 1]) + d[:, 2] * d[:, 2]
            nearest = np.where(finite, np.minimum(nearest, squared), np.float32(-1))
    return indices, distances


def make_cloud(kind, count, random):
    if kind == "normal":
        points = random.standard_normal((count, 3))
    elif kind == "sphere":
        points = random.standard_normal((count, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    elif kind == "lattice":
        points = random.integers(0, random.integers(1, 12), (count, 3))
    elif kind == "duplicates":
        points = random.standard_normal((count // 8 + 1, 3))[random.integers(0, count // 8 + 1, count)]
    elif kind == "magnitudes":
        points = random.standard_normal((count, 3)) * 10.0 ** random.integers(-30, 37)
    elif kind == "outliers":
        points = random.standard_normal((count, 3))
        points[random.random(count) < 0.01] *= 1e6
    elif kind == "line":
        points = np.zeros((count, 3))
        points[:, random.integers(3)] = random.integers(0, 100, count)
    else:  # huge: differences overflow
        points = random.uniform(-3e38, 3e38, (count, 3))
    points = points.astype(np.float32)
    if random.random() < 0.3:
        points[random.random(count) < random.choice([0.01, 0.5]), random.integers(3)] = random.choice(
            [NAN, INF]
        )
    return points


KINDS = ("normal", "sphere", "lattice", "duplicates", "magnitudes", "outliers", "line", "huge")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cpu_equals_the_naive_rule(instruction_set, kind, threads):
    random = np.random.default_rng(KINDS.index(kind))
    with testing.num_threads(threads):
        for _ in range(25):
            sizes = [int(random.choice([40, 700, 2500])) for _ in range(int(random.integers(1, 4)))]
            clouds = [make_cloud(kind, int(random.integers(1, s)), random) for s in sizes]
            nums = [int(random.choice([5, len(c) // 3, len(c) + 3])) for c in clouds]
            start = [int(random.integers(len(c))) for c in clouds]
            bounds = torch.tensor([0, *np.cumsum([len(c) for c in clouds])])
            indices, distances = ops.farthest_point_sampling(
                torch.from_numpy(np.concatenate(clouds)),
                nums,
                cu_seqlens=bounds,
                start=torch.tensor(start),
                return_distances=True,
            )
            want = [naive(*arguments) for arguments in zip(clouds, nums, start, strict=True)]
            offset = np.repeat(bounds[:-1].numpy(), nums)
            rows = np.concatenate([w[0] for w in want])
            assert np.array_equal(indices.numpy(), np.where(rows < 0, -1, rows + offset))
            assert np.array_equal(distances.numpy(), np.concatenate([w[1] for w in want]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sphere", "lattice", "outliers"])
def test_large_cloud_is_the_same_everywhere(kind):
    # Large enough for threads within a cloud. The naive rule would take minutes; variants check each other.
    points = torch.from_numpy(make_cloud(kind, 300_000, np.random.default_rng(0)))[None]
    expected = None
    for name in testing.instruction_sets():
        for threads in (1, 2, 3):
            with testing.instruction_set(name), testing.num_threads(threads):
                got = ops.farthest_point_sampling(points, 3000, return_distances=True)
            expected = got if expected is None else expected
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
    first, distances = naive(points[0].numpy(), 60, 0)
    assert np.array_equal(first, expected[0][0, :60].numpy())
    assert np.array_equal(distances, expected[1][0, :60].numpy())


# ---- The operator ------------------------------------------------------------------------------------------


def test_opcheck(backend):
    points = backend.put(testing.random_points(2, 40))
    clouds = torch.tensor([[0, 40], [40, 40], [8, 8], [0, 0], [0, 8]], device=points.device)
    testing.check_operator(_farthest_op, points, clouds, 8, 16)
    testing.check_operator(_farthest_with_distances_op, points, clouds, 8, 16)


def test_compiles():
    points, bounds = testing.random_points(2, 40), torch.tensor([0, 30, 80])
    testing.check_compiles(lambda p: ops.farthest_point_sampling(p, 8), points)
    testing.check_compiles(lambda p: ops.farthest_point_sampling(p, [3, 8], return_distances=True), points)
    testing.check_compiles(
        lambda p, b: ops.farthest_point_sampling(p, 5, cu_seqlens=b), points.flatten(0, 1), bounds
    )


def test_fake_tensors():
    with FakeTensorMode():
        indices, distances = ops.farthest_point_sampling(torch.zeros(2, 9, 3), 4, return_distances=True)
        assert indices.shape == distances.shape == (2, 4)
        assert (indices.dtype, distances.dtype) == (torch.int64, torch.float32)
    # What the fake call left behind must not reach a real one.
    assert ops.farthest_point_sampling(torch.zeros(2, 9, 3), 4).tolist() == [[0, 0, 0, 0]] * 2


def test_no_gradient():
    points = testing.random_points(1, 20).requires_grad_()
    indices, distances = ops.farthest_point_sampling(points, 4, return_distances=True)
    assert not indices.requires_grad
    assert not distances.requires_grad


@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        ([[0.0, 0, 0]], {}, TypeError, "`points` must be a torch.Tensor, got list"),
        (torch.zeros(1, 4, 3, dtype=torch.float64), {}, TypeError, "`points` must be float32, got float64"),
        (torch.zeros(4, 2), {}, ValueError, r"`points` must have shape \(B, N, 3\), got \(4, 2\)"),
        (torch.zeros(4, 3), {}, ValueError, "need `cu_seqlens`"),
        (torch.zeros(1, 4, 2), {}, ValueError, r"`points` must have shape \(B, N, 3\)"),
        (torch.zeros(1, 3, 4).mT, {}, ValueError, "`points` must be contiguous"),
        (torch.zeros(1, 4, 3), {"num_samples": -1}, ValueError, "`num_samples` must be at least 0, got -1"),
        (torch.zeros(2, 4, 3), {"num_samples": [1]}, ValueError, r"one number per cloud \(2\), got 1"),
        (torch.zeros(2, 4, 3), {"num_samples": [1, -2]}, ValueError, "`num_samples` must be at least 0"),
        (torch.zeros(1, 4, 3), {"start": 4}, ValueError, r"`start` must lie in 0..3, got 4"),
        (torch.zeros(1, 4, 3), {"start": "first"}, ValueError, "`start` must be an index"),
        (
            torch.zeros(2, 4, 3),
            {"start": torch.zeros(3).long()},
            ValueError,
            r"`start` must have shape \(2,\)",
        ),
        (
            torch.zeros(2, 4, 3),
            {"start": torch.zeros(2)},
            TypeError,
            "`start` must be int32 or int64, got float32",
        ),
        (torch.zeros(2, 4, 3), {"lengths": [4, 4]}, TypeError, "`lengths` must be a torch.Tensor, got list"),
        (
            torch.zeros(2, 4, 3),
            {"lengths": torch.tensor([4])},
            ValueError,
            r"`lengths` must have shape \(2,\)",
        ),
        (torch.zeros(1, 4, 3), {"lengths": torch.tensor([5])}, ValueError, r"`lengths` must lie in 0..4"),
        (torch.zeros(1, 4, 3), {"cu_seqlens": torch.tensor([0, 4])}, ValueError, r"shape \(total, 3\)"),
        (torch.zeros(4, 3), {"cu_seqlens": torch.tensor([0, 5])}, ValueError, "there are 4 rows"),
        (torch.zeros(4, 3), {"cu_seqlens": torch.tensor([3, 1])}, ValueError, "check `lengths`"),
        (
            torch.zeros(4, 3),
            {"cu_seqlens": torch.tensor([0, 4]), "lengths": torch.tensor([4])},
            ValueError,
            "pass one of them",
        ),
    ],
)
def test_wrong_arguments(points, options, error, message):
    with pytest.raises(error, match=message):
        ops.farthest_point_sampling(points, **{"num_samples": 1} | options)


def test_other_devices():
    with pytest.raises((ValueError, NotImplementedError)):
        ops.farthest_point_sampling(torch.zeros(1, 4, 3, device="meta"), 1).tolist()
    with pytest.raises(ValueError, match="`start` must be on the device of `points`"):
        ops.farthest_point_sampling(
            torch.zeros(1, 4, 3), 1, start=torch.zeros(1, dtype=torch.int64, device="meta")
        )
