"""How a kernel declares its rows.

A row is a small function that takes a device and returns a :class:`Case`::

    @row(family="sampling", op="farthest_point_sampling", shape="16384->2048", dtype="float32",
         num_points=16384, num_samples=2048)
    def farthest_point_sampling(device, num_points, num_samples):
        points = surface_points(num_points, device)
        return Case(
            run=lambda: ops.farthest_point_sampling(points, num_samples),
            reference=lambda: reference.farthest_point_sampling(points, num_samples),
            peers={"torch_quickfps": torch_quickfps(points, num_samples)},  # None: not installed
            bytes=points.nbytes + 8 * num_samples,
            flops=8.0 * num_points * num_samples,
            quoted=[Quoted("QuickFPS", 5.3e-3, "2 Zen 4 cores", "its README")],
        )

The decorator returns the function, so several rows stack over one function. Keywords that ``row`` does not
know are handed to the function. Files named ``bench_<family>.py`` in this folder are found by themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

import torch


def exact(result: Any, expected: Any) -> None:
    """Raise AssertionError unless both are the same tensors (or nests of them), bit for bit."""
    torch.testing.assert_close(result, expected, rtol=0.0, atol=0.0, equal_nan=True, check_device=False)


@dataclass(frozen=True)
class Quoted:
    """A published figure, never measured here; it is always printed with the word ``quoted``.

    ``memory`` is in bytes. A figure for other sizes than the row's is not ``comparable``: it is printed
    without a ratio.
    """

    name: str
    seconds: float
    machine: str
    source: str
    memory: float | None = None
    comparable: bool = True


@dataclass(frozen=True)
class Peer:
    """Somebody else's code for the same task.

    ``result`` turns what ``run`` returns into what the reference returns, so that agreement can be stated
    beside the time; ``check`` replaces the case's own check. A peer that differs is timed, and marked.
    ``counts`` is as the case's.
    """

    run: Callable[[], Any]
    result: Callable[[Any], Any] | None = None
    check: Callable[[Any, Any], None] | None = None
    note: str = ""
    counts: Callable[[], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Target:
    """The largest accepted own time as a multiple of a peer's, minimum against minimum."""

    peer: str
    ratio: float


@dataclass(frozen=True)
class Case:
    """One measurable call.

    Args:
        run: what is timed.
        reference: gives what ``run`` must return; compared by ``check`` before anything is timed.
        check: raises when result and reference differ; exact equality unless told otherwise.
        peers: name to callable or :class:`Peer`, None where the peer is not installed.
        bytes: the fewest bytes the task must move: each input read once, each output written once.
        flops: the floating-point operations the task needs.
        quoted: published figures for the same task.
        setup: runs before every call, outside the clock.
        memory: report the peak memory of a call too.
        counts: gives more bytes to report, by name; called once, outside the clock. Those of a peer are
            divided by the case's own of the same name.
        cold: empty the caches before every call. Calls of microseconds, whose cost is Python's, set it to
            False and are then timed in a loop.
        clock: "device" (CUDA events on a GPU, wall time on a CPU) or "host" (until the call returns).
        target: a bound on the ratio to one peer.
    """

    run: Callable[[], Any]
    reference: Callable[[], Any]
    check: Callable[[Any, Any], None] = exact
    peers: Mapping[str, Callable[[], Any] | Peer | None] = field(default_factory=dict)
    bytes: float | None = None
    flops: float | None = None
    quoted: Sequence[Quoted] = ()
    setup: Callable[[], Any] | None = None
    memory: bool = False
    counts: Callable[[], Mapping[str, float]] | None = None
    cold: bool = True
    clock: str = "device"
    target: Target | None = None


@dataclass(frozen=True)
class Row:
    """A declared row: its names and the function that makes its case."""

    family: str
    op: str
    shape: str
    dtype: str
    devices: tuple[str, ...]
    make: Callable[..., Case]
    parameters: Mapping[str, Any]

    def case(self, device: torch.device) -> Case:
        """Make the inputs on a device, always the same ones."""
        torch.manual_seed(0)
        return self.make(device, **self.parameters)


ROWS: list[Row] = []
_Make = TypeVar("_Make", bound=Callable[..., Case])


def row(
    *,
    family: str,
    op: str,
    shape: str,
    dtype: str = "float32",
    devices: Sequence[str] = ("cpu", "cuda"),
    rows: list[Row] | None = None,
    **parameters: Any,
) -> Callable[[_Make], _Make]:
    """Declare a row over a function ``(device, **parameters) -> Case``; see the module's docstring."""

    def declare(make: _Make) -> _Make:
        into = ROWS if rows is None else rows
        new = Row(family, op, shape, dtype, tuple(devices), make, parameters)
        for old in into:
            if (old.op, old.shape, old.dtype) == (op, shape, dtype) and set(old.devices) & set(new.devices):
                raise ValueError(f"the row {op} {shape} {dtype} is declared twice")
        into.append(new)
        return make

    return declare


def collect(package: ModuleType | None = None) -> list[Row]:
    """Import every ``bench_<family>`` module beside this one and return the rows they declare."""
    package = importlib.import_module(__package__ or "benchmarks") if package is None else package
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("bench_"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return list(ROWS)


def select(
    rows: Sequence[Row],
    *,
    family: Sequence[str] = (),
    op: Sequence[str] = (),
    shape: Sequence[str] = (),
    dtype: Sequence[str] = (),
) -> list[Row]:
    """Rows that match every filter; one matches where any of its words is part of the row's name."""

    def matches(words: Sequence[str], name: str) -> bool:
        return not words or any(word in name for word in words)

    return [
        r
        for r in rows
        if matches(family, r.family)
        and matches(op, r.op)
        and matches(shape, r.shape)
        and matches(dtype, r.dtype)
    ]
