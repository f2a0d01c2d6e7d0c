"""Many pairs of meshes compared: records, resume, files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastshape import __version__
from fastshape.geometry import Mesh, Protocol, evaluate, load
from fastshape.geometry.io import write_atomically
from fastshape.geometry.metrics import Group
from fastshape.geometry.protocols import protocol_named
from fastshape.pipelines.inputs import source_digest
from fastshape.pipelines.pairs import Pair
from fastshape.pipelines.summary import Summary, summarize

SHAPES_FOLDER = "shapes"


@dataclass(frozen=True)
class EvaluationReport:
    """All comparisons of a run.

    Attributes:
        settings: every choice, and the version of fastshape.
        protocol: the same as an object, with the columns of its table.
        records: one plain dictionary for each pair, in the pairs' order: `name`, `status` ("ok", "failed" or
            "missing"), `reason`, `group`, `level`, `values`, `floor`, ...
        reused: how many were taken from an earlier run.
    """

    settings: dict[str, Any]
    protocol: Protocol
    records: list[dict[str, Any]]
    reused: int = 0

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["status"] != "ok"]

    def summaries(self) -> list[Summary]:
        """One for each group of surfaces."""
        return summarize(self.records, seed=self.settings["seed"])


def evaluate_pairs(
    pairs: Sequence[Pair],
    output: str | os.PathLike[str] | None = None,
    preset: str | Protocol | None = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    group: Group | None = None,
    sharp_normals: bool | None = None,
    level_resolution: int | None = None,
    resume: bool = False,
    on_item: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[Pair], None] | None = None,
) -> EvaluationReport:
    """Compare every pair and write what was found.

    A pair that cannot be read or compared is recorded as failed with its reason, and the run goes on; one
    with a missing file is recorded as missing. Both count as failures and stay in every list.

    Into `output` go `shapes/NAME.json` after each pair, and at the end `shapes.csv` and `summary.json`; each
    file appears complete or not at all. The same settings and files give the same CSV and summary.

    Args:
        pairs: of `find_pairs`.
        output: the folder to write to, made if need be; None writes nothing.
        preset: as in `evaluate`, as are `num_samples`, `seed`, `sharp_normals` and `level_resolution`.
        group: what the meshes are, where a pair does not say so itself; None detects it for each.
        resume: take the pairs that `output` already holds as compared, if settings and files are the same.
        on_start: called with each pair before it is compared.
        on_item: called with each record.
    """
    protocol = protocol_named(preset)
    if num_samples is not None:
        protocol = replace(protocol, num_samples=num_samples, num_target_samples=None)
    if sharp_normals is not None:
        protocol = replace(protocol, sharp_views=(protocol.sharp_views or 22) if sharp_normals else 0)
    settings = {
        "fastshape": __version__,
        "preset": protocol.name,
        "description": protocol.describe(),
        "box": protocol.box,
        "num_samples": protocol.num_samples,
        "seed": seed,
        "group": group,
        "level_resolution": level_resolution,
        "protocol": protocol.to_dict(),
    }
    folder = None if output is None else Path(output)
    if folder is not None:
        (folder / SHAPES_FOLDER).mkdir(parents=True, exist_ok=True)
    records, reused = [], 0
    for pair in pairs:
        if on_start is not None:
            on_start(pair)
        path = None if folder is None else folder / SHAPES_FOLDER / f"{pair.name}.json"
        asked = pair.group or group
        record = _earlier(path, pair, asked, settings) if resume and path is not None else None
        if record is None:
            record = _compare(pair, protocol, seed, asked, level_resolution)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, to_json({**record, "settings": settings}))
        else:
            reused += 1
        records.append(record)
        if on_item is not None:
            on_item(record)
    report = EvaluationReport(settings, protocol, records, reused)
    if folder is not None:
        write_atomically(folder / "shapes.csv", to_csv(records))
        write_atomically(folder / "summary.json", to_json(summary_of(report)))
    return report


def _compare(
    pair: Pair, protocol: Protocol, seed: int, group: Any, level_resolution: int | None
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": pair.name,
        "status": "ok",
        "reason": "",
        "asked_group": group,
        "group": group,
        "level": None,
        "salient_edges": None,
        "counted_on": None,
        "inside_is_clear": None,
        "latent_bytes": pair.latent_bytes,
        "latent_length": pair.latent_length,
        "files": {},
        "values": {},
        "floor": {},
        "alignment": None,
        "seconds": 0.0,
    }
    begin = time.perf_counter()
    meshes: dict[str, Mesh] = {}
    paths = {"prediction": pair.prediction, "target": pair.target}
    lacking = [role for role, path in paths.items() if path is None]
    if lacking:
        record |= {"status": "missing", "reason": " and ".join(f"no {role}" for role in lacking)}
        return record
    try:
        for role, path in paths.items():
            assert path is not None
            record["files"][role] = {"path": str(path), "sha256": _digest(path)}
            mesh = load(path)
            record["files"][role] |= {
                "vertices": mesh.num_vertices,
                "faces": mesh.num_faces,
                "notes": list(mesh.notes),
            }
            meshes[role] = mesh
        result = evaluate(
            meshes["prediction"],
            meshes["target"],
            protocol,
            seed=seed,
            group=group,
            level_resolution=level_resolution,
        )
        record |= {
            "group": result.group,
            "level": result.level.level,
            "salient_edges": result.level.salient_edges,
            "counted_on": result.level.counted_on,
            "inside_is_clear": None if result.occupancy is None else result.occupancy.clear,
            "values": result.values(),
            "floor": result.floor.values(),
            "alignment": None if result.alignment is None else result.alignment.to_dict(),
        }
    except Exception as error:  # a bad pair must not end the run, whatever it is
        record["status"] = "failed"
        record["reason"] = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError):
            record["reason"] = f"{type(error).__name__}: {record['reason']}"
    record["seconds"] = round(time.perf_counter() - begin, 3)
    return record


def _digest(path: Path) -> str | None:
    try:
        return source_digest(path)
    except OSError:
        return None  # `load` will say why


def _earlier(path: Path, pair: Pair, asked: str | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier run, if it was compared and neither settings nor files have changed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record.pop("settings") == json.loads(to_json(settings)) and record["status"] == "ok"
        same = same and record["asked_group"] == asked
        for role, file in (("prediction", pair.prediction), ("target", pair.target)):
            same = same and file is not None and record["files"][role]["sha256"] == _digest(file)
            record["files"][role]["path"] = str(file)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    record |= {"latent_bytes": pair.latent_bytes, "latent_length": pair.latent_length}
    return record if same else None


def summary_of(report: EvaluationReport) -> dict[str, Any]:
    """Settings, groups and every record without its times, as plain values."""
    groups = []
    for summary in report.summaries():
        plain = asdict(summary)
        plain["levels"] = {
            f"L{level}": {"count": count, "statistics": {k: asdict(s) for k, s in statistics.items()}}
            for level, (count, statistics) in summary.levels.items()
        }
        groups.append(plain)
    return {
        "settings": report.settings,
        "pairs": len(report.records),
        "failed": len(report.failures),
        "groups": groups,
        "shapes": [{k: v for k, v in record.items() if k != "seconds"} for record in report.records],
    }


def to_csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """One line for each pair, failed ones too; floors as `floor:NAME`."""
    first = next((record for record in records if record["status"] == "ok"), None)
    scores = list(first["values"]) if first else []
    floors = list(first["floor"]) if first else []
    names = ["name", "status", "reason", "group", "level", "salient_edges", "inside_is_clear"]
    names += ["latent_bytes", "latent_length"]
    roles = ("prediction", "target")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = [*names, *roles, *(f"{role}_faces" for role in roles)]
    writer.writerow([*header, *scores, *(f"floor:{name}" for name in floors)])
    for record in records:
        files = [record["files"].get(role) or {} for role in roles]
        row = [record[name] for name in names]
        row += [f.get("path") for f in files] + [f.get("faces") for f in files]
        row += [record["values"].get(name) for name in scores]
        row += [record["floor"].get(name) for name in floors]
        writer.writerow(
            ["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in row]
        )
    return file.getvalue().encode(errors="backslashreplace")  # names that are not UTF-8


def to_json(value: Any) -> bytes:
    """JSON that every reader takes: what is not finite becomes null."""

    def plain(part: Any) -> Any:
        if isinstance(part, float):
            return part if math.isfinite(part) else None
        if isinstance(part, Mapping):
            return {str(key): plain(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [plain(item) for item in part]
        return part

    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # a name that is not UTF-8: \udcff, an escape of JSON
