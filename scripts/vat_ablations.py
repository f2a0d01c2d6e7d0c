"""VAT's ablations in small: what each of its parts brings, by short runs that differ in nothing else.

    python scripts/vat_ablations.py prepared --validation held-out -o runs/vat --steps 300
    python scripts/vat_ablations.py prepared --validation held-out -o runs/vat --tables 3 4

trains every variant that the tables name once (an interrupted run goes on), asks it about shapes held out,
and prints the tables; tables.csv in the output folder has all rows. Zhang et al.: "3D representation in
512-Byte" (VAT), arXiv 2412.02202:

    2  naive tokenizers of K tokens, compression alone, with the quantizer's noise ("curse of hierarchy")
    3  no noise, dropout of scales, stochastic codes, noise ("necessity of VVQ"); not its generators
    4  a cross-attention as decoder, or three planes
    5  pooling, a cross-attention (Q-Former), or latent tokens among the others, as compression
    7  K and V, its figure 7, with the bytes of a file's codes

Accuracy and IoU are over as many uniform as near points, those of the prepared shapes, of the field from all
scales; cross-scale (CS) ones the mean over the scales of the field without the later ones. Small models that
learned for seconds say which part learns faster, and not what it reaches in the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from vat_tables import agreement, csv_of

from fastshape import train
from fastshape.geometry.io import write_atomically
from fastshape.models import VAT, VATConfig

VVQ: dict[str, Any] = {
    "num_latents": 64
}  # fewer than the small recipe's planes have texels: they can be pooled
NAIVE = {"compression": "pooling", "noise": False}
TABLES: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "2": {
        **{f"naive, K = {count}": {**NAIVE, "num_latents": count} for count in (16, 64, 144)},
        "compression, no noise, K = 64": {**VVQ, "noise": False},
        "compression, VVQ, K = 64": VVQ,
    },
    "3": {
        "none": {**VVQ, "noise": False},
        "dropout of scales": {**VVQ, "noise": False, "scale_dropout": 0.5},
        "stochastic codes": {**VVQ, "noise": False, "temperature": 0.5},
        "VVQ": VVQ,
    },
    "4": {"cross-attention": {**VVQ, "decoder": "cross"}, "triplane": VVQ},
    "5": {
        "pooling": {**VVQ, "compression": "pooling"},
        "Q-Former": {**VVQ, "compression": "qformer"},
        "in context": VVQ,
    },
    "7": {
        **{f"K = {count}": {"num_latents": count} for count in (16, 64, 256)},
        **{f"K = 64, V = {count}": {**VVQ, "num_codes": count} for count in (64, 256)},
    },
}
COLUMNS = ("tokens", "bytes", "accuracy", "iou", "cs_accuracy", "cs_iou")
POINTS = 4_000  # of each kind and shape: as much work as some steps of training


def run_config(recipe: str, changes: Mapping[str, Any], steps: int) -> train.TrainConfig:
    """The recipe, shortened, with another model: every stage of it by as much."""
    config = train.recipes.get(recipe)
    if not isinstance(config.model, VATConfig):
        raise SystemExit(f"expected a recipe of VAT, got {recipe!r}")
    share = steps / config.steps
    decay = config.ema_decay
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, scales=(), **changes),  # the published ones for every K
        steps=steps,
        warmup_steps=round(share * config.warmup_steps),
        revive_every=max(1, round(share * config.revive_every)),
        ema_decay=None if decay is None else max(0.0, 1.0 - (1.0 - decay) / share),
        validate_every=0,
    )


def folder_of(changes: Mapping[str, Any]) -> str:
    """The name of a variant's run."""
    return ",".join(f"{name}={value}" for name, value in sorted(changes.items()))


@torch.no_grad()
def measure(model: VAT, shapes: Sequence[train.ShapeSamples]) -> dict[str, float]:
    """Means over the shapes, by column."""
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {}
    scales = range(1, len(model.config.all_scales) + 1)
    for shape in shapes:
        cloud = shape.cloud("surface", model.input_channels)[: model.config.num_inputs]
        tokens = model.tokenize(cloud[None].to(device))
        points, inside = questions(shape)
        scores = [agreement(model, model.decode_tokens(tokens, scale), points, inside) for scale in scales]
        for name in ("accuracy", "iou"):
            found.setdefault(name, []).append(scores[-1][name])
            found.setdefault(f"cs_{name}", []).append(statistics.fmean(score[name] for score in scores))
    return {name: statistics.fmean(values) for name, values in found.items()}


def questions(shape: train.ShapeSamples) -> tuple[Tensor, Tensor]:
    """Points (N, 3) and which are inside: as many uniform ones as near ones, evenly chosen."""
    kinds = ("volume", "near")
    count = min(POINTS, *(len(getattr(shape, kind)) for kind in kinds))
    parts = []
    for kind in kinds:
        every = torch.arange(count) * len(getattr(shape, kind)) // count  # near points go by their sigma
        parts.append((getattr(shape, kind)[every], shape.inside(kind)[every]))
    points, inside = zip(*parts, strict=True)
    return torch.cat(points), torch.cat(inside)


def row_of(
    changes: Mapping[str, Any], options: argparse.Namespace, data: tuple[Any, Any], console: Console
) -> dict[str, Any]:
    """What a variant reaches; it is trained and measured where that has not been done."""
    folder = options.output / folder_of(changes)
    config = run_config(options.recipe, changes, options.steps)
    wanted = json.loads(json.dumps(config.to_dict()))  # with lists, as in the file
    known = folder / "measured.json"
    if known.is_file() and (said := json.loads(known.read_text()))["config"] == wanted:
        return dict(said["row"])
    console.print(f"[bold]{folder.name}[/]: {options.steps} steps")
    samples, held_out = data
    model = train.fit(config, samples, output_dir=folder, progress=True)
    assert isinstance(model, VAT)
    shapes = list(track(held_out, description="reading what was held out", console=console))
    bits = max(1, (model.config.num_codes - 1).bit_length())
    tokens = sum(model.config.all_scales)
    row = {"tokens": tokens, "bytes": -(-tokens * bits // 8), **measure(model, shapes)}
    write_atomically(known, (json.dumps({"config": wanted, "row": row}, indent=1) + "\n").encode())
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what `fastshape prepare` wrote")
    parser.add_argument("--validation", type=Path, required=True, help="the same, of shapes held out")
    parser.add_argument("-o", "--output", type=Path, required=True, help="gets a run for each variant")
    parser.add_argument("--recipe", default="vat-tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    data = (train.ShapeDataset(options.data), train.ShapeDataset(options.validation))
    rows: list[dict[str, Any]] = []
    for table in options.tables:
        printed = Table("", *COLUMNS, box=None, title=f"Table {table}")
        for label, changes in TABLES[table].items():
            row = row_of(changes, options, data, console)
            rows.append({"table": table, "variant": label, "steps": options.steps, **row})
            printed.add_row(
                label, *(f"{row[n]:.4f}" if isinstance(row[n], float) else str(row[n]) for n in COLUMNS)
            )
            write_atomically(options.output / "tables.csv", csv_of(rows))
        console.print(printed)


if __name__ == "__main__":
    main()
