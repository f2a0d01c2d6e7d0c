"""Turns a training run of a structure model into a shipped one: as `ship_model.py`, with voxels for scores.

    python scripts/ship_structure.py runs/structure structure-tiny MESHES --time "45 min on one core"

MESHES is a folder of meshes that were never trained on, open or closed. The score is the intersection over
union of the voxels that the surface touches, before and after, beside what remains of them when only their
2^3 or 4^3 blocks are known.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import model_card
import torch
import torch.nn.functional as F
from rich.progress import track

from fastshape import geometry, pipelines
from fastshape.models import SparseStructureVAE
from fastshape.pipelines.structure import voxel_iou

COLUMNS = ("voxel IoU", "missed", "added", "blocks of 2^3", "blocks of 4^3", "CD-L1", "floor CD-L1")


@torch.no_grad()
def scores(model: SparseStructureVAE, mesh: geometry.Mesh) -> dict[str, float]:
    """Of one mesh: the voxels, what coarser grids know of them, and the surface around them."""
    voxels, _, _ = pipelines.structure_inputs(mesh, model)
    truth = model.occupancy([voxels])
    logits = model.decode(model.encode(truth).mode())
    occupied, there = logits > 0, truth > 0
    result = pipelines.reconstruct(mesh, model)
    assert result.evaluation is not None
    assert result.voxel_iou == voxel_iou(logits, voxels, model)
    row = {
        "voxel IoU": result.voxel_iou,
        "missed": float((there & ~occupied).sum() / there.sum()),
        "added": float((occupied & ~there).sum() / there.sum()),
        "CD-L1": result.evaluation.scores.chamfer_l1,
        "floor CD-L1": result.evaluation.floor.chamfer_l1,
    }
    for side in (2, 4):
        blocks = F.interpolate(F.max_pool3d(truth, side), scale_factor=side) > 0
        row[f"blocks of {side}^3"] = float(there.sum() / blocks.sum())
    return row


def card(model: SparseStructureVAE, run: Path, name: str, measured: dict[str, dict], time: str) -> list[str]:
    """The lines of the model's README.md."""
    config, rows = model.config, measured["shapes"]
    size, latent = config.resolution, config.resolution // config.factor
    does = (
        f"It takes the voxels of {size}^3 that a surface touches to a volume of {latent}^3 latents of "
        f"{config.latent_channels} channels, and back."
    )
    return [
        *model_card.head(model, name, time, does=does),
        "",
        "## What it reaches",
        "",
        f"Over {len(rows)} scans of YCB objects that it was never trained on, in the box [-1, 1]^3: the "
        "intersection over union of the occupied voxels before and after, the shares that are missed and "
        "added, and for comparison the IoU of what is left of the voxels where only blocks of 2^3 or 4^3 are "
        "known. CD-L1 is that of the mesh around the voxels, which lies half a voxel outside of the surface.",
        "",
        *model_card.table(
            ("", *COLUMNS),
            (
                (label, *(f"{values[column]:.4f}" for column in COLUMNS))
                for label, values in measured["summary"].items()
            ),
        ),
        "",
        "## Its training",
        "",
        "The loss, and the voxel IoU of the held-out shapes.",
        "",
        *model_card.table(
            ("step", "loss", "voxel IoU"),
            (
                (row["step"], f"{row['loss']:.3f}", f"{row['validation_voxel_iou']:.3f}")
                for row in model_card.curve(run, "validation_voxel_iou")
            ),
        ),
    ]


def main() -> None:
    parser = model_card.parser(__doc__)
    parser.add_argument("meshes", type=Path)
    options = parser.parse_args()
    model, folder = model_card.ship(options, SparseStructureVAE)
    rows = [
        {"name": path.stem, **scores(model, geometry.load(path))}
        for path in track(model_card.mesh_files(options.meshes), "evaluating")
    ]
    summary = {
        label: {column: statistic([row[column] for row in rows]) for column in COLUMNS}
        for label, statistic in (("median", statistics.median), ("mean", statistics.fmean))
    }
    worst = min(rows, key=lambda row: row["voxel IoU"])
    summary[f"least IoU ({worst['name']})"] = {column: worst[column] for column in COLUMNS}
    measured = {"summary": summary, "shapes": rows}
    model_card.write(folder, card(model, options.run, options.name, measured, options.time), measured)


if __name__ == "__main__":
    main()
