"""What the scripts that ship a model share: its folder of weights, and the parts of its card.

A shipped model is a folder: weights in half precision, README.md, which is the card, and scores.json, the
numbers behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

import fastshape
from fastshape import models
from fastshape.models import PretrainedModel

WEIGHTS = Path(fastshape.__file__).parent / "weights"
CORPUS = (
    "pybullet's `random_urdfs` (zlib license), the meshes of dm_control (Apache-2.0) and 900 procedural "
    "solids of `geometry.shapes.corpus(900, seed=0)`: 1953 different meshes, 51 more held out; see "
    "`scripts/training_corpus.py`"
)

Model = TypeVar("Model", bound=PretrainedModel)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of all: RUN, NAME, --time and --output."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("run", type=Path, help="what `fastshape train -o` wrote")
    arguments.add_argument("name")
    arguments.add_argument("--time", required=True, help="how long it took, on what")
    arguments.add_argument("--output", type=Path, default=WEIGHTS)
    return arguments


def mesh_files(folder: Path) -> list[Path]:
    """The meshes of a folder, at any depth."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".stl", ".obj", ".ply"))


def ship(options: argparse.Namespace, kind: type[Model], **metadata: str) -> tuple[Model, Path]:
    """Writes the weights of a run; gives the model as its users have it, rounded, and its folder."""
    model = models.load(options.run / "model", kind=kind)
    model.metadata = dataclasses.replace(
        model.metadata,
        name=options.name,
        license="Apache-2.0",
        source="trained by the authors of fastshape",
        **metadata,
    )
    folder = options.output / options.name
    model.save_pretrained(folder, dtype=torch.float16)
    return models.load(str(folder.resolve()), kind=kind), folder


def head(
    model: PretrainedModel, name: str, time: str, *, use: str = "", does: str = "", trained_on: str = CORPUS
) -> list[str]:
    """The beginning of a card: what the model is, how it is used, what it was trained on and how long.

    Args:
        use: the call or command that takes it; `models.load` where there is none.
        does: a sentence or two on what it does.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    words = [
        f"A `fastshape.models.{type(model).__name__}` with {parameters:,} parameters, in half precision: "
        f"`{use or f'fastshape.models.load({name!r})'}`.",
        does,
        "A small model, for trying things out and for tests; its recipe is "
        f"`fastshape.train.recipes.get({name!r})`.",
    ]
    return [
        "---",
        "library_name: fastshape",
        f"license: {model.metadata.license}",
        "---",
        "",
        f"# {name}",
        "",
        " ".join(word for word in words if word),
        "",
        f"- Trained on {trained_on}.",
        f"- {time}.",
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [columns, *rows]
    written = ["|" + "|".join(f" {cell} " if cell != "" else " " for cell in line) + "|" for line in lines]
    return [written[0], "|---" * len(columns) + "|", *written[1:]]


def curve(run: Path, column: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics in which that validation stands."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if column in row]


def write(folder: Path, card: Sequence[str], measured: dict[str, Any]) -> None:
    """Writes the card and the numbers behind it, and prints the card."""
    text = "\n".join(card) + "\n"
    (folder / "README.md").write_text(text)
    (folder / "scores.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(text)
