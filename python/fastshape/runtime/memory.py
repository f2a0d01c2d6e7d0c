"""How much memory processes hold and held, as the system tells it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


def resident_bytes(pid: int | None = None) -> int | None:
    """Bytes that a process, None is this one, has in memory; None where the system does not tell."""
    return status_bytes("VmRSS", pid)


def peak_bytes(pid: int | None = None) -> int | None:
    """The most that it ever had, or since :func:`reset_peak`."""
    return status_bytes("VmHWM", pid)


def reset_peak() -> bool:
    """Lets the peak of this process begin anew; False where the system does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def status_bytes(name: str, pid: int | None = None) -> int | None:
    """A size in /proc/PID/status; None where there is none."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid or 'self'}/status", "rb") as file:
        for line in file:
            if line.startswith(name.encode() + b":"):
                return int(line.split()[1]) * 1024
    return None


def peak_of(run: Callable[[], object], device: torch.device, *, exact: bool = False) -> int | None:
    """The most bytes in use during a call beyond those before it, its result included; None where the system
    does not tell.

    Args:
        run: the call.
        device: where it works: the memory of a GPU, or that of this process.
        exact: the C library (glibc) holds back nothing that is freed, so that blocks which were freed before
            and are used again count too. It costs time; None where it is another library.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - held
    with contextlib.ExitStack() as stack:
        if exact and not stack.enter_context(_memory_given_back()):
            return None
        _give_back()
        if not reset_peak() or (before := resident_bytes()) is None:
            return None
        result = run()
        peak = peak_bytes()
        del result
        return None if peak is None else max(0, peak - before)


def _give_back() -> None:
    """Lets the C library return what earlier calls have freed, which a call would use without being seen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def _memory_given_back() -> Iterator[bool]:
    """Lets the C library hold no freed memory; whether it does.

    Afterwards it holds blocks of up to 32 MiB, as it comes to do by itself in time.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):
        yield False
        return
    largest_held, heap_end_held = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    library.mallopt(largest_held, 64 << 10)
    library.malloc_trim(0)
    try:
        yield True
    finally:
        library.mallopt(largest_held, 32 << 20)
        library.mallopt(heap_end_held, 64 << 20)
