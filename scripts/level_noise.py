"""What each level of a LaGeM model holds: its latents replaced by noise, level by level, as a picture.

    python scripts/level_noise.py lagem-tiny mug.stl drill.stl -o levels.png

A row for each mesh: the input, its reconstruction, and what is left of it where some of the levels are
standard normal noise, which the normalized bottleneck's latents resemble in mean and variance (LaGeM,
arXiv 2410.01295, appendix G, figure 13). Level 1 is the finest.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import torch

from fastshape import geometry, models, pipelines
from fastshape.geometry import Mesh
from fastshape.models import LaGeM
from fastshape.pipelines import Encoded


def subsets(num_levels: int) -> Iterator[tuple[int, ...]]:
    """The levels (from 0) that become noise: none, then one, coarsest first, then two, and so on."""
    coarsest_first = range(num_levels - 1, -1, -1)
    for size in range(num_levels + 1):
        yield from combinations(coarsest_first, size)


def replaced(encoded: Encoded, noisy: Sequence[int], seed: int) -> Encoded:
    """The tokens with some levels drawn from the standard normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(level.shape, generator=generator) for level in encoded.latents]  # as many every time
    levels = tuple(noise[i] if i in noisy else level for i, level in enumerate(encoded.latents))
    return dataclasses.replace(encoded, latents=levels)


def label(noisy: Sequence[int], num_levels: int) -> str:
    """Which levels are kept and which are noise, the coarsest first."""
    words = ["noise" if level in noisy else f"Z{level + 1}" for level in range(num_levels - 1, -1, -1)]
    return "reconstruction" if not noisy else " ".join(words)


def row(mesh: Mesh, model: LaGeM, resolution: int, size: int, seed: int) -> torch.Tensor:
    """The pictures of a mesh side by side, (H, W, 3)."""
    encoded = pipelines.encode_mesh(mesh, model, seed=seed)
    columns = [("input", mesh)]
    for noisy in subsets(model.config.num_levels):
        name = label(noisy, model.config.num_levels)
        try:
            found = pipelines.decode_latents(replaced(encoded, noisy, seed), model, resolution=resolution)
        except geometry.NoSurfaceError:
            found, name = mesh, f"{name}\nno surface: the input again"
        columns.append((name, found))
    return geometry.compare_picture(columns, size=size, views=((35.0, 20.0),), occlusion=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a LaGeM model: a shipped one's name, a folder or a hub id")
    parser.add_argument("meshes", nargs="+", type=Path, metavar="MESH")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the PNG")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--size", type=int, default=240, help="pixels along a side of a picture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = models.load(options.model, kind=models.FieldAutoencoder)
    if not isinstance(model, LaGeM) or model.config.bottleneck != "normalized":
        parser.error(f"expected a LaGeM model with the normalized bottleneck, got {model.title}")
    rows = [
        row(geometry.load(path), model, options.resolution, options.size, options.seed)
        for path in options.meshes
    ]
    height = max(part.shape[0] for part in rows)  # labels of two lines make a row higher
    padded = [
        torch.nn.functional.pad(part, (0, 0, 0, 0, 0, height - part.shape[0]), value=255) for part in rows
    ]
    geometry.save_png(torch.cat(padded), options.output)


if __name__ == "__main__":
    main()
