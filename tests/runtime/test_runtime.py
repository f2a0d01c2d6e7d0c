"""What long runs stand on: memory as the system tells it, Ctrl-C between steps, differences in words."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
import torch

from fastshape.runtime.files import changes
from fastshape.runtime.interrupt import delayed_interrupt, kept_interrupt
from fastshape.runtime.memory import peak_bytes, peak_of, resident_bytes

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_counts_what_is_freed_again():
    size = 40 << 20

    def use() -> None:
        torch.ones(size, dtype=torch.uint8)

    for _ in range(2):  # the second time, too, though the first one has freed as much
        found = peak_of(use, CPU, exact=True)
        if found is None:
            pytest.skip("this system does not say")
        assert found == pytest.approx(size, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_counts_the_result():
    found = peak_of(lambda: torch.ones(48 << 20, dtype=torch.uint8), CPU)
    assert found is None or found > 40 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_is_not_there_has_no_memory():
    assert 0 < resident_bytes() <= peak_bytes()
    assert resident_bytes(os.getpid()) > 0
    assert resident_bytes(2**22 + 1) is None  # beyond the largest number of a process


@pytest.fixture
def usual_ctrl_c():
    """In a process that was started in the background it does nothing."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("usual_ctrl_c")
def test_ctrl_c_waits():
    with delayed_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second acts as ever
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("usual_ctrl_c")
def test_ctrl_c_is_not_lost():
    with kept_interrupt() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # as ever; whoever drops it
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_see_no_signals():
    seen = []

    def work() -> None:
        with delayed_interrupt() as interrupted:
            seen.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_changes_are_named():
    before = {"steps": 3, "model": {"depth": 2, "dim": 8}, "old": 1}
    after = {"steps": 4, "model": {"depth": 2, "dim": 16}}
    assert changes(before, after) == ["model.dim (8 -> 16)", "old (1 -> None)", "steps (3 -> 4)"]
    assert changes(before, before) == []
