"""A small model trained on the very mesh that it then reconstructs: `--fit`."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path

from rich.console import Console

from fastshape import train
from fastshape.cli.app import again
from fastshape.geometry import DistanceField, Mesh, MeshError, normalize
from fastshape.models import FieldAutoencoder
from fastshape.pipelines import Job

RECIPE = "vecset-single"


class Overfit:
    """Gives each mesh a model of its own: how well the tokens can hold this shape.

    Args:
        options: of the command line: steps, seed, resume.
        run_dir: where the training runs are kept; removed by `clean` unless --resume names it.
        many: whether there are several meshes, with a folder each.
        console: for what is said.
    """

    def __init__(self, options: argparse.Namespace, run_dir: Path, many: bool, console: Console) -> None:
        self._options, self._run_dir, self._many, self._console = options, run_dir, many, console
        self._used: list[Path] = []

    def __call__(self, job: Job, mesh: Mesh) -> FieldAutoencoder:
        options = self._options
        samples = self._prepare(job, mesh)
        self._console.print(
            f"training {RECIPE} on {job.name}, for {job.name} only", soft_wrap=True, markup=False
        )
        folder = self._run_dir / job.name if self._many else self._run_dir
        self._used.append(folder)
        try:
            return train.fit_meshes(
                [samples],
                RECIPE,
                steps=options.steps,
                seed=options.seed,
                output_dir=folder,
                resume=options.resume is not None,
            )
        except train.TrainingInterrupted as stopped:
            done = str(stopped).split(";")[0]
            raise KeyboardInterrupt(
                f"{done}; to go on: {again(options, '--resume', self._run_dir)}"
            ) from None

    def clean(self) -> None:
        """Delete what the training runs wrote, and folders if nothing else is in them."""
        if isinstance(self._options.resume, str):
            return
        for folder in self._used:
            shutil.rmtree(folder / "model", ignore_errors=True)
            for name in ("checkpoint.safetensors", "metrics.jsonl"):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self._run_dir.rmdir()

    def _prepare(self, job: Job, mesh: Mesh) -> train.ShapeSamples:
        with self._console.status(f"{job.name}: signed distances of the training points"):
            samples = train.prepare(mesh, seed=self._options.seed)
            if not any(bool(samples.inside(kind).any()) for kind in ("volume", "near")):
                raise MeshError(
                    job.source, "the mesh encloses nothing, so there is no inside to learn; close it"
                )
            field = DistanceField(normalize(mesh)[0])
            doubt = float(field.doubt(samples.volume[:8192]).double().mean())
        if doubt > 0.01:
            self._console.print(
                f"{job.name}: inside or outside is in doubt for {doubt:.0%} of its box; expect holes or webs",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        return samples
