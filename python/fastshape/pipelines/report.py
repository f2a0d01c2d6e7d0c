"""Tables, pictures and one self-contained page of an evaluation."""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastshape.geometry import Mesh, Protocol, load, render
from fastshape.geometry.io import write_atomically
from fastshape.geometry.optional import require
from fastshape.geometry.protocols import to_box
from fastshape.geometry.render import VIEWS
from fastshape.ops import build_bvh, closest_point
from fastshape.pipelines import page
from fastshape.pipelines.evaluate import EvaluationReport
from fastshape.pipelines.summary import Statistic, Summary, larger_is_better, worst

# What is shown of every evaluation, below the columns of the paper's table: score, name, factor, decimals.
ALL_SCORES: tuple[tuple[str, str, float, int], ...] = (
    ("chamfer_l1_sum", "CD-L1, sum", 1, 5),
    ("chamfer_l1", "CD-L1, mean of two", 1, 5),
    ("chamfer_l2_sum", "CD-L2², sum, x1e5", 1e5, 3),
    ("normal_consistency", "normal consistency |cos|", 1, 4),
    ("signed_normal_consistency", "normal consistency, signed", 1, 4),
    ("prediction_to_surface_mean", "prediction to surface, mean", 1, 5),
    ("prediction_to_surface_rms", "prediction to surface, rms", 1, 5),
    ("prediction_to_surface_p95", "prediction to surface, 95 %", 1, 5),
    ("prediction_to_surface_max", "prediction to surface, max", 1, 5),
    ("target_to_surface_mean", "target to surface, mean", 1, 5),
    ("target_to_surface_rms", "target to surface, rms", 1, 5),
    ("target_to_surface_p95", "target to surface, 95 %", 1, 5),
    ("target_to_surface_max", "target to surface, max", 1, 5),
    ("volume_iou", "volume IoU", 1, 4),
    ("near_iou", "near-surface IoU", 1, 4),
    ("near_accuracy", "near-surface accuracy", 1, 4),
    ("sharp_normal_error", "sharp-normal error x100", 100, 3),
)

# From no error to the limit: light gray, yellow, orange, red, dark purple; each darker than the one before.
_HEAT = torch.tensor(
    [[0.80, 0.83, 0.86], [0.99, 0.86, 0.45], [0.96, 0.56, 0.25], [0.80, 0.18, 0.24], [0.30, 0.05, 0.32]]
)


@dataclass(frozen=True)
class Row:
    """A score of the table, as text."""

    label: str
    better: str
    mean: str
    interval: str
    std: str
    floor: str
    count: int
    levels: tuple[str, ...] = ()
    own: bool = False


def table_rows(summary: Summary, protocol: Protocol) -> list[Row]:
    """The paper's columns first, then every score, as the rows of a group's table."""
    wanted = [(c.key, c.label, c.factor, c.decimals, True) for c in protocol.columns]
    others = [*ALL_SCORES[:3]]
    others += [(f"fscore@{t:g}", f"F@{t:g}".replace("@0.", "@."), 1.0, 4) for t in protocol.thresholds]
    others += ALL_SCORES[3:]
    shown = {(c.key, c.factor) for c in protocol.columns}
    wanted += [(*other, False) for other in others if (other[0], other[2]) not in shown]
    rows = []
    for key, label, factor, decimals, own in wanted:
        found = summary.statistics.get(key)
        if found is None:
            continue

        def text(value: float | None, factor: float = factor, decimals: int = decimals) -> str:
            return "-" if value is None or math.isnan(value) else f"{value * factor:.{decimals}f}"

        def level(statistic: Statistic | None, text: Callable[[float | None], str] = text) -> str:
            return "-" if statistic is None else f"{text(statistic.mean)} ± {text(statistic.std)}"

        rows.append(
            Row(
                label=label,
                better="↑" if larger_is_better(key) else "↓",
                mean=text(found.mean),
                interval="-" if found.interval is None else "[{}, {}]".format(*map(text, found.interval)),
                std=text(found.std),
                floor=text(found.floor),
                count=found.count,
                levels=tuple(level(part.get(key)) for _, part in summary.levels.values()),
                own=own,
            )
        )
    return rows


def headline(report: EvaluationReport) -> str:
    """Protocol, seed and version in one line."""
    settings = report.settings
    return f"{settings['description']}; seed {settings['seed']}; fastshape {settings['fastshape']}"


def group_line(summary: Summary) -> str:
    """What a group's table is about, in one line."""
    parts = [f"{summary.group}: {summary.count} shape" + ("s" if summary.count != 1 else "")]
    if summary.latent_bytes is not None:
        size = f"{summary.latent_bytes:,.0f} bytes of latents each"
        if summary.latent_length is not None:
            size += f", {summary.latent_length:,.0f} vectors"
        parts.append(size)
    if summary.unclear:
        parts.append(f"IoU without {len(summary.unclear)} that lack a clear inside")
    return "; ".join(parts)


def level_names(summary: Summary) -> list[str]:
    return [f"L{level} ({count})" for level, (count, _) in summary.levels.items()]


# ---- Pictures ----------------------------------------------------------------------------------------------


def heat_color(share: Tensor) -> Tensor:
    """Colors (N, 3) in [0, 1] of numbers (N,) between 0, no error, and 1, the limit; beyond it the last."""
    place = share.clamp(0, 1) * (len(_HEAT) - 1)
    below = place.floor().long().clamp(max=len(_HEAT) - 2)
    part = (place - below)[:, None]
    return _HEAT[below] * (1 - part) + _HEAT[below + 1] * part


def nice_limit(value: float) -> float:
    """The next of 1, 2, 5, 10, ... at or above a positive number."""
    if not value > 0 or not math.isfinite(value):
        return 1e-3
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def heat_limit(records: Sequence[Mapping[str, Any]]) -> float:
    """One scale for all pictures: about twice the usual 95 % distance."""
    sides = ("prediction_to_surface_p95", "target_to_surface_p95")
    found = sorted(max(r["values"][side] for side in sides) for r in records if r["status"] == "ok")
    return nice_limit(2 * found[len(found) // 2]) if found else 1e-3


def distance_paint(mesh: Mesh, limit: float) -> Callable[[Tensor], Tensor]:
    """Colors of points by their distance to a mesh."""
    bvh = build_bvh(mesh.vertices.float(), mesh.faces)
    return lambda points: heat_color(closest_point(points.contiguous(), bvh).distance / limit)


def pair_picture(
    prediction: Mesh,
    target: Mesh,
    *,
    limit: float,
    up: Literal["y", "z"] = "z",
    size: int = 300,
    unit: str = "",
) -> bytes:
    """A PNG of a pair in one frame: target, prediction, and either colored by its distance to the other.

    Two views from opposite sides, one below the other. On the prediction the colors show what it has too
    much, on the target what the prediction lacks; they are computed for each pixel, not for each vertex.

    Args:
        prediction, target: in the frame in which `limit` is a length.
        limit: the distance of the last color.
        up: the vertical axis.
        size: height and width of one view, in pixels.
        unit: said beside the color bar.

    Raises:
        ImportError: Pillow is not installed (extra `image`).
    """
    pillow = require("PIL.Image", "image", "drawing a report")
    draw_module = require("PIL.ImageDraw", "image", "drawing a report")
    font_module = require("PIL.ImageFont", "image", "drawing a report")
    font = font_module.load_default(round(size * 0.05))
    small = font_module.load_default(round(size * 0.042))
    columns: tuple[tuple[str, Mesh, Any], ...] = (
        ("target", target, None),
        ("prediction", prediction, None),
        ("prediction, distance to target", prediction, distance_paint(target, limit)),
        ("target, distance to prediction", target, distance_paint(prediction, limit)),
    )
    gap, line = round(size * 0.02), round(size * 0.075)
    bar = round(size * 0.05)
    width = len(columns) * size + (len(columns) - 1) * gap
    height = line + len(VIEWS) * size + (len(VIEWS) - 1) * gap + gap + bar + line
    sheet = pillow.new("RGB", (width, height), (255, 255, 255))
    pen = draw_module.Draw(sheet)
    for number, (label, mesh, paint) in enumerate(columns):
        left = number * (size + gap)
        pen.text((left + 2, round(line * 0.1)), label, fill=(40, 40, 40), font=font)
        # Colors read best without shadows.
        options: dict[str, Any] = {"occlusion": 8} if paint is None else {"occlusion": 0, "color": paint}
        picture = render(mesh, size=size, views=VIEWS, up=up, frame=target, supersample=3, **options)
        for row, view in enumerate(picture.split(size, 1)):
            sheet.paste(pillow.fromarray(view.contiguous().numpy()), (left, line + row * (size + gap)))
    left, top = 2 * (size + gap), height - bar - line
    length = width - left
    colors = heat_color((torch.arange(length) + 0.5) / length)
    strip = (colors * 255 + 0.5).to(torch.uint8)[None].expand(bar, -1, -1).contiguous()
    sheet.paste(pillow.fromarray(strip.numpy()), (left, top))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        text = f"{share * limit:g}" + (" and more" if share == 1 else "")
        span = pen.textlength(text, font=small)
        at = min(max(left + share * length - span / 2, left), width - span)
        pen.text((at, top + bar + 2), text, fill=(70, 70, 70), font=small)
    note = f"distance to the nearest triangle of the other mesh{', ' + unit if unit else ''}"
    pen.text((2, top + bar * 0.1), note, fill=(70, 70, 70), font=small)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def chosen_for_pictures(report: EvaluationReport, count: int) -> list[Mapping[str, Any]]:
    """Which pairs are drawn: the worst half, and others evenly from the best to the worst; worst first."""
    ranked = worst(report.records, report.protocol.columns[0].key, len(report.records))
    if len(ranked) <= count:
        return ranked
    first = ranked[: -(-count // 2)]
    rest = ranked[len(first) :]
    others = count - len(first)
    return first + [rest[round((i + 1) * len(rest) / others) - 1] for i in range(others)]


def draw_pairs(
    report: EvaluationReport,
    count: int,
    *,
    up: Literal["y", "z"] | None = None,
    size: int = 300,
    on_item: Callable[[str], None] | None = None,
) -> dict[str, bytes]:
    """PNGs of up to `count` pairs by name, worst first, all with one color scale.

    Args:
        report: of `evaluate_pairs`; its files are read again.
        count: see `chosen_for_pictures`.
        up: the vertical axis; None is y for glTF targets, else z.
        size: of a view, in pixels.
        on_item: called with each name.
    """
    chosen = chosen_for_pictures(report, count)
    limit = heat_limit(report.records)
    pictures = {}
    for record in chosen:
        if on_item is not None:
            on_item(record["name"])
        paths = [Path(record["files"][role]["path"]) for role in ("prediction", "target")]
        prediction, target = (load(path) for path in paths)
        normalization = to_box(target, report.protocol.box)
        prediction, target = normalization.apply_mesh(prediction), normalization.apply_mesh(target)
        if record["alignment"] is not None:
            motion = [torch.tensor(record["alignment"][k]).double() for k in ("rotation", "translation")]
            moved = prediction.vertices.double() @ motion[0].T + motion[1]
            prediction = Mesh(moved.float(), prediction.faces)
        axis: Literal["y", "z"] = up or ("y" if paths[1].suffix.lower() in (".glb", ".gltf") else "z")
        pictures[record["name"]] = pair_picture(
            prediction, target, limit=limit, up=axis, size=size, unit="in units of the box"
        )
    return pictures


# ---- The page ----------------------------------------------------------------------------------------------


def _score(record: Mapping[str, Any], key: str, factor: float, decimals: int, source: str = "values") -> str:
    value = record[source].get(key)
    return "-" if value is None else f"{value * factor:.{decimals}f}"


def _group_section(summary: Summary, protocol: Protocol) -> str:
    rows = table_rows(summary, protocol)
    several = len(summary.levels) > 1
    header = ["", "mean", "95 % interval", "deviation", "sampling floor", "shapes"]
    header += level_names(summary) if several else []
    lines = []
    for number, row in enumerate(rows):
        cells = [f"{row.label} {row.better}", row.mean, row.interval, row.std, row.floor, str(row.count)]
        cells += row.levels if several else ()
        last = row.own and (number + 1 == len(rows) or not rows[number + 1].own)
        lines.append(page.line(cells, ("own last" if last else "own") if row.own else ""))
    note = ""
    if several:
        note = "<p class='quiet'>By level of detail: mean ± deviation.</p>"
    elif summary.levels:
        note = f"<p class='quiet'>All shapes are of level L{next(iter(summary.levels))}.</p>"
    return f"<h2>{html.escape(group_line(summary))}</h2>{page.table(header, lines)}{note}"


def _shapes_section(report: EvaluationReport) -> str:
    columns = report.protocol.columns
    header = ["shape", "group", "level", "edges", "latent bytes"]
    for column in columns:
        header.append(column.label)
        if any(r["floor"].get(column.key) is not None for r in report.records):
            header.append("floor")
    lines = []
    for record in report.records:
        if record["status"] != "ok":
            reason = f"{record['status']}: {record['reason']}"
            lines.append(page.failed_line(record["name"], reason, len(header)))
            continue
        size = record["latent_bytes"]
        cells = [record["name"], record["group"], f"L{record['level']}", f"{record['salient_edges']:,}"]
        cells.append("-" if size is None else f"{size:,}")
        for column in columns:
            cells.append(_score(record, column.key, column.factor, column.decimals))
            if any(r["floor"].get(column.key) is not None for r in report.records):
                cells.append(_score(record, column.key, column.factor, column.decimals, "floor"))
        lines.append(page.line(cells))
    return f"<h2>Every shape</h2>{page.table(header, lines)}"


def _pictures_section(report: EvaluationReport, pictures: Mapping[str, bytes]) -> str:
    if not pictures:
        return ""
    parts = ["<h2>Pictures</h2>"]
    compared = sum(record["status"] == "ok" for record in report.records)
    if len(pictures) < compared:
        key = html.escape(report.protocol.columns[0].label)
        parts.append(
            f"<p>{len(pictures)} of {compared} shapes: the worst by {key} first, then others evenly from the "
            "rest.</p>"
        )
    by_name = {record["name"]: record for record in report.records}
    for name, data in pictures.items():
        record = by_name[name]
        said = ", ".join(
            f"{c.label} {_score(record, c.key, c.factor, c.decimals)}"
            + (
                f" (floor {_score(record, c.key, c.factor, c.decimals, 'floor')})"
                if record["floor"].get(c.key) is not None
                else ""
            )
            for c in report.protocol.columns
        )
        faces = " against ".join(f"{record['files'][r]['faces']:,}" for r in ("prediction", "target"))
        parts.append(page.figure(name, f"{said}; {faces} faces", data))
    return "".join(parts)


def _settings_section(report: EvaluationReport) -> str:
    protocol = report.protocol
    counted = sorted({r["counted_on"] for r in report.records if r["counted_on"]})
    lines = [
        f"The protocol follows {protocol.source}. Its targets: {protocol.ground_truth}.",
        *protocol.remarks,
        "Sampling floor: two independent samples of the target against each other; a perfect prediction "
        "scores that. Distances to surfaces (nearest triangle) have none.",
        "Interval: 95 % bootstrap over shapes, 2,000 resamples. Deviation: of the shapes (n - 1).",
        f"Levels: up to 5,000, 20,000, 50,000 and more edges sharper than 15 degrees, counted on the target "
        f"({', '.join(counted) or '-'}).",
        "IoU counts only shapes where inside or outside is clear (in doubt for at most 1 % of the points). "
        "Where a shape fills little of its box, few points decide the volume IoU; the near IoU is steadier.",
    ]
    flat = {**report.settings, **{f"protocol.{k}": v for k, v in report.settings["protocol"].items()}}
    flat.pop("protocol")
    cells = "".join(
        f"<tr><td>{html.escape(key)}</td><td class='text'><code>{html.escape(str(value))}</code></td></tr>"
        for key, value in flat.items()
    )
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in lines)
    return (
        f"<h2>How to read this</h2><ul>{notes}</ul>"
        f"<details><summary>All settings</summary><table><tbody>{cells}</tbody></table></details>"
    )


def html_page(report: EvaluationReport, pictures: Mapping[str, bytes], *, title: str = "Evaluation") -> str:
    """The whole page: no script, nothing from elsewhere."""
    failures = report.failures
    compared = len(report.records) - len(failures)
    first = f"{compared} of {len(report.records)} pairs compared"
    if failures:
        first += f", {len(failures)} failed (they are in no mean)"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(headline(report))}</p>",
        f"<p><b>{first}.</b></p>",
        *(_group_section(summary, report.protocol) for summary in report.summaries()),
        _pictures_section(report, pictures),
        _shapes_section(report),
        _settings_section(report),
    ]
    return page.document(title, body)


def write_page(
    report: EvaluationReport,
    path: str | os.PathLike[str],
    pictures: Mapping[str, bytes],
    *,
    title: str = "Evaluation",
) -> None:
    """Write `html_page`, atomically.

    Raises:
        MeshError: the file cannot be written.
    """
    write_atomically(Path(path), html_page(report, pictures, title=title).encode(errors="backslashreplace"))
