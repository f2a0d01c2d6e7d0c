"""Turns a training run into a shipped model: half precision weights, and a card with what they reach.

    python scripts/ship_model.py runs/dora dora-tiny MESHES --time "70 min on one core"

MESHES is a folder of meshes that were never trained on. Only closed ones count; the scores are medians over
them, by number of tokens (of a VAT: of its first scales), beside what two samples of the same mesh score (the
floor) and what the ellipsoid that fits best reaches.
"""

from __future__ import annotations

import statistics
from itertools import accumulate
from pathlib import Path

import model_card
import torch
from rich.progress import track

from fastshape import geometry, pipelines
from fastshape.geometry import Mesh
from fastshape.models import VAT, FieldAutoencoder

COLUMNS = ("IoU", "near IoU", "F@.02", "CD-L1", "normals")


def closed_meshes(folder: Path, number: int) -> list[tuple[str, Mesh]]:
    """Evenly chosen closed meshes of a folder."""
    found = []
    for path in model_card.mesh_files(folder):
        mesh = geometry.load(path)
        edges = torch.cat([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)]).sort(1).values
        if bool((edges.unique(dim=0, return_counts=True)[1] == 2).all()):
            found.append((path.stem, mesh))
    count = min(number, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def ellipsoid(mesh: Mesh) -> Mesh:
    """The ellipsoid with the solid's center and second moments, of the size of least Chamfer distance."""
    normalized, normalization = geometry.normalize(mesh)
    draw = torch.Generator().manual_seed(0)
    points = 2.0 * torch.rand(40_000, 3, generator=draw) - 1.0
    points = points[geometry.signed_distance(normalized, points) < 0].double()
    center = points.mean(0)
    values, axes = torch.linalg.eigh((points - center).T @ (points - center) / len(points))
    radii = (5.0 * values).sqrt()  # of a solid ellipsoid's moments
    sphere, _ = geometry.normalize(geometry.extract(lambda p: p.norm(dim=1) - 0.9, 48))

    def of_size(size: float) -> Mesh:
        vertices = center + (sphere.vertices.double() * (size * radii)) @ axes.T
        return Mesh(vertices.float(), sphere.faces)

    sizes = [0.8 + 0.05 * step for step in range(9)]
    best = min(sizes, key=lambda size: _scores(of_size(size), normalized, 10_000)["CD-L1"])
    return normalization.undo_mesh(of_size(best))


def _scores(prediction: Mesh, target: Mesh, samples: int = 100_000) -> dict[str, float]:
    """Both in the target's box [-1, 1]^3."""
    evaluation = geometry.evaluate(prediction, target, num_samples=samples)
    return _named(evaluation)


def _named(evaluation: geometry.Evaluation) -> dict[str, float]:
    assert evaluation.occupancy is not None
    return {
        "IoU": evaluation.occupancy.volume_iou,
        "near IoU": evaluation.occupancy.near_iou,
        "F@.02": evaluation.scores.fscore[0.02],
        "CD-L1": evaluation.scores.chamfer_l1,
        "normals": evaluation.scores.normal_consistency,
        "floor F@.02": evaluation.floor.fscore[0.02],
        "floor CD-L1": evaluation.floor.chamfer_l1,
    }


@torch.no_grad()
def reconstructed(mesh: Mesh, model: FieldAutoencoder, tokens: int) -> geometry.Evaluation:
    """Of a mesh that went through that many tokens."""
    if isinstance(model, VAT):
        scales = [*accumulate(model.config.all_scales)].index(tokens) + 1
        decoded = pipelines.decode_latents(pipelines.encode_mesh(mesh, model).coarser(scales), model)
        return geometry.evaluate(decoded, mesh, num_samples=100_000)
    result = pipelines.reconstruct(mesh, model, num_tokens=tokens)
    assert result.evaluation is not None
    return result.evaluation


def token_numbers(model: FieldAutoencoder, wanted: list[int]) -> list[int]:
    """The numbers of tokens to measure: of a VAT those of every third number of scales, and of all."""
    return list(accumulate(model.config.all_scales))[::-3][::-1][1:] if isinstance(model, VAT) else wanted


def measure(model: FieldAutoencoder, meshes: list[tuple[str, Mesh]], tokens: list[int]) -> dict[str, dict]:
    """Medians by number of tokens, of the floor and of the ellipsoid, and each shape's row."""
    rows: dict[str, list[dict[str, float]]] = {}
    for name, mesh in track(meshes, description="evaluating"):
        for count in token_numbers(model, tokens):
            try:
                scores = _named(reconstructed(mesh, model, count))
            except geometry.NoSurfaceError:
                scores = {"IoU": 0.0, "near IoU": 0.0, "F@.02": 0.0, "CD-L1": 1.0, "normals": 0.0}
            rows.setdefault(str(count), []).append({"name": name, **scores})  # type: ignore[dict-item]
        normalized, normalization = geometry.normalize(mesh)
        baseline = normalization.apply_mesh(ellipsoid(mesh))
        rows.setdefault("ellipsoid", []).append({"name": name, **_scores(baseline, normalized)})  # type: ignore[dict-item]
    medians = {
        label: {column: statistics.median(row[column] for row in group) for column in COLUMNS}
        for label, group in rows.items()
    }
    medians["floor"] = {
        column: statistics.median(row[f"floor {column}"] for row in rows["ellipsoid"])
        for column in ("F@.02", "CD-L1")
    }
    return {"medians": medians, "shapes": rows}


def card(model: FieldAutoencoder, run: Path, name: str, measured: dict[str, dict], time: str) -> list[str]:
    """The lines of the model's README.md."""
    words = {"ellipsoid": "(best ellipsoid)", "floor": "(sampling floor)"}
    where = "" if isinstance(model, VAT) else " at 512 tokens"
    curve = model_card.curve(run, "validation_volume_iou")
    chosen = sorted({round(i * (len(curve) - 1) / 9) for i in range(10)})
    return [
        *model_card.head(model, name, time),
        "",
        "## What it reaches",
        "",
        f"Medians over {len(measured['shapes']['ellipsoid'])} closed scans of YCB objects that it was never "
        "trained on: mesh to tokens and back at 128 lattice points an axis, 100,000 points, box [-1, 1]^3.",
        "",
        *model_card.table(
            ("tokens", *COLUMNS),
            (
                (
                    words.get(label, label),
                    *(f"{medians[column]:.4f}" if column in medians else "-" for column in COLUMNS),
                )
                for label, medians in measured["medians"].items()
            ),
        ),
        "",
        "## Its training",
        "",
        f"The loss, and the volume IoU of the held-out shapes{where}.",
        "",
        *model_card.table(
            ("step", "loss", "IoU"),
            (
                (row["step"], f"{row['loss']:.3f}", f"{row['validation_volume_iou']:.3f}")
                for row in (curve[i] for i in chosen)
            ),
        ),
    ]


def main() -> None:
    parser = model_card.parser(__doc__)
    parser.add_argument("meshes", type=Path)
    parser.add_argument("--number", type=int, default=14, help="meshes; default: 14")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    options = parser.parse_args()
    model, folder = model_card.ship(options, FieldAutoencoder)
    measured = measure(model, closed_meshes(options.meshes, options.number), options.tokens)
    model_card.write(folder, card(model, options.run, options.name, measured, options.time), measured)


if __name__ == "__main__":
    main()
