"""Turns a training run of a structure model into a shipped one: as `ship_model.py`, with voxels for scores.

    python scripts/ship_structure.py runs/structure structure-tiny MESHES --time "45 min on one core"

MESHES is a folder of meshes that were never trained on, open or closed. The score is the intersection over
union of the voxels that the surface touches, before and after, beside what remains of them when only their
2^3 or 4^3 blocks are known.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from ship_model import CORPUS, SOURCE, WEIGHTS

from fastshape import geometry, models, pipelines
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


def card(model: SparseStructureVAE, run: Path, name: str, measured: dict[str, dict], time: str) -> str:
    """The model's README.md."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config, rows = model.config, measured["shapes"]
    size, latent = config.resolution, config.resolution // config.factor
    lines = [
        "---",
        "library_name: fastshape",
        f"license: {model.metadata.license}",
        "---",
        "",
        f"# {name}",
        "",
        f"A `fastshape.models.{type(model).__name__}` with {parameters:,} parameters, in half precision: "
        f"`fastshape.models.load({name!r})`. It takes the voxels of {size}^3 that a surface touches to a "
        f"volume of {latent}^3 latents of {config.latent_channels} channels, and back. A small model, "
        f"for trying things out and for tests; its recipe is `fastshape.train.recipes.get({name!r})`.",
        "",
        f"- Trained on {CORPUS}.",
        f"- {time}.",
        "",
        "## What it reaches",
        "",
        f"Over {len(rows)} scans of YCB objects that it was never trained on, in the box [-1, 1]^3: the "
        "intersection over union of the occupied voxels before and after, the shares that are missed and "
        "added, and for comparison the IoU of what is left of the voxels where only blocks of 2^3 or 4^3 are "
        "known. CD-L1 is that of the mesh around the voxels, which lies half a voxel outside of the surface.",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for label, values in measured["summary"].items():
        lines.append(f"| {label} | " + " | ".join(f"{values[column]:.4f}" for column in COLUMNS) + " |")
    lines += ["", "## Its training", "", "The loss, and the voxel IoU of the held-out shapes.", ""]
    curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [row for row in curve if "validation_voxel_iou" in row]
    lines += ["| step | loss | voxel IoU |", "|---|---|---|"]
    lines += [f"| {row['step']} | {row['loss']:.3f} | {row['validation_voxel_iou']:.3f} |" for row in curve]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="what `fastshape train -o` wrote")
    parser.add_argument("name")
    parser.add_argument("meshes", type=Path)
    parser.add_argument("--time", required=True, help="how long it took, on what")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    model = models.load(options.run / "model", kind=SparseStructureVAE)
    model.metadata = dataclasses.replace(
        model.metadata, name=options.name, license="Apache-2.0", source=SOURCE
    )
    folder = options.output / options.name
    model.save_pretrained(folder, dtype=torch.float16)
    model = models.load(str(folder.resolve()), kind=SparseStructureVAE)  # as its users have it, rounded
    paths = sorted(p for p in options.meshes.rglob("*") if p.suffix.lower() in (".stl", ".obj", ".ply"))
    rows = [{"name": path.stem, **scores(model, geometry.load(path))} for path in track(paths, "evaluating")]
    summary = {
        label: {column: statistic([row[column] for row in rows]) for column in COLUMNS}
        for label, statistic in (("median", statistics.median), ("mean", statistics.fmean))
    }
    worst = min(rows, key=lambda row: row["voxel IoU"])
    summary[f"least IoU ({worst['name']})"] = {column: worst[column] for column in COLUMNS}
    measured = {"summary": summary, "shapes": rows}
    (folder / "README.md").write_text(card(model, options.run, options.name, measured, options.time))
    (folder / "scores.json").write_text(json.dumps(measured, indent=1) + "\n")
    print((folder / "README.md").read_text())


if __name__ == "__main__":
    main()
