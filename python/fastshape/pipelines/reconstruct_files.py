"""Many meshes through an autoencoder: files, records, resume. A bad mesh is a record with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from fastshape import __version__
from fastshape.geometry import Mesh, SurfaceKind, compare_picture, load, save
from fastshape.geometry.io import write_atomically
from fastshape.models import Autoencoder, PretrainedModel
from fastshape.pipelines.evaluate import to_json
from fastshape.pipelines.inputs import source_digest
from fastshape.pipelines.reconstruct import Reconstruction, reconstruct
from fastshape.runtime.interrupt import kept_interrupt

RECORDS_FOLDER = "shapes"

Record = dict[str, Any]
ModelFor = Callable[["Job", Mesh], Autoencoder]


@dataclass(frozen=True)
class Job:
    """One mesh, and where its reconstruction goes.

    Attributes:
        name: unique in a run.
        source: the file to read.
        output: the mesh to write, in any format of `geometry.save`.
        picture: the PNG to write; None draws none.
        up: the axis that is vertical in it.
    """

    name: str
    source: Path
    output: Path
    picture: Path | None = None
    up: Literal["y", "z"] = "z"


@dataclass(frozen=True)
class ReconstructSettings:
    """What decides the results of a run, besides meshes and weights.

    Attributes:
        resolution, surface, num_tokens, sample_posterior, prune, memory, seed, num_samples: as in
            `reconstruct`.
        picture_size: height and width of a view in pixels.
    """

    resolution: int | None = None
    surface: SurfaceKind = "marching_cubes"
    num_tokens: int | None = None
    sample_posterior: bool = False
    prune: bool = True
    memory: int | None = None
    seed: int = 0
    num_samples: int = 100_000
    picture_size: int = 480


def reconstruct_file(job: Job, model: Autoencoder | ModelFor, settings: ReconstructSettings) -> Record:
    """Read a mesh, reconstruct it, write the result and its picture; each file appears whole or not at all.

    Args:
        job: the files.
        model: one that all jobs share, or what gives a job and its mesh their own.
        settings: of the run.

    Returns:
        Plain values by name: `tokens` and `latent_bytes`, `seconds` by stage, `values` and `floor` of the
        comparison, `source` and `output` (path, faces), `clear` (whether the IoU means something), and of a
        structure model `voxel_iou`.

    Raises:
        MeshError, NoSurfaceError, ...: whatever went wrong.
    """
    mesh = load(job.source)
    seconds: dict[str, float] = {}
    begin = perf_counter()
    chosen: Any
    if isinstance(model, PretrainedModel):
        chosen = model
    else:
        chosen = model(job, mesh)
        seconds["train"] = perf_counter() - begin
    result = reconstruct(
        mesh,
        chosen,
        resolution=settings.resolution,
        surface=settings.surface,
        num_tokens=settings.num_tokens,
        sample_posterior=settings.sample_posterior,
        prune=settings.prune,
        memory=settings.memory,
        seed=settings.seed,
        num_samples=settings.num_samples,
    )
    job.output.parent.mkdir(parents=True, exist_ok=True)
    save(result.mesh, job.output)
    seconds |= result.seconds
    if job.picture is not None:
        begin = perf_counter()
        _draw(job, mesh, result, settings.picture_size)
        seconds["draw"] = perf_counter() - begin
    assert result.evaluation is not None
    occupancy = result.evaluation.occupancy
    return {
        **_outline(job),
        "status": "ok",
        "source": {"path": str(job.source), "faces": mesh.num_faces, "notes": list(mesh.notes)},
        "output": {"path": str(job.output), "faces": result.mesh.num_faces},
        "tokens": list(result.encoded.tokens),
        "latent_bytes": result.num_bytes,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "values": result.evaluation.values(),
        "floor": result.evaluation.floor.values(),
        "clear": occupancy is not None and occupancy.clear,
        **({} if result.voxel_iou is None else {"voxel_iou": result.voxel_iou}),
    }


def reconstruct_files(
    jobs: Sequence[Job],
    model: Autoencoder | ModelFor,
    folder: Path,
    settings: ReconstructSettings | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_start: Callable[[Job], None] | None = None,
    on_item: Callable[[Record], None] | None = None,
) -> list[Record]:
    """`reconstruct_file` for each job, in order; one that fails is recorded with its reason and ends nothing.

    Each record is written to `folder/shapes/NAME.json` as soon as it is there.

    Args:
        jobs: the files.
        model: as in `reconstruct_file`.
        folder: where the records go.
        settings: None is the default.
        about: plain values that say what the model is; a resumed run must have the same.
        resume: keep what `folder` holds as done, if settings, `about` and the source file are the same and
            the result is there.
        on_start: called with each job before it begins.
        on_item: called with each record.

    Returns:
        A record for each job: that of `reconstruct_file`, or `name`, `status` "failed" and `reason`. Those
        that were kept have `kept`.
    """
    settings = settings or ReconstructSettings()
    stamp = json.loads(to_json({"fastshape": __version__, **vars(settings), **(about or {})}))
    records = []
    with kept_interrupt() as check:
        for job in jobs:
            if on_start is not None:
                on_start(job)
            path = folder / RECORDS_FOLDER / f"{job.name}.json"
            digest = _digest(job.source)
            record = _earlier(path, job, digest, stamp) if resume else None
            if record is None:
                record = _attempt(job, model, settings)
                check()  # before what may be an interrupt is written down as a bad mesh
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, to_json({**record, "sha256": digest, "settings": stamp}))
            records.append(record)
            if on_item is not None:
                on_item(record)
            check()
    return records


def _attempt(job: Job, model: Autoencoder | ModelFor, settings: ReconstructSettings) -> Record:
    try:
        return reconstruct_file(job, model, settings)
    except Exception as error:  # a bad mesh must not end the run, whatever it is
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | OSError):
            reason = f"{type(error).__name__}: {reason}"
        reason = reason.removeprefix(f"{job.source}: ")
        return {**_outline(job), "status": "failed", "reason": reason}


def _outline(job: Job) -> Record:
    picture = None if job.picture is None else str(job.picture)
    return {"name": job.name, "reason": "", "picture": picture}


def _digest(path: Path) -> str | None:
    try:
        return source_digest(path)
    except OSError:
        return None  # `load` will say why


def _earlier(path: Path, job: Job, digest: str | None, stamp: Mapping[str, Any]) -> Record | None:
    """The record of an earlier run, if it still holds."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record.pop("settings") == stamp and record.pop("sha256") == digest is not None
        same = same and record["status"] == "ok" and record["output"]["path"] == str(job.output)
        same = same and record["picture"] == _outline(job)["picture"] and job.output.is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same or (job.picture is not None and not job.picture.is_file()):
        return None
    return {**record, "kept": True}


def _draw(job: Job, mesh: Mesh, result: Reconstruction, size: int) -> None:
    assert job.picture is not None
    assert result.evaluation is not None
    scores, floor = result.evaluation.scores, result.evaluation.floor
    left = f"{Path(job.name).name}\n{mesh.num_faces:,} faces"
    right = (
        f"from {result.num_tokens} tokens, {result.num_bytes / 1024:.1f} KiB\n"
        f"CD-L1 {scores.chamfer_l1:.4f} (floor {floor.chamfer_l1:.4f}), F@.02 {scores.fscore[0.02]:.3f}"
    )
    job.picture.parent.mkdir(parents=True, exist_ok=True)
    compare_picture([(left, mesh), (right, result.mesh)], job.picture, up=job.up, size=size)
