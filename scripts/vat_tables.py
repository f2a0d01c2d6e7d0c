"""What a tokenizer's codes hold, scale by scale, on shapes that it was never trained on: VAT's measurements.

    python scripts/vat_tables.py curve vat-tiny other/model --meshes scans/ -o curve
    python scripts/vat_tables.py usage vat-tiny --meshes scans/ -o usage
    python scripts/vat_tables.py histogram vat-tiny other/model --meshes scans/ -o histogram
    python scripts/vat_tables.py scales vat-tiny mug.stl drill.stl -o scales.png
    python scripts/vat_tables.py complete vat-tiny-ar --meshes scans/ -o complete

curve      bytes against quality over the first scales of the codes (its figure 7), and the cross-scale
           accuracy and IoU: of each scale with all later ones left out, the mean over the scales (its
           tables 2 to 5). An interrupted measurement goes on.
usage      how many codes each scale uses, in training and of these shapes
histogram  the latents before and after quantization, beside the normal distribution (its figure 9)
scales     what is left of a shape of its first scales, as pictures (its figure 6)
complete   the first scales, the others said by a generator, beside those alone and all true ones (its table 3
           gives all but the last two)

All but the pictures print a table and write a .csv; the first three a .png too. MESHES is a folder; of it
closed meshes are taken, evenly chosen. Zhang et al.: "3D representation in 512-Byte" (VAT), arXiv 2412.02202.
Accuracy and IoU are those of the field at 40,000 uniform points and 40,000 within 0.05 of the surface,
near accuracy that of 10,000 of the latter, in the unit cube, as there; F-scores and Chamfer distances are of
100,000 points (there 10,000, which caps them) in the cube [-1, 1]^3, beside what two samples of the target
itself score, the floor.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from charts import Panel, draw
from rich.console import Console
from rich.progress import track
from rich.table import Table
from ship_model import closed_meshes
from torch import Tensor

from fastshape import geometry, models, pipelines
from fastshape.geometry import Mesh
from fastshape.geometry.io import write_atomically
from fastshape.geometry.metrics import near_points
from fastshape.models import VAT, NextScaleTransformer
from fastshape.pipelines import Encoded

THRESHOLDS = (0.01, 0.02)
NUM_QUERIES = 40_000  # uniform, and as many near the surface
NUM_NEAR = 10_000
NEAR = 0.05  # in the unit cube
NOT_QUANTIZED = "latents"


# ---- Quality over bytes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A mesh from the first scales of its codes.

    Attributes:
        model, fingerprint: who made them.
        mesh: its name.
        scales: how many; 0: from the latents before quantization, in half precision.
        bits, bytes: of the codes, in bytes; of the whole file.
        ratio: the mesh's own file over that.
        accuracy, iou, near_accuracy: of the field.
        faces: of the extracted mesh; 0 where there is no surface, and then no distance.
        fscore_01, fscore_02, chamfer_l1, and their floors.
        resolution, samples: of the extraction, of the comparison.
    """

    model: str
    fingerprint: str
    mesh: str
    scales: int
    tokens: int
    bits: int
    bytes: int
    ratio: float
    accuracy: float
    iou: float
    near_accuracy: float
    faces: int
    fscore_01: float
    fscore_01_floor: float
    fscore_02: float
    fscore_02_floor: float
    chamfer_l1: float | None
    chamfer_l1_floor: float
    resolution: int
    samples: int

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.fingerprint, self.mesh, self.resolution, self.samples)


MEANS = ("bytes", "ratio", "accuracy", "iou", "near_accuracy", "fscore_01", "fscore_02", "chamfer_l1")


@dataclass(frozen=True)
class Questions:
    """Where a field is asked, and what is right there: points (N, 3), uniform first, then near ones."""

    points: Tensor
    inside: Tensor

    @classmethod
    def of(cls, mesh: Mesh, extent: float) -> Questions:
        """Of a mesh in a model's frame, whose cube has half the side `extent`."""
        generator = torch.Generator().manual_seed(0)
        uniform = extent * (2.0 * torch.rand(NUM_QUERIES, 3, generator=generator) - 1.0)
        near = near_points(mesh, NUM_QUERIES, 2.0 * extent * NEAR, generator)
        points = torch.cat([uniform, near])
        return cls(points, geometry.signed_distance(mesh, points) < 0)

    def scores(self, model: VAT, features: Any) -> dict[str, float]:
        """Accuracy, IoU and near accuracy of a model's field."""
        return agreement(
            model, features, self.points, self.inside, slice(NUM_QUERIES, NUM_QUERIES + NUM_NEAR)
        )


def agreement(
    model: VAT, features: Any, points: Tensor, inside: Tensor, near: slice | None = None
) -> dict[str, float]:
    """Accuracy and IoU of a model's field at points (N, 3), and the accuracy at those of `near` alone."""
    device = next(model.parameters()).device
    found = model.query(points[None].to(device), features)[0].cpu() > 0
    right = (found == inside).double()
    union = int((found | inside).sum())
    scores = {"accuracy": float(right.mean()), "iou": int((found & inside).sum()) / union if union else 1.0}
    return scores if near is None else {**scores, "near_accuracy": float(right[near].mean())}


def measure(path: Path, mesh: Mesh, model: VAT, resolution: int, samples: int) -> list[Line]:
    """A line for each number of scales, and the first of the latents."""
    codes, latents = encoded_twice(mesh, model)
    assert codes.codes is not None
    normalized = codes.normalization.apply_mesh(mesh)
    questions = Questions.of(normalized, pipelines.preparation_of(model).extent)
    lines = []
    for scales in range(codes.codes.num_scales + 1):
        encoded = codes.coarser(scales) if scales else latents
        size = len(pipelines.shape_bytes(encoded))
        lines.append(
            Line(
                model=model.title,
                fingerprint=codes.fingerprint,
                mesh=path.stem,
                scales=scales,
                tokens=encoded.num_tokens,
                bits=encoded.num_bytes,
                bytes=size,
                ratio=path.stat().st_size / size,
                resolution=resolution,
                samples=samples,
                **scores_of(encoded, model, normalized, questions, resolution, samples),
            )
        )
    return lines


def encoded_twice(mesh: Mesh, model: VAT) -> tuple[Encoded, Encoded]:
    """As codes, and as the latents that they were made of, in half precision."""
    codes, latents = (pipelines.encode_mesh(mesh, model, quantize=quantize) for quantize in (True, False))
    return codes, latents.to(torch.float16)


@torch.no_grad()
def decoded(encoded: Encoded, model: VAT) -> Any:
    """The features of codes or of latents."""
    device = next(model.parameters()).device
    if encoded.codes is not None:
        return model.decode_tokens(encoded.codes.codes[None].to(device))
    return model.decode(encoded.latents[0].float().to(device))


def scores_of(
    encoded: Encoded, model: VAT, target: Mesh, questions: Questions, resolution: int, samples: int
) -> dict[str, Any]:
    """What a line says of codes or latents, beside a mesh in the model's frame."""
    features = decoded(encoded, model)
    try:
        found = quality(model.extract(features, resolution), target, samples)
    except geometry.NoSurfaceError:
        found = quality(None, target, samples)
    return {**questions.scores(model, features), **found}


def quality(prediction: Mesh | None, target: Mesh, samples: int) -> dict[str, Any]:
    """What points of the surfaces say, and the number of faces; of no prediction the floors alone."""
    found = geometry.evaluate(
        prediction or target,
        target,
        num_samples=samples,
        thresholds=THRESHOLDS,
        num_volume_samples=0,
        num_near_samples=0,
    )
    scores: dict[str, Any] = {
        "faces": prediction.num_faces if prediction else 0,
        "chamfer_l1": found.scores.chamfer_l1 if prediction else None,
        "chamfer_l1_floor": found.floor.chamfer_l1,
    }
    for threshold in THRESHOLDS:
        name = f"fscore_{round(100 * threshold):02}"
        scores[name] = found.scores.fscore[threshold] if prediction else 0.0
        scores[f"{name}_floor"] = found.floor.fscore[threshold]
    return scores


def mean(lines: Iterable[Line], name: str) -> float | None:
    """Of a column over the lines that have it."""
    known = [value for line in lines if (value := getattr(line, name)) is not None]
    return statistics.fmean(known) if known else None


def of(lines: Sequence[Line], model: str, scales: int) -> list[Line]:
    return [line for line in lines if line.model == model and line.scales == scales]


def names(lines: Iterable[Line]) -> list[str]:
    """The models, in the order of their lines."""
    return list(dict.fromkeys(line.model for line in lines))


def cross_scale(lines: Sequence[Line], model: str, name: str) -> float:
    """The mean over all scales of what is measured with the codes beyond each left out."""
    scales = range(1, max(line.scales for line in lines if line.model == model) + 1)
    return statistics.fmean(mean(of(lines, model, count), name) or 0.0 for count in scales)


def curve_panels(lines: Sequence[Line]) -> list[Panel]:
    titles = {
        "iou": "IoU, uniform and near points",
        "near_accuracy": "near-surface accuracy",
        "fscore_01": "F-score at 0.01",
        "fscore_02": "F-score at 0.02",
        "chamfer_l1": "CD-L1",
    }
    panels = []
    for name, title in titles.items():
        series = {}
        for model in names(lines):
            counts = sorted({line.scales for line in lines if line.model == model} - {0})
            groups = [of(lines, model, count) for count in counts]
            series[Path(model).name] = [(mean(group, "bytes") or 0.0, mean(group, name)) for group in groups]
        if hasattr(lines[0], f"{name}_floor"):
            places = [x for curve in series.values() for x, _ in curve]
            series["floor"] = [(x, mean(lines, f"{name}_floor")) for x in (min(places), max(places))]
        panels.append(Panel(title, series, logarithmic=name == "chamfer_l1"))
    return panels


def curve_table(lines: Sequence[Line]) -> Table:
    table = Table("model", "scales", "tokens", *MEANS, box=None)
    for model in names(lines):
        for count in sorted({line.scales for line in lines if line.model == model}, key=lambda n: n or 99):
            group = of(lines, model, count)
            cells = [_cell(mean(group, name), name) for name in MEANS]
            table.add_row(model, str(count) if count else NOT_QUANTIZED, str(group[0].tokens), *cells)
        cross = {name: cross_scale(lines, model, name) for name in ("accuracy", "iou")}
        table.add_row(model, "cross-scale", "", *(f"{cross[n]:.4f}" if n in cross else "" for n in MEANS))
    table.add_row(
        "floor",
        "",
        "",
        *(_cell(mean(lines, f"{n}_floor"), n) if hasattr(lines[0], f"{n}_floor") else "" for n in MEANS),
    )
    return table


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if name in ("bytes", "ratio") else f"{value:.4f}"


def read_lines(path: Path) -> list[Line]:
    """What an interrupted measurement has written."""
    if not path.is_file():
        return []
    kinds = {entry.name: entry.type for entry in dataclasses.fields(Line)}
    parse = {
        "str": str,
        "int": int,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
    }
    with open(path, newline="") as file:
        return [
            Line(**{name: parse[str(kinds[name])](value) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]


def curve(options: argparse.Namespace, console: Console) -> None:
    output = options.output.with_suffix(".csv")
    meshes = closed(options.meshes, options.number)
    lines: list[Line] = []
    kept = read_lines(output)
    for name in options.models:
        model = models.load(name, kind=VAT, device=options.device)
        fingerprint = model.fingerprint()
        for path, mesh in track(meshes, description=f"measuring {name}", console=console):
            key = (fingerprint, path.stem, options.resolution, options.samples)
            found = [line for line in kept if line.key == key]
            lines += found or measure(path, mesh, model, options.resolution, options.samples)
            others = [line for line in kept if line.key not in {line.key for line in lines}]
            write_atomically(output, csv_of([dataclasses.asdict(line) for line in lines + others]))
    console.print(curve_table(lines))
    title = f"Codes of the first scales: means over {len(meshes)} shapes, by the bytes of the file"
    write_atomically(options.output.with_suffix(".png"), draw(curve_panels(lines), title))


# ---- Use of the codebook -----------------------------------------------------------------------------------


def usage(options: argparse.Namespace, console: Console) -> None:
    rows: list[dict[str, Any]] = []
    meshes = closed(options.meshes, options.number)
    for name in options.models:
        model = models.load(name, kind=VAT, device=options.device)
        report = model.quantizer.report()
        seen = torch.zeros(len(model.quantizer.scales), model.quantizer.num_codes, dtype=torch.int64)
        for _, mesh in track(meshes, description=f"encoding for {name}", console=console):
            codes = pipelines.encode_mesh(mesh, model).codes
            assert codes is not None
            for scale, part in enumerate(codes.codes.split(codes.scales)):
                seen[scale] += torch.bincount(part, minlength=codes.num_codes)
        for scale, counts in enumerate(seen):
            share = counts / counts.sum()
            rows.append(
                {
                    "model": model.title,
                    "scale": scale + 1,
                    "tokens": model.quantizer.scales[scale],
                    "share_in_training": float(report.share[scale]),
                    "perplexity_in_training": float(report.perplexity[scale]),
                    "tokens_seen": int(counts.sum()),
                    "codes_seen": int((counts > 0).sum()),
                    "perplexity_seen": float((-torch.special.xlogy(share, share).sum()).exp()),
                    "codes": model.quantizer.num_codes,
                    "unused_in_training": report.unused,
                }
            )
    finish(rows, options, console)
    columns = {
        "share_in_training": "share of the codes used, in training",
        "perplexity_in_training": "perplexity, in training",
    }
    columns["perplexity_seen"] = f"perplexity, {len(meshes)} shapes"
    panels = [
        Panel(
            title,
            {
                Path(model).name: [(row["scale"], row[column]) for row in rows if row["model"] == model]
                for model in dict.fromkeys(row["model"] for row in rows)
            },
        )
        for column, title in columns.items()
    ]
    marks = sorted({row["scale"] for row in rows})
    picture = draw(panels, "How much of the codebook each scale uses", marks=marks, logarithmic=False)
    write_atomically(options.output.with_suffix(".png"), picture)


# ---- Latents before and after ------------------------------------------------------------------------------

BINS = 121
REACH = 4.0


@torch.no_grad()
def before_and_after(mesh: Mesh, model: VAT) -> tuple[Tensor, Tensor]:
    """Latents drawn from the posterior, as in training, and what their codes stand for: (K, d) each."""
    latents = pipelines.encode_mesh(mesh, model, sample_posterior=True, quantize=False).latents[0]
    device = next(model.parameters()).device
    tokens = model.quantizer.quantize(latents.to(device)).tokens
    return latents[0], model.quantizer.decode(tokens)[0].cpu()


def density(values: Tensor) -> Tensor:
    """(BINS,), of numbers in [-REACH, REACH]; what lies beyond counts in the sum alone."""
    return torch.histc(values.float(), BINS, -REACH, REACH) / (len(values) * 2 * REACH / BINS)


def histogram(options: argparse.Namespace, console: Console) -> None:
    centers = (torch.arange(BINS) + 0.5) * (2 * REACH / BINS) - REACH
    normal = torch.exp(-(centers**2) / 2) / (2 * torch.pi) ** 0.5
    meshes = closed(options.meshes, options.number)
    rows, summary, panels = (
        [{"value": float(x), "normal": float(y)} for x, y in zip(centers, normal, strict=True)],
        [],
        [],
    )
    for name in options.models:
        model = models.load(name, kind=VAT, device=options.device)
        pairs = [
            before_and_after(mesh, model)
            for _, mesh in track(meshes, f"encoding for {name}", console=console)
        ]
        series = {}
        for label, parts in zip(("before", "after"), zip(*pairs, strict=True), strict=True):
            values = torch.cat(parts).flatten()
            series[label] = list(zip(centers.tolist(), density(values).tolist(), strict=True))
            for row, (_, y) in zip(rows, series[label], strict=True):
                row[f"{model.title} {label}"] = y
            centered = (values - values.mean()) / values.std()
            summary.append(
                {
                    "model": model.title,
                    "latents": label,
                    "mean": float(values.mean()),
                    "deviation": float(values.std()),
                    "skewness": float((centered**3).mean()),
                    "excess_kurtosis": float((centered**4).mean() - 3.0),
                }
            )
        series["normal"] = list(zip(centers.tolist(), normal.tolist(), strict=True))
        panels.append(Panel(Path(model.title).name, series))
    print_rows(summary, console)
    write_atomically(options.output.with_suffix(".csv"), csv_of(rows))
    title = f"Latents before and after quantization, {len(meshes)} shapes, beside the normal distribution"
    picture = draw(panels, title, marks=[-4, -2, 0, 2, 4], logarithmic=False)
    write_atomically(options.output.with_suffix(".png"), picture)


# ---- Pictures of the first scales --------------------------------------------------------------------------


def scales_row(path: Path, model: VAT, resolution: int, size: int) -> Tensor:
    """The pictures of a mesh side by side, (H, W, 3): the input, and from the first s scales for every s."""
    mesh = geometry.load(path)
    encoded = pipelines.encode_mesh(mesh, model)
    assert encoded.codes is not None
    columns = [(f"input\n{path.stat().st_size:,} B", mesh)]
    for scales in range(1, encoded.codes.num_scales + 1):
        part = encoded.coarser(scales)
        label = f"{scales} scale{'s' * (scales > 1)}\n{len(pipelines.shape_bytes(part)):,} B"
        try:
            columns.append((label, pipelines.decode_latents(part, model, resolution=resolution)))
        except geometry.NoSurfaceError:
            columns.append((f"{label}, no surface: the input again", mesh))
    return geometry.compare_picture(columns, size=size, views=((35.0, 20.0),), occlusion=8)


def scales(options: argparse.Namespace, console: Console) -> None:
    model = models.load(options.model, kind=VAT, device=options.device)
    rows = [
        scales_row(path, model, options.resolution, options.size)
        for path in track(options.meshes, description="drawing", console=console)
    ]
    geometry.save_png(torch.cat(rows), options.output)


# ---- The rest said by a generator --------------------------------------------------------------------------

COMPLETED = ("accuracy", "iou", "near_accuracy", "fscore_01", "fscore_02", "chamfer_l1")


def completed(codes: Encoded, model: NextScaleTransformer, tokenizer: VAT, scales: int, seed: int) -> Encoded:
    """The codes of the first scales, and those that a generator says after them."""
    found = codes.coarser(scales).codes
    assert found is not None
    given = found.codes[None].to(next(model.parameters()).device)
    tokens = model.generate(tokenizer.quantizer, [seed], given=given)[0].cpu()  # type: ignore[arg-type]
    whole = found._replace(codes=tokens, num_scales=len(found.scales))
    return dataclasses.replace(codes, codes=whole)


def complete(options: argparse.Namespace, console: Console) -> None:
    model = models.load(options.generator, kind=NextScaleTransformer, device=options.device)
    tokenizer = pipelines.load_tokenizer(model, options.tokenizer)
    count = len(tokenizer.config.all_scales)
    numbers = options.given or [max(1, count - 2)]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _, mesh in track(closed(options.meshes, options.number), "completing", console=console):
        codes = pipelines.encode_mesh(mesh, tokenizer)
        normalized = codes.normalization.apply_mesh(mesh)
        questions = Questions.of(normalized, pipelines.preparation_of(tokenizer).extent)
        candidates = {("all, true", count): codes}
        for number in numbers:
            candidates[("these alone", number)] = codes.coarser(number)
            candidates[("completed", number)] = completed(codes, model, tokenizer, number, options.seed)
        for key, encoded in candidates.items():
            scores = scores_of(encoded, tokenizer, normalized, questions, options.resolution, options.samples)
            found.setdefault(key, []).append(scores)
    rows = []
    for (what, number), scores in found.items():
        row: dict[str, Any] = {"generator": model.title, "given": number, "codes": what}
        for name in COMPLETED:
            known = [one[name] for one in scores if one[name] is not None]
            row[name] = statistics.fmean(known) if known else None
        rows.append(row)
    finish(rows, options, console)


# ---- Command -----------------------------------------------------------------------------------------------


def closed(folder: Path, number: int) -> list[tuple[Path, Mesh]]:
    """Evenly chosen closed meshes of a folder, with their files."""
    files = {path.stem: path for path in folder.rglob("*")}
    found = [(files[name], mesh) for name, mesh in closed_meshes(folder, number)]
    if not found:
        raise SystemExit(f"{folder}: no closed mesh in it")
    return found


def csv_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows of equal columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue().encode()


def print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def finish(rows: Sequence[dict[str, Any]], options: argparse.Namespace, console: Console) -> None:
    print_rows(rows, console)
    write_atomically(options.output.with_suffix(".csv"), csv_of(rows))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    several = "shipped models' names, folders or hub ids"
    for command in (curve, usage, histogram):
        part = commands.add_parser(command.__name__)
        part.set_defaults(run=command)
        part.add_argument("models", nargs="+", help=several)
        part.add_argument("--meshes", type=Path, required=True, help="a folder")
        part.add_argument("--number", type=int, default=14, help="of closed meshes; default: 14")
        part.add_argument("-o", "--output", type=Path, required=True, help="both files, without ending")
        part.add_argument("--device", default="cpu")
        if command is curve:
            part.add_argument("--resolution", type=int, default=128, help="of the extraction; default: 128")
            part.add_argument(
                "--samples", type=int, default=100_000, help="points per surface; default: 100000"
            )
    part = commands.add_parser("complete")
    part.set_defaults(run=complete)
    part.add_argument("generator", help="a shipped one's name, a folder or a hub id")
    part.add_argument("--tokenizer", help="default: what the generator says")
    part.add_argument("--given", type=int, nargs="+", metavar="S", help="scales; default: all but two")
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--meshes", type=Path, required=True, help="a folder")
    part.add_argument("--number", type=int, default=14, help="of closed meshes; default: 14")
    part.add_argument("-o", "--output", type=Path, required=True, help="the table, without ending")
    part.add_argument("--resolution", type=int, default=128, help="of the extraction; default: 128")
    part.add_argument("--samples", type=int, default=100_000, help="points per surface; default: 100000")
    part.add_argument("--device", default="cpu")
    part = commands.add_parser("scales")
    part.set_defaults(run=scales)
    part.add_argument("model")
    part.add_argument("meshes", nargs="+", type=Path, metavar="MESH")
    part.add_argument("-o", "--output", type=Path, required=True, help="the PNG")
    part.add_argument("--resolution", type=int, default=128)
    part.add_argument("--size", type=int, default=240, help="pixels along a side of a picture; default: 240")
    part.add_argument("--device", default="cpu")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    options.run(options, Console(width=160, highlight=False))


if __name__ == "__main__":
    main()
