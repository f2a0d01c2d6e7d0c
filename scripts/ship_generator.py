"""Turns a training run of a generator into a shipped model: half precision weights, and a card.

    python scripts/ship_generator.py runs/vat-tiny-ar vat-tiny-ar vat-tiny --time "15 min on one core"

The card says what the tokens of held-out shapes cost, and what came of a number of seeds at several
temperatures: how many have a surface, and how many of those are in one piece.
"""

from __future__ import annotations

import math
from pathlib import Path

import model_card
from rich.progress import track

from fastshape import models, pipelines
from fastshape.geometry.orientation import face_components
from fastshape.models import NextScaleTransformer, Sampling


def measure(model: NextScaleTransformer, tokenizer: models.VAT, seeds: int, temperature: float) -> dict:
    """What comes of the first seeds."""
    made = pipelines.generate(
        model, tokenizer, range(seeds), sampling=Sampling(temperature=temperature), resolution=64
    )
    meshes = [shape.mesh for shape in track(made, total=seeds, description=f"temperature {temperature}")]
    counts = [len(face_components(mesh.faces)[0].unique()) for mesh in meshes if mesh is not None]
    return {"seeds": seeds, "with a surface": len(counts), "in one piece": counts.count(1)}


def card(
    model: NextScaleTransformer, run: Path, name: str, measured: dict[str, dict], time: str
) -> list[str]:
    """The lines of the model's README.md."""
    config = model.config
    curve = model_card.curve(run, "validation_loss")
    fixed = config.num_tokens * math.ceil(math.log2(config.vocab_size)) / 8
    columns = ("seeds", "with a surface", "in one piece")
    return [
        *model_card.head(
            model,
            name,
            time,
            use=f"fastshape generate -m {name}",
            does=f"It says the tokens of `{model.metadata.tokenizer}`, without a condition.",
            trained_on=f"the tokens of {model_card.CORPUS}",
        ),
        f"- The {config.num_tokens} tokens of a held-out shape take {curve[-1]['validation_bytes']:.0f} "
        f"bytes by its probabilities, {fixed:.0f} with a fixed number of bits for each.",
        "",
        "## What it makes",
        "",
        *model_card.table(
            ("temperature", *columns),
            ((temperature, *(row[column] for column in columns)) for temperature, row in measured.items()),
        ),
        "",
        "## Its training",
        "",
        "Nats for a token, and the share of tokens that were the most likely ones, of the held-out shapes.",
        "",
        *model_card.table(
            ("step", "loss", "accuracy"),
            (
                (row["step"], f"{row['validation_loss']:.3f}", f"{row['validation_accuracy']:.3f}")
                for row in curve
            ),
        ),
    ]


def main() -> None:
    parser = model_card.parser(__doc__)
    parser.add_argument("tokenizer", help="the name of the shipped tokenizer")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.8, 0.6])
    options = parser.parse_args()
    trained = models.load(options.run / "model", kind=NextScaleTransformer)
    tokenizer = pipelines.load_tokenizer(trained, options.tokenizer)  # refused before anything is written
    model, folder = model_card.ship(options, NextScaleTransformer, tokenizer=options.tokenizer)
    measured = {str(t): measure(model, tokenizer, options.seeds, t) for t in options.temperatures}
    model_card.write(folder, card(model, options.run, options.name, measured, options.time), measured)


if __name__ == "__main__":
    main()
