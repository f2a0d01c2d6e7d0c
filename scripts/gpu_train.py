"""Train a tiny model on a GPU for a given time: as many steps as fit, from the shipped weights or from none.

    python scripts/gpu_train.py dora prepared runs/dora-gpu --seconds 240 --initial dora-tiny

The first steps measure the pace of a step (of this process beside others, if several train at once); the
schedule is laid over the steps that the rest of the time holds. `prepared` is of `fastshape prepare` with
`scripts/training_corpus.py`'s specification, for the structure model with `--set voxels=64`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from fastshape import models, train
from fastshape.train import recipes

FAMILIES = ("vecset", "dora", "lagem", "structure")
TRIAL = 60  # steps whose second half gives the pace
SHARE = 0.93  # of the time that is left; the rest is for slower steps and for saving


def configuration(family: str, batch_size: int, bfloat16: bool) -> Any:
    """The recipe with a GPU's batch, more points to look at, and a table of mostly many tokens."""
    recipe = recipes.get(f"{family}-tiny")
    changes: dict[str, Any] = {
        "batch_size": batch_size,
        "bfloat16": bfloat16,
        "checkpoint_every": 10**9,
        "validate_every": 0,
        "ema_decay": 0.998,
    }
    if family == "structure":
        changes["crop"] = None
    else:
        changes |= {
            "model": dataclasses.replace(recipe.model, num_inputs=4096),
            "data_on_device": True,
            "token_probabilities": (0.1, 0.2, 0.3, 0.4),
            "final_learning_rate": 1e-5,
        }
    return dataclasses.replace(recipe, **changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="of all, reading the data included")
    parser.add_argument("--initial", help="a model to begin from: shipped weights or a folder")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds

    config = configuration(options.family, options.batch_size, options.device == "cuda")
    dataset = train.VoxelDataset if options.family == "structure" else train.ShapeDataset
    data = dataset(options.prepared, cache=1_000_000)  # all of it
    initial = None
    if options.initial is not None:
        initial = config.model_class(config.model)  # as many points as the configuration has
        initial.load_state_dict(models.load(options.initial).state_dict())

    def run(steps: int, **more: Any) -> Any:
        part = dataclasses.replace(config, steps=steps)
        return train.fit(part, data, initial=initial, device=options.device, **more)

    marks: list[float] = []
    run(TRIAL, progress=False, on_step=lambda *_: marks.append(time.monotonic()))
    pace = (marks[-1] - marks[TRIAL // 2]) / (TRIAL - 1 - TRIAL // 2)
    steps = max(1, int((end - time.monotonic()) * SHARE / pace))
    print(f"{options.family}: {pace * 1e3:.1f} ms a step, {steps} steps of {config.batch_size}", flush=True)
    run(steps, output_dir=options.output, resume=False)
    print(f"{options.family}: {end - time.monotonic():.0f} s left; {options.output / 'model'}", flush=True)


if __name__ == "__main__":
    main()
