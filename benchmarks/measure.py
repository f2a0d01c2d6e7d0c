"""Clocks: cold caches, interleaved contenders, median and spread, and the machine's own measured limits."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

_LOOP_SECONDS = 2e-3  # a warm sample repeats its call until it lasts about this long
_SLOW_SECONDS = 30.0  # a call that takes longer is timed once
_SETTLE_SECONDS = 10e-3  # for so long torch's threads (OpenMP's) keep a processor busy after their last loop


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender, and processor seconds of the whole process."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    cpu: float
    runs: int

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a fraction of the median."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median > 0 else 0.0

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "spread": self.spread}

    @staticmethod
    def of(seconds: list[float], cpu_seconds: list[float]) -> Timing:
        lower, _, upper = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
        return Timing(
            statistics.median(seconds),
            lower,
            upper,
            min(seconds),
            statistics.median(cpu_seconds),
            len(seconds),
        )


class Flush:
    """A buffer larger than a device's last cache; writing it drives the inputs out of the cache."""

    def __init__(self, device: torch.device) -> None:
        size = min(max(2 * last_cache_bytes(device), 16 << 20), 512 << 20)
        self._buffer = torch.zeros(size // 4, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        self._buffer.add_(1)


def last_cache_bytes(device: torch.device) -> int:
    """The size of the last-level cache: what the driver or the kernel says, 64 MiB where neither does."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    largest = 0
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", file.read_text().strip())
        if match:
            largest = max(largest, int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]])
    return largest or 64 << 20


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class _Contender:
    run: Callable[[], Any]
    loop: int = 1
    first: float = 0.0
    spent: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def _sample(contender: _Contender, device: torch.device, events: bool) -> None:
    start_wall = time.perf_counter()
    start_cpu = time.process_time()
    if events:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(contender.loop):
            contender.run()
        end.record()
        end.synchronize()
        seconds = start.elapsed_time(end) * 1e-3
    else:
        for _ in range(contender.loop):
            contender.run()
        seconds = time.perf_counter() - start_wall
    contender.cpu_seconds.append((time.process_time() - start_cpu) / contender.loop)
    contender.seconds.append(seconds / contender.loop)
    synchronize(device)
    contender.spent += time.perf_counter() - start_wall


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    seconds: float = 2.0,
    cold: bool = True,
    host_clock: bool = False,
    setup: Callable[[], Any] | None = None,
    minimum_runs: int = 5,
    maximum_runs: int = 200,
) -> dict[str, Timing]:
    """Time several contenders in turns, so that what else the machine does falls on all of them alike.

    Each contender is warmed up, then gets about `seconds` of clock time and at least `minimum_runs` calls;
    three where one call takes longer than `seconds`, one where it takes longer than 30 s. The order rotates.
    A call with cold caches starts when nobody's threads wait for more work any longer.
    """
    flush = Flush(device) if cold else None
    events = device.type == "cuda" and not host_clock
    contenders = {name: _Contender(run) for name, run in runs.items()}
    for contender in contenders.values():
        calls = 0
        begin = time.perf_counter()
        while calls < 3 or (time.perf_counter() - begin < 0.05 and calls < 1000):
            if setup is not None:
                setup()
            start = time.perf_counter()
            contender.run()
            synchronize(device)
            contender.first = time.perf_counter() - start
            calls += 1
            if time.perf_counter() - begin > seconds and calls >= 1:
                break
        if not cold:
            contender.loop = max(1, min(10_000, int(_LOOP_SECONDS / max(contender.first, 1e-7))))

    names = list(contenders)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(maximum_runs):
            waiting = False
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                contender = contenders[name]
                if contender.first > _SLOW_SECONDS:
                    enough = 1
                elif contender.first > seconds:
                    enough = 3
                else:
                    enough = minimum_runs
                if contender.spent >= seconds and len(contender.seconds) >= enough:
                    continue
                if contender.first > _SLOW_SECONDS and contender.seconds:
                    continue
                waiting = True
                if setup is not None:
                    setup()
                if flush is not None:
                    flush()
                    if not events:
                        synchronize(device)
                    if device.type == "cpu":
                        time.sleep(min(_SETTLE_SECONDS, seconds / 20))
                _sample(contender, device, events)
            if not waiting:
                break
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(c.seconds, c.cpu_seconds) for name, c in contenders.items()}


def saved_bytes(function: Callable[[], Any], exclude: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that the autograd graph keeps for its backward pass, while `function` builds one such graph.

    Counts whole storages, each once: two views of a tensor keep no more than one, a small view of a large
    tensor keeps all of it. It does not depend on the allocator, nor on what else is in memory. `function` may
    also run the backward pass, once: that saves nothing.

    Args:
        function: makes the graph.
        exclude: tensors that would be in memory anyway, such as the parameters.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # What is saved stays where it is until the backward pass, so an address names one storage.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(found.values())


class Limits:
    """What this machine can do, measured: the rates of a large copy and of a matrix product."""

    def __init__(self) -> None:
        self._bandwidth: dict[str, float] = {}
        self._arithmetic: dict[tuple[str, str], float] = {}

    def bandwidth(self, device: torch.device) -> float:
        """Bytes read plus bytes written per second by a large copy."""
        if device.type not in self._bandwidth:
            count = (2 << 30 if device.type == "cuda" else 128 << 20) // 4
            source = torch.rand(count, device=device)
            target = torch.empty_like(source)
            timing = interleaved({"copy": lambda: target.copy_(source)}, device, seconds=0.5, cold=False)[
                "copy"
            ]
            self._bandwidth[device.type] = 8.0 * count / timing.lower_quartile
        return self._bandwidth[device.type]

    def arithmetic(self, device: torch.device, dtype: str) -> float:
        """Floating-point operations per second of a square matrix product on random data."""
        name = dtype if dtype in ("float16", "bfloat16", "float64") else "float32"
        if (device.type, name) not in self._arithmetic:
            size = 8192 if device.type == "cuda" else 1024
            left = torch.randn(size, size, device=device).to(getattr(torch, name))
            right = torch.randn(size, size, device=device).to(getattr(torch, name))
            out = torch.empty_like(left)
            timing = interleaved(
                {"mm": lambda: torch.mm(left, right, out=out)}, device, seconds=0.5, cold=False
            )["mm"]
            self._arithmetic[device.type, name] = 2.0 * size**3 / timing.lower_quartile
        return self._arithmetic[device.type, name]

    def floor(
        self, device: torch.device, dtype: str, bytes_moved: float | None, flops: float | None
    ) -> tuple[float, str] | None:
        """The least time a task can take and what binds it; None where neither count is known."""
        times = []
        if bytes_moved:
            times.append((bytes_moved / self.bandwidth(device), "memory"))
        if flops:
            times.append((flops / self.arithmetic(device, dtype), "arithmetic"))
        return max(times) if times else None

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """What was measured, by device."""
        devices = sorted(set(self._bandwidth) | {device for device, _ in self._arithmetic})
        return {
            device: {
                "copy_bytes_per_second": self._bandwidth.get(device),
                "matmul_flops_per_second": {n: v for (d, n), v in self._arithmetic.items() if d == device},
            }
            for device in devices
        }
