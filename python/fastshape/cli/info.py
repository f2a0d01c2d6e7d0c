"""`fastshape info`."""

from __future__ import annotations

import argparse
import importlib.util
import platform

import torch
from rich.console import Console
from rich.table import Table

from fastshape import _C, __version__
from fastshape.geometry import shapes
from fastshape.train import recipes

_EXTRAS = {
    "geom": ("manifold3d", "igl", "scipy"),
    "image": ("PIL",),
    "demo": ("manifold3d", "PIL"),
    "train": ("tensorboard",),
}


def run(options: argparse.Namespace) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts().items():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def facts() -> dict[str, str]:
    """What is worth knowing in a bug report, by name."""
    built = f"architectures {_C.cuda_architectures}" if _C.cuda_architectures else "not in this build"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
        )
    else:
        gpu = "none that torch can use"
    extras = []
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        extras.append(f"{extra} " + (f"lacks {', '.join(missing)}" if missing else "complete"))
    return {
        "fastshape": __version__,
        "torch": str(torch.__version__),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "compiler": _C.compiler,
        "CUDA kernels": built,
        "GPU": gpu,
        "CPU kernels": f"{_C.instruction_set()}, {torch.get_num_threads()} threads",
        "extras": "; ".join(extras),
        "recipes": ", ".join(recipes.RECIPES),
        "shapes": ", ".join([*shapes.NAMES, "csg-SEED"]) + "; others of a kind as NAME-SEED",
    }
