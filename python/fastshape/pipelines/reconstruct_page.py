"""One self-contained page of a run of `reconstruct_files`, and the columns that its table shares."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastshape.geometry.io import write_atomically
from fastshape.pipelines import page

Record = Mapping[str, Any]

# Of the table: heading, where the number stands, its name there, how it is written.
COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("tokens", "", "tokens", ",.0f"),
    ("bytes", "", "latent_bytes", ",.0f"),
    ("enc", "seconds", "encode", ".2f"),
    ("dec", "seconds", "decode", ".2f"),
    ("extract", "seconds", "extract", ".2f"),
    ("CD-L1 ↓", "values", "chamfer_l1", ".4f"),
    ("floor", "floor", "chamfer_l1", ".4f"),
    ("F@.02 ↑", "values", "fscore@0.02", ".3f"),
    ("floor", "floor", "fscore@0.02", ".3f"),
    ("IoU ↑", "values", "volume_iou", ".3f"),
)
HEADER = tuple(column[0] for column in COLUMNS)
LEGEND = (
    "enc, dec, extract: seconds; CD-L1: mean distance of nearest points, in a box of side 2; floor: the "
    "input's samples against others of its own; IoU: only where inside and outside are clear"
)


def number(record: Record, part: str, name: str) -> float | None:
    """A number of a record, None where there is none."""
    if name == "tokens":
        return float(sum(record["tokens"]))
    if name == "volume_iou" and not record["clear"]:
        return None
    value = (record[part] if part else record).get(name)
    return None if value is None else float(value)


def cells(record: Record) -> list[str]:
    """The table's row of a shape, without its name."""
    return [_text(number(record, part, name), form) for _, part, name, form in COLUMNS]


def mean_cells(records: Sequence[Record]) -> list[str]:
    """The row of means; each over the shapes that have the number."""
    row = []
    for _, part, name, form in COLUMNS:
        known = [value for r in records if (value := number(r, part, name)) is not None]
        row.append(_text(math.fsum(known) / len(known) if known else None, form))
    return row


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def html_page(
    records: Sequence[Record], about: Mapping[str, str], *, title: str, pictures: Mapping[str, bytes]
) -> str:
    """The whole page.

    Args:
        records: of `reconstruct_files`.
        about: what a reader must know of model and settings, by name.
        title: of the page.
        pictures: PNGs by the records' names.
    """
    done = [record for record in records if record["status"] == "ok"]
    failed = len(records) - len(done)
    first = f"{len(done)} of {len(records)} shapes reconstructed"
    if failed:
        first += f", {failed} failed (they are in no mean)"
    header = ["shape", *HEADER]
    lines = [
        page.line([record["name"], *cells(record)])
        if record["status"] == "ok"
        else page.failed_line(record["name"], f"failed: {record['reason']}", len(header))
        for record in records
    ]
    if len(done) > 1:
        lines.insert(0, page.line([f"mean of {len(done)}", *mean_cells(done)], "own last"))
    facts = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='text'>{html.escape(value)}</td></tr>"
        for name, value in about.items()
    )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><b>{first}.</b></p>",
        f'<div class="scroll"><table><tbody>{facts}</tbody></table></div>',
        f"<h2>Shapes</h2>{page.table(header, lines)}<p class='quiet'>{html.escape(LEGEND)}.</p>",
        _pictures(done, pictures),
    ]
    return page.document(title, body)


def _pictures(done: Sequence[Record], pictures: Mapping[str, bytes]) -> str:
    drawn = [record for record in done if record["name"] in pictures]
    if not drawn:
        return ""
    few = "" if len(drawn) == len(done) else f" of the first {len(drawn)}"
    figures = "".join(
        page.figure(record["name"], _said(record), pictures[record["name"]]) for record in drawn
    )
    return (
        f"<h2>Pictures{few}</h2><p class='quiet'>Left the input, right what came back, each from two "
        f'sides.</p><div class="grid">{figures}</div>'
    )


def _said(record: Record) -> str:
    scores = []
    for label, name, form in (("CD-L1", "chamfer_l1", ".4f"), ("F@.02", "fscore@0.02", ".3f")):
        value, floor = (_text(number(record, part, name), form) for part in ("values", "floor"))
        scores.append(f"{label} {value} (floor {floor})")
    if (iou := number(record, "values", "volume_iou")) is not None:
        scores.append(f"IoU {iou:.3f}")
    tokens = " + ".join(map(str, record["tokens"]))
    seconds = sum(record["seconds"].get(name, 0.0) for name in ("sample", "encode", "decode", "extract"))
    made = f"{tokens} tokens, {record['latent_bytes']:,} bytes, {seconds:.1f} s"
    faces = f"{record['source']['faces']:,} faces, {record['output']['faces']:,} came back"
    return "; ".join([", ".join(scores), made, faces, *record["source"]["notes"]])


def write_page(
    records: Sequence[Record],
    path: Path,
    about: Mapping[str, str],
    *,
    title: str,
) -> None:
    """Write `html_page` with the pictures that the records name, atomically.

    Raises:
        MeshError: the file cannot be written.
    """
    pictures = {
        record["name"]: Path(record["picture"]).read_bytes()
        for record in records
        if record["status"] == "ok" and record["picture"] is not None
    }
    text = html_page(records, about, title=title, pictures=pictures)
    write_atomically(path, text.encode(errors="backslashreplace"))
