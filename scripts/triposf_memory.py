"""Time and memory of TripoSF's published size on a CPU, stage by stage, without its weights.

    python scripts/triposf_memory.py MESH --resolution 1024 --memory 4GB

The weights are random, so two things are put right that cost nothing: the children that a subdivision keeps
are those that a face of the mesh touches, whatever its logits say, and before the surface is extracted the
distances are replaced by those to the mesh. All layers run on as many voxels as with trained weights, and the
surface has as many faces.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape import geometry, models, ops, pipelines
from fastshape.cli.app import size_in_bytes
from fastshape.models import TripoSFConfig, TripoSFVAE
from fastshape.nn import SparseTensor, SubdivideBlock
from fastshape.pipelines.sparse_inputs import NUM_POINTS
from fastshape.pipelines.triposf import sparseflex_of
from fastshape.runtime.memory import peak_bytes, reset_peak, resident_bytes

T = TypeVar("T")


def stage(name: str, run: Callable[[], T]) -> T:
    """Runs a stage, and prints its seconds and the most that the process had in memory meanwhile."""
    reset_peak()
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    print(
        f"{name:10} {time.perf_counter() - wall:8.1f} s  {time.process_time() - processor:8.1f} CPU s  "
        f"peak {(peak_bytes() or 0) / 2**30:6.2f} GiB, left {(resident_bytes() or 0) / 2**30:6.2f} GiB",
        flush=True,
    )
    return result


def keep_what_is_touched(model: TripoSFVAE, mesh: geometry.Mesh) -> None:
    """Lets each subdivision keep the children that a face touches; its logits are computed, and replaced."""
    for level, block in enumerate(model.decoder.upsample):
        size = model.config.resolution * 2 ** (level + 1)
        touched = F.pad(ops.voxelize_mesh(mesh.vertices, mesh.faces, size, (-0.5, 0.5)), (1, 0))
        print(f"level {level + 1}: {len(touched):,} of {size}^3 voxels are touched", flush=True)
        queue: list[Tensor] = []

        def before(
            module: nn.Module,
            inputs: tuple[SparseTensor],
            queue: list[Tensor] = queue,
            touched: Tensor = touched,
        ) -> None:
            queue[:] = [ops.lookup_voxels(touched, ops.subdivide_voxels(inputs[0].coords)) >= 0]

        def after(
            module: nn.Module, inputs: tuple[Tensor], logits: Tensor, queue: list[Tensor] = queue
        ) -> Tensor:
            here, queue[0] = queue[0][: len(logits)], queue[0][len(logits) :]
            return torch.where(here, 1.0, -1.0)[:, None]

        assert isinstance(block, SubdivideBlock)
        assert block.pruning is not None
        block.register_forward_pre_hook(before)
        block.pruning.register_forward_hook(after)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("mesh", type=Path)
    parser.add_argument("--resolution", type=int, default=1024, help="voxels of the surface; default: 1024")
    parser.add_argument(
        "--memory", type=size_in_bytes, help="of a chunk's subdivision; default: the official chunks"
    )
    parser.add_argument("--weights", help="an official checkpoint; default: random weights of its size")
    parser.add_argument("--points", type=int, default=NUM_POINTS, help=f"default: {NUM_POINTS}")
    parser.add_argument("--bfloat16", action="store_true", help="half precision, as the official code runs")
    parser.add_argument("-o", "--output", type=Path, help="the mesh to write")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.weights:
        model = models.TripoSFVAE.from_official(options.weights)
    else:
        model = TripoSFVAE(TripoSFConfig()).eval()
    model = model.at_resolution(options.resolution // 4)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads")
    source = geometry.load(options.mesh)
    draw = torch.Generator().manual_seed(0)
    inputs = stage(
        "sample",
        lambda: pipelines.sparse_inputs(source, model, num_points=options.points, generator=draw),
    )
    print(f"{len(inputs.voxels):,} voxels of {model.config.resolution}^3, {len(inputs.points):,} points")
    keep_what_is_touched(model, inputs.mesh)
    begin = time.perf_counter()
    features = stage("points", lambda: model.point_features(inputs.points, inputs.voxels))
    half = torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16)
    with half:
        latents = stage("encode", lambda: model.encoder.moments(features).mode())
        features = latents  # the points' are not needed any more
        tokens = stage("decoder", lambda: model.decoder(latents))
    count = model.chunk_count(tokens, memory=options.memory)
    sizes = [int(chunk.rows.sum()) for chunk in model.chunks(tokens, count)]
    print(
        f"{len(sizes)} of {count}^3 chunks have voxels, at most {max(sizes):,} with the margin, "
        f"{sum(sizes):,} in all"
    )
    with half:
        fine = stage("subdivide", lambda: model.subdivide(tokens, prune=True, memory=options.memory))
    print(f"{len(fine):,} voxels of {options.resolution}^3 are left")
    exact = sparseflex_of(inputs.mesh, options.resolution)
    fine = fine.replace(exact.feats[ops.lookup_voxels(exact.coords, fine.coords)])
    mesh = stage("extract", lambda: model.extract(fine))
    print(f"{mesh.num_faces:,} faces; {time.perf_counter() - begin:.0f} s from points to mesh")
    if options.output:
        geometry.save(inputs.normalization.undo_mesh(mesh), options.output)


if __name__ == "__main__":
    main()
