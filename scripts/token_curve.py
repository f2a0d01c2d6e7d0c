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
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fastshape import geometry, models
from fastshape.geometry.io import write_atomically
from fastshape.geometry.optional import require
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

PANEL = (420, 300)
MARGIN = (64, 40, 24, 40)  # left, top, right, bottom of a panel
SCALE = 2  # drawn larger and shrunk, which smooths the lines
COLORS = ((31, 90, 160), (200, 80, 30), (60, 140, 70))
INK, FAINT = (40, 40, 40), (225, 225, 225)


@dataclass(frozen=True)
class Panel:
    """A chart over the number of tokens: name -> values, None where there is a gap; `floor` is dashed."""

    title: str
    series: dict[str, list[float | None]]
    logarithmic: bool = False


def panels(lines: Sequence[Line], counts: Sequence[int]) -> list[Panel]:
    def column(name: str, scale: float = 1.0) -> list[float | None]:
        values = [mean(lines, count, name) for count in counts]
        return [None if value is None else scale * value for value in values]

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


class Chart:
    """Draws panels side by side, three a row."""

    def __init__(self, counts: Sequence[int], title: str, number: int) -> None:
        self.image_module = require("PIL.Image", "image", "drawing a chart")
        draw_module = require("PIL.ImageDraw", "image", "drawing a chart")
        font_module = require("PIL.ImageFont", "image", "drawing a chart")
        self.counts = counts
        self.font = font_module.load_default(13 * SCALE)
        width, height = 3 * PANEL[0], 36 + -(-number // 3) * PANEL[1]
        self.picture = self.image_module.new("RGB", (width * SCALE, height * SCALE), (255, 255, 255))
        self.pen = draw_module.Draw(self.picture)
        self.text(MARGIN[0], 18, title, "lm")

    def text(self, x: float, y: float, words: str, anchor: str, color: Any = INK) -> None:
        self.pen.text((x * SCALE, y * SCALE), words, fill=color, font=self.font, anchor=anchor)

    def line(self, ends: Sequence[tuple[float, float]], color: Any, width: float = 1.0) -> None:
        self.pen.line([(x * SCALE, y * SCALE) for x, y in ends], fill=color, width=round(width * SCALE))

    def panel(self, panel: Panel, number: int) -> None:
        left, top = PANEL[0] * (number % 3) + MARGIN[0], 36 + PANEL[1] * (number // 3) + MARGIN[1]
        right, bottom = left + PANEL[0] - MARGIN[0] - MARGIN[2], top + PANEL[1] - MARGIN[1] - MARGIN[3]
        self.text(left, top - 26, panel.title, "lm")
        known = [v for values in panel.series.values() for v in values if v is not None]
        marks = ticks(min(known, default=0.0), max(known, default=1.0), panel.logarithmic)
        convert = math.log if panel.logarithmic else float
        low, high = convert(marks[0]), convert(marks[-1])

        def across(index: int) -> float:
            return left + (right - left) * index / max(len(self.counts) - 1, 1)

        def up(value: float) -> float:
            return bottom - (bottom - top) * (convert(value) - low) / (high - low)

        for mark in marks:
            self.line([(left, up(mark)), (right, up(mark))], FAINT)
            self.text(left - 6, up(mark), f"{mark:.6g}", "rm")
        for index, count in enumerate(self.counts):
            self.line([(across(index), bottom), (across(index), bottom + 4)], INK)
            self.text(across(index), bottom + 8, str(count), "mt")
        self.line([(left, bottom), (right, bottom)], INK)
        for place, (name, values) in enumerate(panel.series.items()):
            points = [(across(i), up(v)) for i, v in enumerate(values) if v is not None]
            self.series(points, COLORS[place], dashed=name == "floor")
            if len(panel.series) > 1:
                self.text(right - 108 * (len(panel.series) - 1 - place), top - 10, name, "rm", COLORS[place])

    def series(self, points: Sequence[tuple[float, float]], color: Any, dashed: bool) -> None:
        for (x0, y0), (x1, y1) in pairwise(points):
            pieces = 10 if dashed else 1
            for piece in range(0, pieces, 2):
                ends = [piece / pieces, (piece + 1) / pieces]
                self.line([(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends], color, 2)
        for x, y in points if not dashed else ():
            box = [(x - 3) * SCALE, (y - 3) * SCALE, (x + 3) * SCALE, (y + 3) * SCALE]
            self.pen.ellipse(box, fill=color)

    def png(self) -> bytes:
        size = (self.picture.width // SCALE, self.picture.height // SCALE)
        buffer = io.BytesIO()
        self.picture.resize(size, self.image_module.LANCZOS).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers, ascending, the first not above `low` and the last not below `high`."""
    if logarithmic:
        low = max(low, 1e-9)
        close = high < 1000 * low
        steps = [m * 10.0**e for e in range(-10, 14) for m in ((1, 2, 5) if close else (1,))]
        first = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
        last = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
        return steps[first : max(last, first + 1) + 1]
    span = max(high - low, 0.1)  # shares: what is smaller is mostly the noise of sampling
    power = 10.0 ** math.floor(math.log10(span))
    step = next(m * power for m in (0.2, 0.5, 1, 2) if span / (m * power) <= 6)
    first = math.floor(low / step + 1e-9)
    return [index * step for index in range(first, math.ceil((low + span) / step - 1e-9) + 1)]


def picture(lines: Sequence[Line], counts: Sequence[int], title: str) -> bytes:
    """All panels, as a PNG."""
    drawn = panels(lines, counts)
    chart = Chart(counts, title, len(drawn))
    for number, panel in enumerate(drawn):
        chart.panel(panel, number)
    return chart.png()


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
