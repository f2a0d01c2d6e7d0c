"""An open mesh through what stands for one: exact SparseFlex values, or a small TripoSF model made for it.

    python scripts/open_surface.py SCAN.ply -o out --cut                  # half of it, without a lid
    python scripts/open_surface.py SCAN.ply -o out --cut --steps 400    # a model for this mesh alone
    python scripts/open_surface.py SCAN.ply -o out --cut --model structure-tiny  # trained weights

The first shows what the representation can hold: distances at the corners of the voxels that a face
touches give an open mesh back. The second goes all the way: points and voxels, encoder, latents,
self-pruning decoder, surface. It shows that this model and these losses can hold an open surface, not that
one generalizes. Either way the opening is measured: points of the lid that the cut has left out, and how
far from them the result is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from fastshape import geometry, models, ops, pipelines
from fastshape.geometry import DistanceField, Mesh
from fastshape.models import TripoSFConfig, TripoSFVAE
from fastshape.pipelines.triposf import sparseflex_of


def cut_in_half(mesh: Mesh) -> Mesh:
    """The faces below the middle of the longest side."""
    axis = int((mesh.bounds[1] - mesh.bounds[0]).argmax())
    middles = mesh.vertices[mesh.faces][:, :, axis].mean(1)
    return Mesh(mesh.vertices, mesh.faces[middles < mesh.bounds[:, axis].mean()])


def lid_points(whole: Mesh, half: Mesh, clearance: float) -> Tensor:
    """Points where the cut has opened the solid, at least `clearance` within it, (N, 3)."""
    axis = int((whole.bounds[1] - whole.bounds[0]).argmax())
    points = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)).double()
    low, high = (side.double() for side in whole.bounds)
    points = low + points * (high - low)
    points[:, axis] = whole.bounds[:, axis].mean().double()
    inside = DistanceField(whole, dtype=torch.float64)(points) < -clearance
    far = DistanceField(half, dtype=torch.float64).unsigned(points) > clearance
    return points[inside & far]


def open_length(mesh: Mesh) -> float:
    """Length of the edges that one face has, in units of the mesh."""
    edges = torch.cat([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)]).sort(1).values
    edges, counts = edges.unique(dim=0, return_counts=True)
    ends = mesh.vertices[edges[counts == 1]]
    return float((ends[:, 0] - ends[:, 1]).norm(dim=1).sum())


def targets(model: TripoSFVAE, mesh: Mesh, coords: list[Tensor]) -> list[Tensor]:
    """Whether a face of the mesh touches each child, of both subdivisions."""
    found = []
    for level, children in enumerate(coords):
        size = model.config.resolution * 2 ** (level + 1)
        touched = ops.voxelize_mesh(mesh.vertices, mesh.faces, size, (-0.5, 0.5))
        found.append(ops.lookup_voxels(F.pad(touched, (1, 0)), children) >= 0)
    return found


def train(model: TripoSFVAE, inputs: pipelines.SparseInputs, steps: int, rate: float) -> None:
    """Teaches the model one mesh.

    Which children the surface is in: cross-entropy, as TripoSF and Focusing have it, but a voxel that is
    missed, which is a hole, costs four times as much as one too many. The distances of
    their corners: the mean error to those of `sparseflex_of`. In the second half of the steps the
    decoder drops what it says is empty, as it will in use: its norms see what is left.
    """
    exact = sparseflex_of(inputs.mesh, 4 * model.config.resolution)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    noise = torch.Generator().manual_seed(0)
    model.train()
    for step in track(range(steps), description="training"):
        posterior = model.encode(inputs.points, inputs.voxels)
        decoded = model.decode_whole(posterior.sample(noise), prune=2 * step >= steps)
        truths = targets(model, inputs.mesh, decoded.coords)
        loss = sum(
            F.binary_cross_entropy_with_logits(logits, truth.float(), pos_weight=torch.tensor(4.0))
            for logits, truth in zip(decoded.logits, truths, strict=True)
        )
        rows = ops.lookup_voxels(exact.coords, decoded.fine.coords)
        said, wanted = decoded.fine.feats[rows >= 0], exact.feats[rows[rows >= 0]]
        distances = F.l1_loss(said[:, :8], wanted[:, :8])
        loss = loss + 4.0 * distances + 0.01 * said[:, 8:].square().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == steps:
            hits = [
                float(((logits >= 0) == truth).float().mean())
                for logits, truth in zip(decoded.logits, truths, strict=True)
            ]
            print(
                f"step {step}: loss {loss.item():.4f}, distances {4 * distances.item():.3f} voxels, "
                f"children right {hits[0]:.3f} and {hits[1]:.3f}"
            )
    model.eval()


def report(name: str, result: Mesh, source: Mesh, lid: Tensor, voxel: float) -> None:
    """What came back, in voxels; both meshes in [-0.5, 0.5]^3."""
    evaluation = geometry.evaluate(result, source)
    to_source = DistanceField(source, dtype=torch.float32).unsigned(
        geometry.sample_surface(result, 50_000, torch.Generator().manual_seed(1)).points.float().contiguous()
    )
    to_result = DistanceField(result, dtype=torch.float32).unsigned(
        geometry.sample_surface(source, 50_000, torch.Generator().manual_seed(2)).points.float().contiguous()
    )
    print(
        f"{name}: {result.num_faces:,} faces, area {result.area / source.area:.3f} of the input's, open "
        f"edges {open_length(result) / open_length(source):.2f} of the input's length\n"
        f"  distances in voxels: of the result from the input mean {to_source.mean() / voxel:.3f}, most "
        f"{to_source.max() / voxel:.2f}; of the input from the result mean {to_result.mean() / voxel:.3f}, "
        f"99 % {to_result.quantile(0.99) / voxel:.2f}\n"
        f"  CD-L1 {evaluation.scores.chamfer_l1:.4f} (floor {evaluation.floor.chamfer_l1:.4f}), "
        f"normals {evaluation.scores.normal_consistency:.3f}"
    )
    if len(lid):
        gap = DistanceField(result, dtype=torch.float64).unsigned(lid) / voxel
        print(f"  the opening: {len(lid)} points of the lid, the nearest is {gap.min():.1f} voxels away")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("mesh", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument("--cut", action="store_true", help="take half of the mesh")
    parser.add_argument("--resolution", type=int, default=128, help="voxels of the surface; default: 128")
    parser.add_argument("--steps", type=int, default=0, help="train a model; default: exact values, no model")
    parser.add_argument("--model", help="take the mesh through these weights too, structure-tiny say")
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning; default: 2e-3")
    options = parser.parse_args()
    torch.manual_seed(0)
    whole = geometry.load(options.mesh)
    mesh = cut_in_half(whole) if options.cut else whole
    model = TripoSFVAE(
        TripoSFConfig(
            resolution=options.resolution // 4,
            point_hidden=32,
            point_depth=3,
            feature_dim=64,
            dim=128,
            depth=2,
            heads=2,
            ratio=2.0,
            groups=8,
        )
    )
    inputs = pipelines.sparse_inputs(
        mesh, model, num_points=50_000, generator=torch.Generator().manual_seed(0)
    )
    voxel = 1.0 / options.resolution
    moved = inputs.normalization.apply_mesh(whole)
    lid = lid_points(moved, inputs.mesh, 4 * voxel) if options.cut else torch.zeros(0, 3)
    options.output.mkdir(parents=True, exist_ok=True)
    exact = model.extract(sparseflex_of(inputs.mesh, options.resolution))
    report("exact values", exact, inputs.mesh, lid, voxel)
    results = [("input", inputs.mesh), (f"exact values, {options.resolution}^3", exact)]
    if options.steps:
        begin = time.perf_counter()
        train(model, inputs, options.steps, options.rate)
        print(f"trained in {time.perf_counter() - begin:.0f} s")
        with torch.no_grad():
            latents = model.encode(inputs.points, inputs.voxels).mode()
            result = model.extract(model.decode(latents, prune=True, chunks=1))
        report(f"through {len(latents):,} latents of {latents.num_channels}", result, inputs.mesh, lid, voxel)
        model.save_pretrained(options.output / "model")
        results.append((f"{len(latents):,} latents", result))
    if options.model:
        loaded = pipelines.reconstruct(mesh, models.load(options.model), metrics=False)
        result = inputs.normalization.apply_mesh(loaded.mesh)
        said = "" if loaded.voxel_iou is None else f", voxel IoU {loaded.voxel_iou:.3f}"
        report(f"{options.model}{said}", result, inputs.mesh, lid, voxel)
        results.append((options.model, result))
    for number, (_, result) in enumerate(results):
        geometry.save(inputs.normalization.undo_mesh(result), options.output / f"{number}.ply")
    geometry.compare_picture(results, options.output / "picture.png", size=480)


if __name__ == "__main__":
    main()
