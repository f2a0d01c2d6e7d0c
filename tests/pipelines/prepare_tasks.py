"""What the worker processes of test_prepare_run.py do instead of preparing a mesh."""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from pathlib import Path

import torch

from fastshape.geometry import Prepared, PrepareSpec


def digest(path: Path, spec: PrepareSpec) -> Prepared:
    """Points that follow from the bytes alone."""
    data = path.read_bytes()
    if b"bad" in data:
        raise ValueError("this one is bad")
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
    points = torch.rand(spec.num_surface, 3, generator=torch.Generator().manual_seed(seed))
    return Prepared({"surface_points": points}, {"seed": str(seed), "doubt": "0.0", "faces": "1"})


def slow_digest(path: Path, spec: PrepareSpec) -> Prepared:
    time.sleep(0.05)
    return digest(path, spec)


def misbehave(path: Path, spec: PrepareSpec) -> Prepared:
    """As the text of the file says."""
    words = path.read_text().split()
    if "sleep" in words:
        time.sleep(60)
    if "crash" in words:
        os.write(2, b"something native went wrong\n")
        ctypes.string_at(0)
    if "exit" in words:
        os._exit(3)
    if "allocate" in words:
        held = bytearray(4 << 30)
        held[::4096] = b"x" * len(held[::4096])
    if "grow" in words:  # in steps that no limit of a single allocation sees
        held_parts = []
        for _ in range(4096):
            held_parts.append(b"x" * (1 << 20))
            time.sleep(0.001)
    if "mistake" in words:
        raise KeyError("nobody expected this")
    return digest(path, spec)
