"""What the tests of fastshape, and of code built on it, need: back ends, tolerances, inputs, operator checks.

Tolerances stand here and nowhere else. Index and topology results have none: they are equal.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastshape import _C, _library

BACKENDS = ("cpu", "emulated", "cuda")

# What a float result may differ from an fp64 reference beyond twice the error of the same-precision torch
# reference, relative to the largest magnitude of the reference: a few units in the last place.
FLOORS = {
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}

# What a float32 result may differ from the golden output of official code, relative to the golden's root mean
# square: features, whose sines of large angles differ between machines, and logits.
GOLDEN_FEATURES = 2e-4
GOLDEN_LOGITS = 5e-5

# What vertices and what goes with them may differ: some roundings of each.
GOLDEN_SURFACE = 2e-5

# What sums of codes, their losses and statistics may differ: some roundings.
GOLDEN_CODES = 1e-5

# What logits and normalized latents may differ from the golden where attention is rounded to bfloat16: the
# largest difference; and where everything is: its root mean square.
GOLDEN_BFLOAT16 = 2e-2


# ---- Back ends ---------------------------------------------------------------------------------------------


_emulated: ModuleType | None = None


def load_emulated(folder: str | Path) -> bool:
    """Loads the build whose CUDA kernels run on the CPU (``-DFASTSHAPE_EMULATION=ON``) from its build folder.

    Returns whether it is there.
    """
    global _emulated
    for path in sorted(Path(folder).glob("_C_emulated*.so")):
        spec = importlib.util.spec_from_file_location("fastshape._C_emulated", path)
        assert spec is not None
        assert spec.loader is not None
        _emulated = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_emulated)
        return True
    return False


def emulated_module() -> ModuleType | None:
    """The module that :func:`load_emulated` loaded, or None."""
    return _emulated


def missing_backend(name: str) -> str | None:
    """Why back end ``name`` cannot run here; None if it can."""
    if name == "emulated" and emulated_module() is None:
        return "no emulated module (build with -DFASTSHAPE_EMULATION=ON, run pytest --emulated FOLDER)"
    if name == "cuda" and not torch.cuda.is_available():
        return "no GPU here"
    if name == "cuda" and not _C.cuda_architectures:
        return "this build has no CUDA kernels"
    return None


@contextmanager
def emulated() -> Iterator[None]:
    """Within it CPU tensors run through the CUDA kernels, emulated on the CPU."""
    module = emulated_module()
    if module is None:
        raise RuntimeError("no emulated module was loaded; see load_emulated")
    with _library.use_backend(module):
        yield


class Backend:
    """One of ``BACKENDS`` as tests use it: ``with backend: op(backend.put(points))``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    def put(self, *tensors: Tensor) -> Any:
        """The tensors on the back end's device; one tensor alone for one argument."""
        moved = tuple(t.detach().to(self.device).requires_grad_(t.requires_grad) for t in tensors)
        return moved[0] if len(moved) == 1 else moved

    def __enter__(self) -> Backend:
        self._scope = emulated() if self.name == "emulated" else None
        if self._scope is not None:
            self._scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._scope is not None:
            self._scope.__exit__(*error)

    def __repr__(self) -> str:
        return self.name


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Within it the CPU kernels use at most ``name``: portable, avx2 or avx512."""
    former = _C.instruction_set()
    _C.set_instruction_set(name)
    try:
        yield
    finally:
        _C.set_instruction_set(former)


def instruction_sets() -> list[str]:
    """The instruction sets that this processor has, the portable one first."""
    names = ["portable", "avx2", "avx512"]
    return names[: names.index(_C.best_instruction_set()) + 1]


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    """Within it torch, and with it the CPU kernels, use ``threads`` threads."""
    former = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(former)


# ---- Comparisons -------------------------------------------------------------------------------------------


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest magnitude of ``reference``; inf where only one is finite."""
    result, reference = result.detach().double().cpu(), reference.detach().double().cpu()
    if result.shape != reference.shape:
        raise AssertionError(f"shape {tuple(result.shape)} instead of {tuple(reference.shape)}")
    if result.numel() == 0:
        return 0.0
    finite = reference.isfinite()
    if not torch.equal(result.isfinite(), finite) or not torch.equal(
        result[~finite].nan_to_num(nan=123.0), reference[~finite].nan_to_num(nan=123.0)
    ):
        return math.inf
    if not finite.any():
        return 0.0
    scale = reference[finite].abs().max().clamp_min(1e-30)
    return float((result[finite] - reference[finite]).abs().max() / scale)


def assert_accurate(
    result: Tensor, reference64: Tensor, same_precision: Tensor | None = None, *, floor: float | None = None
) -> None:
    """Error against fp64 at most twice that of the same-precision torch reference, plus a floor.

    Args:
        result: what the kernel gave.
        reference64: the reference computed in float64.
        same_precision: the reference computed in the kernel's precision; None counts as no error at all.
        floor: instead of ``FLOORS[result.dtype]``; state why where it is used.
    """
    allowed = FLOORS[result.dtype] if floor is None else floor
    if same_precision is not None:
        allowed += 2 * relative_error(same_precision, reference64)
    error = relative_error(result, reference64)
    if not error <= allowed:
        raise AssertionError(f"relative error {error:.3g} exceeds {allowed:.3g}")


def assert_golden(result: Tensor, golden: Tensor, tolerance: float = GOLDEN_FEATURES) -> None:
    """Largest difference at most ``tolerance`` times the root mean square of ``golden``."""
    if result.shape != golden.shape:
        raise AssertionError(f"shape {tuple(result.shape)} instead of {tuple(golden.shape)}")
    result, golden = result.detach().double().cpu(), golden.double().cpu()
    error = float((result - golden).abs().max() / golden.square().mean().sqrt().clamp_min(1e-30))
    if not error <= tolerance:
        raise AssertionError(
            f"differs from the golden by {error:.3g} of its root mean square, allowed {tolerance:.3g}"
        )


def assert_gradients_match(result: Tensor, reference: Tensor, *, tolerance: float = 1e-5) -> None:
    """For gradients that are sums in any order: relative norm of the difference, and the cosine."""
    result, reference = result.detach().double().cpu().flatten(), reference.detach().double().cpu().flatten()
    norm = reference.norm().clamp_min(1e-30)
    error = float((result - reference).norm() / norm)
    cosine = float(torch.dot(result, reference) / (result.norm().clamp_min(1e-30) * norm))
    if not (error <= tolerance and cosine >= 1 - tolerance):
        raise AssertionError(f"gradients differ: relative norm {error:.3g}, cosine {cosine:.9f}")


# ---- Inputs ------------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform in [-1, 1), shape ``(*shape, 3)``."""
    return torch.rand(*shape, 3, generator=generator(seed), dtype=dtype) * 2 - 1


def lattice_points(*shape: int, steps: int = 8, seed: int = 0) -> Tensor:
    """Multiples of ``1/steps``: squared distances are exact and equal distances are frequent."""
    return torch.randint(-steps, steps + 1, (*shape, 3), generator=generator(seed)).float() / steps


def icosphere(subdivisions: int = 2, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) float64 and faces (F, 3) int64 of a subdivided icosahedron, oriented outwards."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [(-1, golden, 0), (1, golden, 0), (-1, -golden, 0), (1, -golden, 0)]
    vertices = [torch.tensor(c, dtype=torch.float64).roll(axis) for axis in range(3) for c in corners]
    points = torch.stack(vertices)
    points = points / points.norm(dim=1, keepdim=True)
    # The faces of the convex hull: triples of mutual nearest neighbours, turned outwards.
    near = torch.cdist(points, points) < 1.1
    triples = [
        (a, b, c)
        for a in range(12)
        for b in range(a + 1, 12)
        for c in range(b + 1, 12)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    faces = torch.tensor(triples)
    corner = points[faces]
    inwards = torch.linalg.det(corner) < 0
    faces[inwards] = faces[inwards].flip(1)
    for _ in range(subdivisions):
        edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
        unique, inverse = edges.unique(dim=0, return_inverse=True)
        middle = points[unique].mean(dim=1)
        ab, bc, ca = (inverse + len(points)).view(3, -1)
        a, b, c = faces.T
        points = torch.cat([points, middle / middle.norm(dim=1, keepdim=True)])
        faces = torch.cat([torch.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return points * radius, faces


# ---- Memory ------------------------------------------------------------------------------------------------


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most CPU memory that torch held at a time while ``function`` ran, beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


# ---- Operator checks ---------------------------------------------------------------------------------------


def check_operator(overload: Any, *arguments: Any) -> None:
    """``torch.library.opcheck``: schema, autograd registration, fake tensors, AOT dispatch."""
    torch.library.opcheck(overload, arguments)


def check_compiles(
    function: Callable[..., Any], *arguments: Any, backend: str = "aot_eager", exact: bool = True
) -> None:
    """``torch.compile(fullgraph=True)`` of ``function`` gives what ``function`` gives."""
    torch._dynamo.reset()
    expected = function(*arguments)
    result = torch.compile(function, fullgraph=True, backend=backend)(*arguments)
    as_tuple = expected if isinstance(expected, (tuple, list)) else (expected,)
    result_tuple = result if isinstance(result, (tuple, list)) else (result,)
    for got, want in zip(result_tuple, as_tuple, strict=True):
        torch.testing.assert_close(
            got, want, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6, equal_nan=True
        )


def check_gradients(function: Callable[..., Any], *inputs: Tensor) -> None:
    """``torch.autograd.gradcheck`` in float64."""
    doubles = tuple(i.detach().double().requires_grad_(True) if i.is_floating_point() else i for i in inputs)
    torch.autograd.gradcheck(function, doubles, eps=1e-6, atol=1e-6, rtol=1e-5)
