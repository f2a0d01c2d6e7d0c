"""Run one row: check, measure, relate to the machine's limits and to the peers."""

from __future__ import annotations

import datetime
import traceback
from dataclasses import asdict
from typing import Any

import torch

from fastshape.runtime.memory import peak_of

from . import machine, measure
from .registry import Case, Peer, Row


def run_row(
    row: Row, device: torch.device, limits: measure.Limits, *, seconds: float = 2.0
) -> dict[str, Any]:
    """Return a row's record: its ``status`` is "ok", or "wrong" or "failed" with an ``error``."""
    record: dict[str, Any] = {
        "family": row.family,
        "op": row.op,
        "shape": row.shape,
        "dtype": row.dtype,
        "device": device.type,
        "status": "ok",
        "commit": machine.commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    try:
        case = row.case(device)
        if case.setup is not None:
            case.setup()
        result = case.run()
        measure.synchronize(device)
        expected = case.reference()
    except Exception:
        return record | {"status": "failed", "error": traceback.format_exc()}
    try:
        case.check(result, expected)
    except Exception as error:
        return record | {"status": "wrong", "error": str(error) or type(error).__name__}
    del result
    try:
        peers = {name: _agreement(case, peer, expected, device) for name, peer in case.peers.items()}
        del expected
        runs = {"": case.run} | {
            name: _as_peer(case.peers[name]).run for name, about in peers.items() if about["status"] == "ok"
        }
        timings = measure.interleaved(
            runs,
            device,
            seconds=seconds,
            cold=case.cold,
            host_clock=case.clock == "host",
            setup=case.setup,
        )
        own = timings.pop("")
        record["seconds"] = own.as_dict()
        record["cold"] = case.cold
        record["clock"] = case.clock
        record |= _limits(case, row, device, limits, own)
        if case.memory:
            record["memory_peak_bytes"] = peak_of(case.run, device)
            for name in timings:
                peers[name] |= _peak(_as_peer(case.peers[name]), record["memory_peak_bytes"], device)
        if case.counts is not None:
            record["counts"] = dict(case.counts())
        for name, timing in timings.items():
            peers[name] |= _counts(_as_peer(case.peers[name]), record.get("counts", {}))
            peers[name] |= {"seconds": timing.as_dict(), "ratio": timing.median / own.median}
            peers[name]["cpu_ratio"] = timing.cpu / own.cpu if own.cpu > 0 else None
        record["peers"] = peers
        record["quoted"] = [
            asdict(q) | {"ratio": q.seconds / own.median if q.comparable else None} for q in case.quoted
        ]
        if case.target is not None:
            record["target"] = asdict(case.target) | _against_target(case, own, timings)
    except Exception:
        return record | {"status": "failed", "error": traceback.format_exc()}
    return record


def _as_peer(peer: Any) -> Peer:
    return peer if isinstance(peer, Peer) else Peer(peer)


def _agreement(case: Case, declared: Any, expected: Any, device: torch.device) -> dict[str, Any]:
    """Whether a peer runs here, and whether it returns what the reference returns."""
    if declared is None:
        return {"status": "not installed"}
    peer = _as_peer(declared)
    about: dict[str, Any] = {"status": "ok", "agrees": True}
    if peer.note:
        about["note"] = peer.note
    try:
        if case.setup is not None:
            case.setup()
        result = peer.run()
        measure.synchronize(device)
    except Exception as error:
        return about | {
            "status": "failed",
            "agrees": False,
            "error": f"{type(error).__name__}: {error}"[:500],
        }
    try:
        (peer.check or case.check)(peer.result(result) if peer.result else result, expected)
    except Exception as error:
        about |= {"agrees": False, "difference": f"{type(error).__name__}: {error}"[:500]}
    return about


def _counts(peer: Peer, own: dict[str, float]) -> dict[str, Any]:
    """A peer's bytes by name, and as multiples of the case's own."""
    if peer.counts is None:
        return {}
    counts = dict(peer.counts())
    return {"counts": counts, "count_ratios": {n: c / own[n] for n, c in counts.items() if own.get(n)}}


def _peak(peer: Peer, own: int | None, device: torch.device) -> dict[str, Any]:
    """A peer's peak memory, and as a multiple of the case's own."""
    peak = peak_of(peer.run, device)
    return {"memory_peak_bytes": peak, "memory_ratio": peak / own if peak is not None and own else None}


def _limits(
    case: Case, row: Row, device: torch.device, limits: measure.Limits, own: measure.Timing
) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": case.bytes, "flops": case.flops}
    floor = limits.floor(device, row.dtype, case.bytes, case.flops)
    if floor is not None:
        found |= {"floor_seconds": floor[0], "bound": floor[1], "share_of_limit": floor[0] / own.median}
    return found


def _against_target(case: Case, own: measure.Timing, timings: dict[str, measure.Timing]) -> dict[str, Any]:
    assert case.target is not None
    if case.target.peer not in timings:
        return {"measured": None, "met": None}
    measured = own.minimum / timings[case.target.peer].minimum
    return {"measured": measured, "met": measured <= case.target.ratio}
