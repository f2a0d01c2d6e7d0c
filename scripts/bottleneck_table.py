"""LaGeM's normalized bottleneck against the KL bottleneck: two runs that differ in nothing else, as a table.

    python scripts/bottleneck_table.py prepared --validation held-out -o runs/bottlenecks --steps 1000

trains the recipe once with each (an interrupted run goes on), and prints the mean loss of the volume's
queries up to a step, and the IoU on shapes held out (LaGeM, arXiv 2410.01295, table 7).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from fastshape import train
from fastshape.models import LaGeMConfig

BOTTLENECKS = ("kl", "normalized")
COLUMNS = 5


def run_config(recipe: str, bottleneck: str, steps: int) -> train.TrainConfig:
    """The recipe, shortened, and validated as often as the table has columns."""
    config = train.recipes.get(recipe)
    if not isinstance(config.model, LaGeMConfig):
        raise SystemExit(f"expected a recipe of LaGeM, got {recipe!r}")
    model = dataclasses.replace(config.model, bottleneck=bottleneck)
    return dataclasses.replace(config, model=model, steps=steps, validate_every=max(1, steps // COLUMNS))


def summary(metrics: Sequence[dict[str, float]], ends: Sequence[int]) -> list[tuple[float, float]]:
    """For each part of a run that ends at a step: the mean volume loss, and the validation IoU at its end."""
    found, begin = [], 0
    for end in ends:
        losses = [row["volume"] for row in metrics if begin < row["step"] <= end]
        iou = next(row["validation_volume_iou"] for row in metrics if row["step"] == end)
        found.append((sum(losses) / len(losses), iou))
        begin = end
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what `fastshape prepare` wrote")
    parser.add_argument("--validation", type=Path, required=True, help="the same, of shapes held out")
    parser.add_argument("-o", "--output", type=Path, required=True, help="gets a run for each bottleneck")
    parser.add_argument("--recipe", default="lagem-tiny")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    samples, held_out = train.ShapeDataset(options.data), train.ShapeDataset(options.validation)
    every = max(1, options.steps // COLUMNS)
    ends = list(range(every, COLUMNS * every + 1, every))
    print("| bottleneck | " + " | ".join(f"to step {end}" for end in ends) + " |")
    print("|---" * (COLUMNS + 1) + "|")
    for bottleneck in BOTTLENECKS:
        folder = options.output / bottleneck
        config = run_config(options.recipe, bottleneck, COLUMNS * every)
        train.fit(config, samples, validation=held_out, output_dir=folder, progress=True)
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        cells = [f"{loss:.4f} (IoU {iou:.3f})" for loss, iou in summary(metrics, ends)]
        print(f"| {bottleneck} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
