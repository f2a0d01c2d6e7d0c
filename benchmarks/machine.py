"""What a figure needs beside it: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parent.parent


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def cores() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def slug() -> str:
    """A file name for this machine: its GPU where it has one, else its processor and the number of cores."""
    name = gpu_name() or f"{cpu_name()} {cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", name).lower()).strip("-")


def describe() -> dict[str, Any]:
    """The machine: processor, cores, GPU, memory, and how busy it was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "name": slug(),
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory,
        "gpu": gpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, Any]:
    """Python, torch, CUDA, fastshape with its compiler, and the commit."""
    try:
        fastshape = metadata.version("fastshape")
    except metadata.PackageNotFoundError:
        fastshape = None
    try:
        from fastshape import _C

        build = {"compiler": _C.compiler, "cuda_architectures": _C.cuda_architectures}
    except ImportError:
        build = None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "fastshape": fastshape,
        "build": build,
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the source tree, with ``-dirty`` where it has changes; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
