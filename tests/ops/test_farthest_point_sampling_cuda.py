"""The CUDA kernels of farthest point sampling against the CPU's, which the naive rule checks.

Each size of cloud has its own kernel: a block, a cluster, a co-operative grid. Under the emulation all of
them run, on devices of several shapes and with the threads in several orders.
"""

from __future__ import annotations

import math

import pytest
import torch

from fastshape import _C, _library, ops, testing

# What make_plan of farthest_point_sampling_cuda.cu makes of them.
DEVICES = {
    "cluster": {},
    "cluster of eight": {"shared_bytes": 85 * 1024, "multiprocessors": 16},
    "co-operative": {"compute_capability": 80},
    "co-operative, many blocks": {"compute_capability": 86, "multiprocessors": 9, "shared_bytes": 99 * 1024},
    "co-operative, streamed": {"compute_capability": 80, "shared_bytes": 70 * 1024},
    "co-operative, one block": {"compute_capability": 80, "multiprocessors": 1},
}

SLOW = pytest.mark.slow


@pytest.fixture(params=["emulated", "cuda"])
def backend(request):
    reason = testing.missing_backend(request.param)
    if reason is not None:
        pytest.skip(reason)
    with testing.Backend(request.param) as active:
        yield active


QUICK_DEVICES = ("cluster", "co-operative, many blocks")  # the sanitizers see these


@pytest.fixture(params=[pytest.param(d, marks=() if d in QUICK_DEVICES else SLOW) for d in DEVICES])
def device(backend, request):
    if backend.name == "cuda":
        if request.param != "cluster":
            pytest.skip("the GPU is what it is")
        yield request.param
        return
    testing.emulated_module().set_emulation_device(**DEVICES[request.param])
    yield request.param
    testing.emulated_module().set_emulation_device()


def make_cloud(kind: str, count: int, seed: int) -> torch.Tensor:
    points = testing.random_points(count, seed=seed)
    if kind == "sphere":
        points = torch.nn.functional.normalize(points, dim=1)
    elif kind == "lattice":
        points = (points * 6).round()
    elif kind == "duplicates":
        points = points[torch.randint(count // 40 + 1, (count,), generator=testing.generator(seed))]
    elif kind == "outliers":
        points[::101] *= 1e6
    elif kind == "huge":
        points = (points * 1e38).clamp(-3e38, 3e38)
    elif kind == "tiny":
        points *= 1e-24
    elif kind == "holes":
        points[torch.rand(count, generator=testing.generator(seed)) < 0.3, seed % 3] = math.nan
        points[::77, 0] = math.inf
    return points


KINDS = ("normal", "sphere", "lattice", "duplicates", "outliers", "huge", "tiny", "holes")
QUICK_KINDS = ("lattice", "holes")
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK_KINDS else SLOW) for k in KINDS]
)


def assert_same(backend, points, num_samples, **options):
    with _library.use_backend(_C):
        want = ops.farthest_point_sampling(points, num_samples, return_distances=True, **options)
    moved = {k: backend.put(v) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    got = ops.farthest_point_sampling(backend.put(points), num_samples, return_distances=True, **moved)
    assert torch.equal(got[0].cpu(), want[0])
    assert torch.equal(got[1].cpu(), want[1])


# ---- One block a cloud -------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("count", [33, 512, 513, 1500, 2049, 4097, 8192])
def test_every_block_size(backend, count, kind):
    points = make_cloud(kind, count, seed=count)
    assert_same(backend, points[None], 70, start=count // 2)


def test_used_up_in_a_block(backend):
    points = make_cloud("duplicates", 300, seed=1)
    assert_same(backend, points[None], 320)


# ---- Teams of blocks ---------------------------------------------------------------------------------------


@each_kind
def test_every_team(backend, device, kind):
    points = make_cloud(kind, 8401, seed=5)
    assert_same(backend, points[None], 120, start=77)


def test_ragged_batch(backend, device):
    # Both kinds of kernels, more clouds than teams, empty clouds, clouds of NaN.
    lengths = torch.tensor([8500, 0, 30, 8193, 9000, 1, 8192])
    points = torch.stack([make_cloud(KINDS[b], 9000, seed=b) for b in range(7)])
    points[2, :] = math.nan
    start = torch.tensor([0, 0, 3, 8192, 8999, 0, 8191])
    assert_same(backend, points, [40, 3, 4, 0, 50, 2, 20], lengths=lengths, start=start)


def test_packed_batch(backend, device):
    # The host knows only how many points there are together.
    sizes = [100, 0, 8200, 1, 300, 17]
    bounds = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    points = torch.cat([make_cloud(KINDS[b], n, seed=b) for b, n in enumerate(sizes)])
    assert_same(backend, points, [120, 5, 20, 2, 10, 17], cu_seqlens=bounds)


def test_used_up_in_a_team(backend, device):
    points = make_cloud("duplicates", 8200, seed=3)
    points = points[torch.arange(8200) % 60]
    assert_same(backend, points[None], 100)


def test_more_picks_than_points_in_a_team(backend, device):
    points = torch.full((1, 8200, 3), math.nan)
    points[0, 8000:8100] = make_cloud("normal", 100, seed=0)
    assert_same(backend, points, 130)


@SLOW
@pytest.mark.parametrize("kind", ["sphere", "lattice"])
def test_large_clouds(backend, device, kind):
    points = make_cloud(kind, 75_000, seed=9)
    assert_same(backend, points[None], 700)


@SLOW
@pytest.mark.parametrize("order", ["descending", "random"])
def test_any_order_of_threads(device, backend, order):
    if backend.name != "emulated":
        pytest.skip("the GPU chooses")
    module = testing.emulated_module()
    points = torch.stack([make_cloud(kind, 8600, seed=2) for kind in ("sphere", "lattice")])
    try:
        for seed in range(2 if order == "random" else 1):
            module.set_emulation_schedule(order, seed)
            assert_same(backend, points[seed : seed + 1], 40)
            assert_same(backend, points[:, :700].contiguous(), 120)
    finally:
        module.set_emulation_schedule("ascending")


# ---- The launch --------------------------------------------------------------------------------------------


def test_workspace_is_modest():
    # A packed batch's longest cloud may be all of it; nobody reserves that for each team.
    module = testing.emulated_module()
    if module is None:
        pytest.skip("no emulated module")
    for batch, total in [(1, 10**6), (1000, 10**6), (1000, 10**8)]:
        size = module.farthest_point_sampling_workspace_bytes(batch, total, total, 100)
        assert size < 32 * total + 2**20
    assert module.farthest_point_sampling_workspace_bytes(64, 64 * 8192, 8192, 100) == 0


@pytest.mark.parametrize("count", [2048, 20_000, 200_000])
def test_cuda_graph(count):
    if (reason := testing.missing_backend("cuda")) is not None:
        pytest.skip(reason)
    points = [make_cloud("normal", count, seed=seed)[None].cuda() for seed in range(3)]
    held = points[0].clone()
    ops.farthest_point_sampling(held, 100)  # what is made once is made before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, distances = ops.farthest_point_sampling(held, 100, return_distances=True)
    for cloud in points:
        held.copy_(cloud)
        graph.replay()
        want = ops.farthest_point_sampling(cloud.cpu(), 100, return_distances=True)
        assert torch.equal(indices.cpu(), want[0])
        assert torch.equal(distances.cpu(), want[1])
