"""What more tokens bring and what they cost: the quality, memory and seconds of a trained model, by tokens.

    python scripts/token_curve.py vecset-tiny mug.stl bunny.obj -o curve

writes curve.csv, a line for each mesh and number of tokens, and curve.png, the means over the meshes. Beside
a distance stands its floor, what two samples of the target itself score; IoU has none, a perfect solid has 1.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from charts import Curve, Panel, draw

from fastshape import geometry, models
from fastshape.geometry.io import write_atomically
from fastshape.models import FieldAutoencoder
from fastshape.pipelines import encoder_inputs, reconstruct, token_counts
from fastshape.runtime.memory import peak_of

COUNTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
CLOCKED = ("encode", "decode", "extract")


# ---- Measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One mesh with one number of tokens; None where there is nothing to say.

    Attributes:
        mesh: the file's name.
        tokens: on the finest level.
        all_tokens: on all levels.
        latent_bytes: of the tokens as they are.
        query_bytes: the stated bound of the field's working memory.
        peak_bytes: what encoding, decoding and one chunk of queries needed at most, beyond what was there
            before: of the process, or of the GPU.
        encode, decode, extract: seconds.
        faces: of the extracted mesh; 0 where the field has no surface.
        chamfer_l1, chamfer_l1_floor: the mean of both ways, in the cube [-1, 1]^3.
        fscore, fscore_floor: at a distance of 0.02.
        iou: of the volumes, where both meshes have a clear inside.
    """

    mesh: str
    tokens: int
    all_tokens: int | None = None
    latent_bytes: int | None = None
    query_bytes: int | None = None
    peak_bytes: int | None = None
    encode: float | None = None
    decode: float | None = None
    extract: float | None = None
    faces: int = 0
    chamfer_l1: float | None = None
    chamfer_l1_floor: float | None = None
    fscore: float | None = None
    fscore_floor: float | None = None
    iou: float | None = None


def measure(
    path: Path, model: FieldAutoencoder, tokens: int, *, points: int, resolution: int, samples: int
) -> Line:
    """Reconstruct a mesh and compare."""
    mesh = geometry.load(path)
    line = Line(path.name, tokens, query_bytes=model.query_bytes(token_counts(model, tokens)))
    settings: dict[str, Any] = {"num_points": points, "num_tokens": tokens}
    try:
        result = reconstruct(mesh, model, resolution=resolution, metrics=False, **settings)
    except geometry.NoSurfaceError:
        return line
    scores: dict[str, Any] = {name: result.seconds[name] for name in CLOCKED}
    scores |= quality(result.mesh, mesh, samples)
    return dataclasses.replace(
        line,
        all_tokens=result.num_tokens,
        latent_bytes=result.num_bytes,
        peak_bytes=working_bytes(mesh, model, tokens, points),
        faces=result.mesh.num_faces,
        **scores,
    )


def quality(prediction: geometry.Mesh, target: geometry.Mesh, samples: int) -> dict[str, float | None]:
    """The scores of a line, by name."""
    found = geometry.evaluate(prediction, target, num_samples=samples, thresholds=(0.02,), num_near_samples=0)
    clear = found.occupancy is not None and found.occupancy.clear
    return {
        "chamfer_l1": found.scores.chamfer_l1,
        "chamfer_l1_floor": found.floor.chamfer_l1,
        "fscore": found.scores.fscore[0.02],
        "fscore_floor": found.floor.fscore[0.02],
        "iou": found.volume_iou if clear else None,
    }


@torch.no_grad()
def working_bytes(mesh: geometry.Mesh, model: FieldAutoencoder, tokens: int, points: int) -> int | None:
    """The most memory of encoding, decoding and a chunk of queries; None where the system cannot tell."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    inputs = encoder_inputs(mesh, model, num_points=points, generator=generator)
    clouds = [cloud.to(device) for cloud in inputs.points]
    queries = torch.rand(1, 4096, 3, generator=generator).to(device)
    encode: Any = model.encode
    return peak_of(
        lambda: model.query(
            queries, model.decode(encode(*clouds, num_latents=token_counts(model, tokens)).mode())
        ),
        device,
        exact=True,
    )


def mean(lines: Sequence[Line], tokens: int, name: str) -> float | None:
    """Of a column over the meshes that have it."""
    values = [getattr(line, name) for line in lines if line.tokens == tokens]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def table(lines: Sequence[Line]) -> bytes:
    """The lines as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in dataclasses.fields(Line)], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        values = dataclasses.asdict(line)
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
    return text.getvalue().encode()


# ---- Drawing -----------------------------------------------------------------------------------------------


def panels(lines: Sequence[Line], counts: Sequence[int]) -> list[Panel]:
    def column(name: str, scale: float = 1.0) -> Curve:
        values = [mean(lines, count, name) for count in counts]
        return [
            (count, None if value is None else scale * value)
            for count, value in zip(counts, values, strict=True)
        ]

    return [
        Panel(
            "CD-L1 x 1000",
            {"model": column("chamfer_l1", 1e3), "floor": column("chamfer_l1_floor", 1e3)},
            True,
        ),
        Panel("F-score at 0.02", {"model": column("fscore"), "floor": column("fscore_floor")}),
        Panel("volume IoU", {"model": column("iou")}),
        Panel("seconds", {name: column(name) for name in CLOCKED}, True),
        Panel(
            "memory, MB",
            {"peak": column("peak_bytes", 1e-6), "bound of a query": column("query_bytes", 1e-6)},
            True,
        ),
        Panel("latents, kB", {"size": column("latent_bytes", 1e-3)}, True),
    ]


def picture(lines: Sequence[Line], counts: Sequence[int], title: str) -> bytes:
    """All panels, as a PNG."""
    return draw(panels(lines, counts), title, marks=counts)


# ---- Command -----------------------------------------------------------------------------------------------


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="a shipped model's name, a folder, or a hub id")
    p.add_argument("meshes", nargs="+", type=Path, metavar="MESH")
    p.add_argument("-o", "--output", type=Path, required=True, help="both files, without or with an ending")
    p.add_argument("--tokens", type=_counts, default=COUNTS, help="numbers with commas; default: 64,...,8192")
    p.add_argument(
        "--points",
        type=int,
        help="points to encode, of each cloud; default: the model's own number, or the largest of tokens, "
        "since there are no more tokens than points that differ",
    )
    p.add_argument("--resolution", type=int, default=128, help="of the extraction; default: 128")
    p.add_argument("--samples", type=int, default=30_000, help="points per surface compared; default: 30000")
    p.add_argument("--device", default="cpu")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    model = models.load(options.model, kind=FieldAutoencoder, device=options.device)
    settings: dict[str, Any] = {
        "points": options.points or max(model.config.num_inputs, *options.tokens),
        "resolution": options.resolution,
        "samples": options.samples,
    }
    # The first call of anything is slow.
    measure(options.meshes[0], model, options.tokens[0], **settings | {"resolution": 16, "samples": 100})
    lines = []
    for path in options.meshes:
        for tokens in options.tokens:
            line = measure(path, model, tokens, **settings)
            lines.append(line)
            print(
                ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(line).items()), flush=True
            )
    write_atomically(options.output.with_suffix(".csv"), table(lines))
    number = f"{len(options.meshes)} mesh" + ("es" if len(options.meshes) > 1 else "")
    title = f"{model.title}: {number}, {settings['points']} points, against the number of tokens"
    write_atomically(options.output.with_suffix(".png"), picture(lines, options.tokens, title))


if __name__ == "__main__":
    main()
