"""Child processes that do one call after another under limits of time and memory.

A call that runs too long, takes too much memory, or brings its process down is a failure of that call; its
process is replaced, and the others go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from fastshape.runtime.memory import peak_bytes, reset_peak, resident_bytes, status_bytes

_POLL = 0.05  # seconds between looks at the memory of the processes
_START_TIMEOUT = 120.0


@dataclass(frozen=True)
class Result:
    """The end of one call.

    Attributes:
        ticket: what `submit` was given.
        value: what the call returned; None if it failed.
        failure: None, "raised", "timeout", "memory" or "crash".
        reason: of the failure, in words.
        seconds: the call took.
        peak_memory: of the process during the call, in bytes; 0 where the system does not say.
    """

    ticket: Any
    value: Any
    failure: str | None
    reason: str
    seconds: float
    peak_memory: int


class WorkerPool:
    """Processes that take calls; a context manager.

    Args:
        size: number of processes.
        folder: an existing folder for what they print; one short file each.
        timeout: seconds that a call may take, None for no limit.
        memory: bytes of memory that a process may take, None for no limit. A larger allocation fails; where
            that is not enough, the process is killed.
        threads: of torch in each process.
        preload: modules to import once, before the processes are forked.
    """

    def __init__(
        self,
        size: int,
        folder: Path,
        *,
        timeout: float | None = None,
        memory: int | None = None,
        threads: int = 1,
        preload: Iterable[str] = (),
    ) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([__name__, *preload])
        self._folder = folder
        self._timeout = timeout
        self._memory = memory
        self._threads = threads
        self._workers = [self._start(number) for number in range(size)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()

    @property
    def num_idle(self) -> int:
        """Processes that wait for a call."""
        return sum(worker.ticket is None for worker in self._workers)

    @property
    def num_busy(self) -> int:
        return len(self._workers) - self.num_idle

    def submit(self, ticket: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Start `function(*arguments)` in an idle process; both must be picklable, the ticket is not sent."""
        place = next(place for place, worker in enumerate(self._workers) if worker.ticket is None)
        if not self._workers[place].process.is_alive():  # killed while it waited: not the fault of this call
            self._workers[place] = self._renew(self._workers[place])
        worker = self._workers[place]
        worker.ticket, worker.begin = _Ticket(ticket), time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # a dead process is noticed by `wait`
            worker.connection.send((function, arguments))

    def wait(self, timeout: float) -> list[Result]:
        """The calls that have ended; waits up to `timeout` seconds for the first."""
        deadline = time.monotonic() + timeout
        while True:
            results = self._look(min(_POLL, max(deadline - time.monotonic(), 0.0)))
            if results or not self.num_busy or time.monotonic() >= deadline:
                return results

    def _look(self, timeout: float) -> list[Result]:
        busy = {worker.connection: place for place, worker in enumerate(self._workers) if worker.ticket}
        results = []
        for ready in connection.wait(list(busy), timeout):
            results.append(self._receive(busy.pop(ready)))  # type: ignore[call-overload]
        for place in busy.values():
            worker = self._workers[place]
            seconds = time.monotonic() - worker.begin
            if self._timeout is not None and seconds > self._timeout:
                results.append(self._replace(place, "timeout", f"took more than {self._timeout:g} s"))
            elif (
                self._memory is not None
                and (resident := (resident_bytes(worker.process.pid) or 0)) > self._memory
            ):
                worker.peak = resident
                results.append(self._replace(place, "memory", _too_large(self._memory)))
        return results

    def _receive(self, place: int) -> Result:
        worker = self._workers[place]
        try:
            failure, value, reason, seconds, peak = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5.0)
            code = worker.process.exitcode
            if code is not None and code < 0:
                end = f"the process died of {signal.Signals(-code).name}"
            else:
                end = f"the process ended with code {code}"
            last = worker.last_words()
            return self._replace(place, "crash", f"{end} ({last})" if last else end)
        assert worker.ticket is not None
        result = Result(worker.ticket.value, value, failure, reason, seconds, peak)
        worker.ticket = None
        held = (resident_bytes(worker.process.pid) or 0) if self._memory is not None else 0
        if failure == "memory" or (self._memory is not None and held > self._memory // 2):
            self._workers[place] = self._renew(worker)
        return result

    def _replace(self, place: int, failure: str, reason: str) -> Result:
        worker = self._workers[place]
        assert worker.ticket is not None
        seconds = time.monotonic() - worker.begin
        peak = max(worker.peak, peak_bytes(worker.process.pid) or 0)
        self._workers[place] = self._renew(worker)
        return Result(worker.ticket.value, None, failure, reason, seconds, peak)

    def _renew(self, worker: _Worker) -> _Worker:
        worker.kill()
        return self._start(worker.number)

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        log = self._folder / f"worker-{number}.log"
        log.touch()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, str(log), self._threads, self._memory), daemon=True
        )
        process.start()
        theirs.close()
        worker = _Worker(number, process, ours, log)
        try:
            ready = ours.poll(_START_TIMEOUT) and ours.recv() == "ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            worker.kill()
            raise RuntimeError(
                "a worker process did not start; a script must start the run under "
                f"`if __name__ == '__main__':` ({worker.last_words() or 'it said nothing'})"
            )
        return worker


@dataclass
class _Ticket:
    value: Any


@dataclass
class _Worker:
    number: int
    process: Any
    connection: Any
    log: Path
    ticket: _Ticket | None = None
    begin: float = 0.0
    peak: int = 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()

    def last_words(self) -> str:
        """The last line that the process printed."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""


def _too_large(memory: int) -> str:
    return f"took more than {memory / 2**20:,.0f} MiB"


# ------------------------------------------------------------------------ in the child


def _serve(pipe: Any, log: str, threads: int, memory: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    with open(log, "ab", buffering=0) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)
    _limit(memory)
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, calls), daemon=True).start()
    pipe.send("ready")
    while True:
        call = calls.get()
        os.truncate(log, 0)
        reset_peak()
        begin = time.perf_counter()
        failure, value, reason = _perform(call, memory)
        seconds = time.perf_counter() - begin
        sys.stdout.flush()
        sys.stderr.flush()
        pipe.send((failure, value, reason, seconds, peak_bytes() or 0))


def _listen(pipe: Any, calls: queue.SimpleQueue[Any]) -> None:
    """Hands the calls on; ends the process, whatever it is doing, when the parent is gone."""
    while True:
        try:
            calls.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)
        except Exception as error:  # a call that cannot be unpickled
            calls.put(error)


def _perform(call: Any, memory: int | None) -> tuple[str | None, Any, str]:
    try:
        if isinstance(call, Exception):
            raise call
        function, arguments = call
        return None, function(*arguments), ""
    except BaseException as error:
        text = " ".join(f"{error}".split()) or type(error).__name__
        if isinstance(error, MemoryError) or "not enough memory" in text or "std::bad_alloc" in text:
            return "memory", None, _too_large(memory) if memory is not None else text
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "raised", None, f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"


def _limit(memory: int | None) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if memory is None:
            return
        # What is mapped for writing counts, used or not: the untouched part of what is there is no one's.
        mapped, resident = status_bytes("VmData") or 0, resident_bytes() or 0
        limit = memory + max(mapped - resident, 0)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
