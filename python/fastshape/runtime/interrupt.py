"""Ctrl-C that waits for a step to end, and Ctrl-C that is not lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


def delayed_interrupt() -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, so that no step is cut in half; the second acts as ever."""
    return _noted(lambda previous: signal.signal(signal.SIGINT, previous))


@contextlib.contextmanager
def kept_interrupt() -> Iterator[Callable[[], None]]:
    """Ctrl-C as ever, and not lost: what this gives raises KeyboardInterrupt if one came that ended nothing.

    Python raises it wherever it happens to be, which may be a finalizer or a call from C whose errors are
    dropped, or turned into others.
    """

    def end(previous: Any) -> None:
        raise KeyboardInterrupt

    with _noted(end) as asked:

        def check() -> None:
            if asked():
                raise KeyboardInterrupt

        yield check


@contextlib.contextmanager
def _noted(then: Callable[[Any], Any]) -> Iterator[Callable[[], bool]]:
    """Notes each Ctrl-C, and goes on with `then` of the handler of before; gives whether one came.

    Only the main thread has signals: in others none comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        then(previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
