"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape.losses import occupancy_loss
from fastshape.models import VecSetVAE
from fastshape.models.pretrained import atomic_path
from fastshape.train import checkpoint, recipes
from fastshape.train.config import TrainConfig
from fastshape.train.data import Batch, ShapeDataset, ShapeSamples, keyed_generator, sample_batch

MODEL_DIRECTORY = "model"
METRICS_FILE = "metrics.jsonl"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training: the current step was finished and, with an `output_dir`, saved."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step (counted from 0): linear warm-up, then a cosine to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * progress))


def train_step(
    model: VecSetVAE,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    step: int,
) -> dict[str, Tensor]:
    """One step of BCE(volume) + near_weight * BCE(near) + kl_weight * KL; returns its parts, detached."""
    with torch.autocast(batch.surface.device.type, torch.bfloat16, enabled=config.bfloat16):
        generator = keyed_generator(config.seed, "posterior", step)
        sample = config.sample_posterior
        logits, posterior = model(batch.surface, batch.queries, sample=sample, generator=generator)
    split = (config.volume_queries, config.near_queries)
    parts = {}
    for name, values, targets in zip(
        ("volume", "near"), logits.float().split(split, 1), batch.occupancy.split(split, 1), strict=True
    ):
        parts[name] = occupancy_loss(values, targets) if values.numel() else logits.new_zeros(())
    parts["kl"] = posterior.kl().mean()
    loss = parts["volume"] + config.near_weight * parts["near"] + config.kl_weight * parts["kl"]

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.step()
    return {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}


def fit(
    config: TrainConfig,
    samples: Sequence[ShapeSamples],
    *,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> VecSetVAE:
    """Trains a model on prepared shapes.

    The result is a function of `config` and `samples` on one machine and number of threads,
    whether or not the run was interrupted. The global random state of torch is left as it was.

    Args:
        config: what to train and how.
        samples: the shapes; a `ShapeDataset` reads them from the disk as they are needed.
        output_dir: gets `checkpoint.safetensors` (every `checkpoint_every` steps, and on Ctrl-C),
            `metrics.jsonl`, and in the end `model/` for `from_pretrained`. None keeps everything in memory.
        resume: go on from the checkpoint in `output_dir` if there is one; False starts again.
        progress: show a progress bar on stderr.
        device: None takes CUDA where there is a GPU, else the CPU.
        on_step: called after each step with the number of steps done and the parts of the loss.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ValueError: no shapes, or a checkpoint of another run (`CheckpointError`).
        TrainingInterrupted: Ctrl-C (a KeyboardInterrupt); calling again goes on.
        FloatingPointError: the loss is not finite.
    """
    if len(samples) == 0:
        raise ValueError("`samples` must have at least one shape")
    place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    directory = None if output_dir is None else Path(output_dir)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), _threads(config.num_threads):
        torch.manual_seed(config.seed)
        model = VecSetVAE(config.model).to(place).train()
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        average = copy.deepcopy(model).eval() if config.ema_decay is not None else None
        state: dict[str, Any] = {"model": model, "average": average, "optimizer": optimizer, "config": config}
        done = 0
        if directory is not None:
            if isinstance(samples, ShapeDataset):
                state["data"] = [samples.fingerprint()]  # a million shapes are not read for their hash
            else:
                state["data"] = [shape.fingerprint() for shape in samples]
            path = directory / checkpoint.CHECKPOINT_FILE
            if resume and path.exists():
                done = checkpoint.restore(path, **state)
            _trim_metrics(directory / METRICS_FILE, done)

        with _delayed_interrupt() as interrupted, _progress_bar(config.steps, done, progress) as advance:
            for step in range(done, config.steps):
                batch = Batch(*(tensor.to(place) for tensor in sample_batch(samples, config, step)))
                losses = train_step(model, optimizer, batch, config, step)
                if average is not None and config.ema_decay is not None:
                    _update_average(average, model, config.ema_decay)

                done = step + 1
                logged = done % config.log_every == 0 or done == config.steps
                if logged or on_step is not None:
                    metrics = {name: float(value) for name, value in losses.items()}
                    if not math.isfinite(metrics["loss"]):
                        raise FloatingPointError(f"the loss of step {done} is {metrics['loss']}")
                    advance(done, metrics)
                    if logged and directory is not None:
                        _append_metrics(directory / METRICS_FILE, done, metrics, learning_rate(config, step))
                stop = interrupted() and done < config.steps
                if directory is not None and (
                    done % config.checkpoint_every == 0 or done == config.steps or stop
                ):
                    checkpoint.save(path, step=done, **state)
                if on_step is not None:
                    on_step(done, metrics)
                if stop:
                    where = f"; saved in {directory}" if directory is not None else ""
                    raise TrainingInterrupted(f"stopped after step {done} of {config.steps}{where}")

    result = (model if average is None else average).eval()
    if directory is not None:
        result.save_pretrained(directory / MODEL_DIRECTORY)
    return result


def fit_meshes(
    samples: Sequence[ShapeSamples],
    recipe: TrainConfig | str = "vecset-tiny",
    *,
    steps: int | None = None,
    seed: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> VecSetVAE:
    """`fit` with a recipe, or its name in `recipes.RECIPES`, whose `steps` and `seed` can be overridden."""
    config = recipes.get(recipe) if isinstance(recipe, str) else recipe
    return fit(
        dataclasses.replace(
            config,
            steps=config.steps if steps is None else steps,
            seed=config.seed if seed is None else seed,
        ),
        samples,
        output_dir=output_dir,
        resume=resume,
        progress=progress,
        device=device,
        on_step=on_step,
    )


@torch.no_grad()
def _update_average(average: VecSetVAE, model: VecSetVAE, decay: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1.0 - decay)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(former if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(former)


@contextlib.contextmanager
def _delayed_interrupt() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, so that no step is cut in half; the second acts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress_bar(total: int, done: int, shown: bool) -> Iterator[Callable[[int, dict[str, float]], None]]:
    if not shown:
        yield lambda step, metrics: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=total, completed=done, loss="-")
        yield lambda step, metrics: bar.update(task, completed=step, loss=f"{metrics['loss']:.4f}")


def _append_metrics(path: Path, step: int, metrics: dict[str, float], rate: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "learning_rate": rate, **metrics}) + "\n")


def _trim_metrics(path: Path, done: int) -> None:
    """Drops the lines of steps that a resumed (or restarted) run will do again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
