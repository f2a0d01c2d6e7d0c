"""Turns a training run of a generator into a shipped model: half precision weights, and a card.

    python scripts/ship_generator.py runs/vat-tiny-ar vat-tiny-ar vat-tiny --time "15 min on one core"

The card says what the tokens of held-out shapes cost, and what came of a number of seeds at several
temperatures: how many have a surface, and how many of those are in one piece.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
from rich.progress import track
from ship_model import CORPUS, SOURCE, WEIGHTS

from fastshape import models, pipelines
from fastshape.geometry.orientation import _components
from fastshape.models import NextScaleTransformer, Sampling


def measure(model: NextScaleTransformer, tokenizer: models.VAT, seeds: int, temperature: float) -> dict:
    """What comes of the first seeds."""
    made = pipelines.generate(
        model, tokenizer, range(seeds), sampling=Sampling(temperature=temperature), resolution=64
    )
    meshes = [shape.mesh for shape in track(made, total=seeds, description=f"temperature {temperature}")]
    counts = [len(_components(mesh.faces)[0].unique()) for mesh in meshes if mesh is not None]
    return {"seeds": seeds, "with a surface": len(counts), "in one piece": counts.count(1)}


def card(model: NextScaleTransformer, run: Path, name: str, measured: dict[str, dict], time: str) -> str:
    """The model's README.md."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config, said = model.config, model.metadata
    curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = [row for row in curve if "validation_loss" in row]
    fixed = config.num_tokens * math.ceil(math.log2(config.vocab_size)) / 8
    lines = [
        "---",
        "library_name: fastshape",
        f"license: {said.license}",
        "---",
        "",
        f"# {name}",
        "",
        f"A `fastshape.models.{type(model).__name__}` with {parameters:,} parameters, in half precision: "
        f"`fastshape generate -m {name}`. It says the tokens of `{said.tokenizer}`, without a condition. A "
        "small model, for trying things out and for tests; its recipe is "
        f"`fastshape.train.recipes.get({name!r})`.",
        "",
        f"- Trained on the tokens of {CORPUS}.",
        f"- {time}.",
        f"- The {config.num_tokens} tokens of a held-out shape take {curve[-1]['validation_bytes']:.0f} "
        f"bytes by its probabilities, {fixed:.0f} with a fixed number of bits for each.",
        "",
        "## What it makes",
        "",
        "| temperature | seeds | with a surface | in one piece |",
        "|---|---|---|---|",
        *(
            f"| {temperature} | {row['seeds']} | {row['with a surface']} | {row['in one piece']} |"
            for temperature, row in measured.items()
        ),
        "",
        "## Its training",
        "",
        "Nats for a token, and the share of tokens that were the most likely ones, of the held-out shapes.",
        "",
        "| step | loss | accuracy |",
        "|---|---|---|",
        *(
            f"| {row['step']} | {row['validation_loss']:.3f} | {row['validation_accuracy']:.3f} |"
            for row in curve
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="what `fastshape train -o` wrote")
    parser.add_argument("name")
    parser.add_argument("tokenizer", help="the name of the shipped tokenizer")
    parser.add_argument("--time", required=True, help="how long it took, on what")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.8, 0.6])
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    model = models.load(options.run / "model", kind=NextScaleTransformer)
    tokenizer = pipelines.load_tokenizer(model, options.tokenizer)
    model.metadata = dataclasses.replace(
        model.metadata, name=options.name, license="Apache-2.0", source=SOURCE, tokenizer=options.tokenizer
    )
    folder = options.output / options.name
    model.save_pretrained(folder, dtype=torch.float16)
    model = models.load(str(folder.resolve()), kind=NextScaleTransformer)  # as its users have it, rounded
    measured = {str(t): measure(model, tokenizer, options.seeds, t) for t in options.temperatures}
    (folder / "README.md").write_text(card(model, options.run, options.name, measured, options.time))
    (folder / "scores.json").write_text(json.dumps(measured, indent=1) + "\n")
    print((folder / "README.md").read_text())


if __name__ == "__main__":
    main()
