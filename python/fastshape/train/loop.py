"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastshape.losses import distance_loss, occupancy_loss, soft_occupancy, tsdf_loss
from fastshape.models import VAT, CheckpointMetadata, FieldAutoencoder, PretrainedModel, VATConfig
from fastshape.nn.posterior import Generators
from fastshape.runtime.files import atomic_path
from fastshape.runtime.interrupt import delayed_interrupt
from fastshape.train import checkpoint, recipes
from fastshape.train.board import open_board
from fastshape.train.codebook import CodebookCare
from fastshape.train.config import RunConfig, StructureTrainConfig, TokenTrainConfig, TrainConfig
from fastshape.train.data import (
    Batch,
    PreparedDataset,
    ShapeSamples,
    keyed_generator,
    num_tokens,
    sample_batch,
)
from fastshape.train.distributed import Processes, processes
from fastshape.train.initialize import initialize_as_kernel
from fastshape.train.optimizer import make_optimizer
from fastshape.train.resident import ResidentSamples
from fastshape.train.structure import GridBatch, sample_grids, structure_losses, validate_structure
from fastshape.train.tokens import TokenBatch, TokenDataset, sample_tokens, token_losses, validate_tokens
from fastshape.train.validate import validate

AnyBatch = Batch | GridBatch | TokenBatch

MODEL_DIRECTORY = "model"
METRICS_FILE = "metrics.jsonl"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training: the current step was finished and, with an `output_dir`, saved."""


def learning_rate(config: RunConfig, step: int) -> float:
    """The rate of a step (counted from 0): linear warm-up, then a cosine to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * progress))


def losses(values: Tensor, posterior: Any, batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """The parts of a batch's loss: "loss", the weighted sum, then each kind of query, "kl" and "vq".

    Args:
        values: (B, Q) of the model.
        posterior: of the model.
        batch: what the model was asked.
        config: the weights.
    """
    parts: dict[str, Tensor] = {}
    split = list(batch.counts.values())
    for (kind, count), answers, labels in zip(
        batch.counts.items(), values.float().split(split, 1), batch.labels.split(split, 1), strict=True
    ):
        if not count:
            continue
        if config.output == "occupancy":
            parts[kind] = occupancy_loss(answers, labels)
        elif config.output == "soft_occupancy":
            ramp = soft_occupancy(labels, config.model.truncation)  # type: ignore[attr-defined]
            parts[kind] = occupancy_loss(answers, ramp)
        elif config.output == "tsdf":
            parts[kind] = tsdf_loss(answers, labels, config.model.truncation)  # type: ignore[attr-defined]
        else:
            parts[kind] = distance_loss(answers, labels)
    total = sum((getattr(config, f"{kind}_weight") * part for kind, part in parts.items()), torch.zeros(()))
    parts["kl"] = posterior.kl().mean()
    total = total + config.kl_weight * parts["kl"]
    coded = getattr(posterior, "coded", None)
    if coded is not None:
        parts["vq"] = coded.loss
        total = total + config.vq_weight * coded.loss
    return {"loss": total, **parts}


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: AnyBatch,
    config: RunConfig,
    step: int,
    *,
    rank: int = 0,
) -> dict[str, Tensor]:
    """One optimizer step over this process's share of a batch; returns the parts of its loss, detached.

    Args:
        model: the model, or its data parallel wrapper.
        optimizer: of its parameters.
        batch: of `sample_batch`, `sample_grids` or `sample_tokens`.
        config: of the run.
        step: counted from 0; it decides the learning rate and, with the rank, every draw.
        rank: of this process.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(_seed(config, "step", step, rank))  # of the dropped paths
    share = batch.size
    noise = _posterior_noise(config, step, rank, share, batch.device)
    size = config.micro_batch_size or share
    summed: dict[str, Tensor] = {}
    pieces: Sequence[AnyBatch] = batch.split(size)
    for index, piece in enumerate(pieces):
        weight = piece.size / share
        with (
            torch.autocast(batch.device.type, torch.bfloat16, enabled=config.bfloat16),
            _synchronized(model, index == len(pieces) - 1),
        ):
            one = noise if isinstance(noise, torch.Generator) else noise[index * size : (index + 1) * size]
            if isinstance(piece, GridBatch):
                assert isinstance(config, StructureTrainConfig)
                parts = structure_losses(model, piece, config, one)
            elif isinstance(piece, TokenBatch):
                parts = token_losses(model, piece, one)
            else:
                assert isinstance(config, TrainConfig)
                parts = _field_losses(model, piece, config, step, one)
            (weight * parts["loss"]).backward()
        for name, part in parts.items():
            summed[name] = summed.get(name, 0.0) + weight * part.detach()
    if config.gradient_clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.step()
    return summed


def _posterior_noise(config: RunConfig, step: int, rank: int, share: int, device: torch.device) -> Generators:
    """What the noise of a rank's items comes from: a generator each, which any split of the batch keeps, or
    one on the device, where the data is."""
    if getattr(config, "data_on_device", False):
        return torch.Generator(device).manual_seed(_seed(config, "posterior", step, rank))
    return [keyed_generator(config.seed, "posterior", step, rank * share + item) for item in range(share)]


def _field_losses(
    model: nn.Module, piece: Batch, config: TrainConfig, step: int, noise: Generators
) -> dict[str, Tensor]:
    options: dict[str, Any] = {"sample": config.sample_posterior}
    tokens = num_tokens(config, step)
    if tokens is not None:
        counts = getattr(config.model, "token_counts", None)  # of a hierarchy
        options["num_latents"] = tokens if counts is None else counts(tokens)
    values, posterior = model(*piece.inputs, piece.queries, generator=noise, **options)
    return losses(values, posterior, piece, config)


def fit(
    config: RunConfig,
    samples: Sequence[Any],
    *,
    validation: Sequence[Any] = (),
    initial: PretrainedModel | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    device: str | torch.device | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Any:
    """Trains a model on prepared shapes.

    The result is a function of `config`, `samples` and `initial` on one machine and number of threads,
    whether or not the run was interrupted. The global random state of torch is left as it was.

    Under torchrun the processes share each batch: the result is that of one process, up to the rounding of
    sums (and up to `drop_path`, which every process draws for itself). Rank 0 writes the files.

    Args:
        config: what to train and how.
        samples: the shapes, `ShapeSamples`, or `ShapeVoxels` for a `StructureTrainConfig`; a `ShapeDataset`
            or `VoxelDataset` reads them from the disk as they are needed. A `TokenDataset` for a
            `TokenTrainConfig`.
        validation: shapes that are not trained on; every `validate_every` steps and at the end `validate`
            compares the (averaged) model's field with their labels, `validate_structure` its voxels,
            `validate_tokens` its probabilities.
        initial: a model whose parameters the run begins with; None begins with random ones. A
            `PreparationWarning` says where its training data was prepared in another way than `samples`.
        output_dir: gets `checkpoint.safetensors` (every `checkpoint_every` steps, and on Ctrl-C),
            `metrics.jsonl`, and in the end `model/` for `from_pretrained`. None keeps everything in memory.
        resume: go on from the checkpoint in `output_dir` if there is one; False starts again.
        progress: show a progress bar on stderr.
        tensorboard: write scalars, and pictures of the validation shapes, into `output_dir/tensorboard`
            (extra `train`).
        device: None takes CUDA where there is a GPU, else the CPU.
        on_step: called after each step with the number of steps done and the parts of the loss.

    Returns:
        The trained model, of the configuration's class, in evaluation mode.

    Raises:
        ValueError: no shapes, a batch that the processes cannot share, `tensorboard` without `output_dir`, or
            a checkpoint of another run (`CheckpointError`).
        TrainingInterrupted: Ctrl-C (a KeyboardInterrupt); calling again goes on.
        FloatingPointError: the loss is not finite.
    """
    if len(samples) == 0:
        raise ValueError("`samples` must have at least one shape")
    if tensorboard and output_dir is None:
        raise ValueError("`tensorboard` needs an `output_dir`")
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes(device))
        stack.enter_context(
            torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else [])
        )
        stack.enter_context(_threads(config.num_threads))
        run = _Run(config, samples, validation, initial, output_dir, group)
        run.restore(resume)
        board = stack.enter_context(open_board(run.directory, tensorboard and group.first, run.done))
        interrupted = stack.enter_context(delayed_interrupt())
        advance = stack.enter_context(_progress_bar(config.steps, run.done, progress and group.first))
        for step, batch in run.batches(stack):
            parts = run.step(batch, step)
            logged = run.done % config.log_every == 0 or run.done == config.steps
            metrics: dict[str, float] = {}
            if logged or on_step is not None:
                metrics = {name: float(value) for name, value in parts.items()}
                if not math.isfinite(metrics["loss"]):
                    raise FloatingPointError(f"the loss of step {run.done} is {metrics['loss']}")
                advance(run.done, metrics)
            if validation and _due(config.validate_every, run.done, config.steps):
                scores = run.validate(validation)
                metrics = {**{name: float(value) for name, value in parts.items()}, **scores}
                board.pictures(run.done, run.result, validation)
                logged = True
            if logged and group.first:
                run.log(metrics)
                board.scalars(run.done, {**metrics, "learning_rate": learning_rate(config, step)})
            stop = group.any(interrupted()) and run.done < config.steps
            if stop or _due(config.checkpoint_every, run.done, config.steps):
                run.save()
            if on_step is not None:
                on_step(run.done, metrics)
            if stop:
                where = "" if run.directory is None else f"; saved in {run.directory}"
                raise TrainingInterrupted(f"stopped after step {run.done} of {config.steps}{where}")
        return run.finish()


class _Run:
    """The state of a run, and what is done with it."""

    def __init__(
        self,
        config: RunConfig,
        samples: Sequence[Any],
        validation: Sequence[Any],
        initial: PretrainedModel | None,
        output_dir: str | os.PathLike[str] | None,
        group: Processes,
    ) -> None:
        self.config, self.samples, self.group = config, samples, group
        self.directory = None if output_dir is None else Path(output_dir)
        self.done = 0
        torch.manual_seed(config.seed)
        self.model: Any = config.model_class(config.model).to(group.device).train()  # type: ignore[arg-type]
        if isinstance(config, TrainConfig) and config.initialization == "kernel":
            assert isinstance(self.model, FieldAutoencoder)
            initialize_as_kernel(self.model, keyed_generator(config.seed, "initialization"))
        if initial is not None:
            _require_same_model(initial, config)
            self.model.load_state_dict({**self.model.state_dict(), **initial.state_dict()})
            if isinstance(samples, PreparedDataset):
                initial.check_preparation(samples.prepared.spec.to_dict())
        self.model.metadata = _metadata(samples, initial)
        self.average = copy.deepcopy(self.model).eval() if config.ema_decay is not None else None
        self.optimizer = make_optimizer(self.model, config)
        self.codebook: CodebookCare | None = None
        if isinstance(config, TrainConfig) and isinstance(self.model, VAT) and self.model.config.quantize:
            begun = initial is not None and initial.config.quantize
            self.codebook = CodebookCare(self.model, self.average, self.optimizer, config, group, begun=begun)
        if config.compile:
            self.model.compile()
        staged = isinstance(config, TrainConfig) and config.continuous_share > 0
        self.trained = group.wrap(self.model, unused=self.codebook is not None and staged)
        self.initial = initial

    @property
    def result(self) -> Any:
        """The model that the run is for: the averaged one, if there is one."""
        return self.model if self.average is None else self.average

    @property
    def path(self) -> Path:
        assert self.directory is not None
        return self.directory / checkpoint.CHECKPOINT_FILE

    @cached_property
    def data(self) -> list[str]:
        """What the run was made of, by hashes that are taken once."""
        if isinstance(self.samples, PreparedDataset | TokenDataset):
            hashes = [self.samples.fingerprint()]  # a million shapes are not read for their hash
        else:
            hashes = [shape.fingerprint() for shape in self.samples]
        return hashes if self.initial is None else [*hashes, "initial " + self.initial.fingerprint()]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "config": self.config,
            "data": self.data,
        }

    def restore(self, resume: bool) -> None:
        if self.directory is None:
            return
        if resume and self.path.exists():
            self.done = checkpoint.restore(self.path, **self.state())
        self.group.barrier()
        if self.group.first:
            _trim_metrics(self.directory / METRICS_FILE, self.done)

    def batches(self, stack: contextlib.ExitStack) -> Iterator[tuple[int, AnyBatch]]:
        """The batches to come, each drawn while the step before it works."""
        share: dict[str, Any] = {"rank": self.group.rank, "world_size": self.group.world_size}
        if isinstance(self.config, TrainConfig) and self.config.data_on_device:
            resident = ResidentSamples(self.samples, self.config, self.group.device)
            for step in range(self.done, self.config.steps):
                yield step, resident.sample_batch(step, **share)
            return
        pool = stack.enter_context(ThreadPoolExecutor(1, "fastshape-batches"))

        def draw(step: int) -> AnyBatch:
            if isinstance(self.config, StructureTrainConfig):
                return sample_grids(self.samples, self.config, step, **share)
            if isinstance(self.config, TokenTrainConfig):
                assert isinstance(self.samples, TokenDataset)
                return sample_tokens(self.samples, self.config, step, **share)
            assert isinstance(self.config, TrainConfig)
            return sample_batch(self.samples, self.config, step, **share)

        begin, end = self.done, self.config.steps
        coming = pool.submit(draw, begin) if begin < end else None
        for step in range(begin, end):
            assert coming is not None
            batch = coming.result()
            coming = pool.submit(draw, step + 1) if step + 1 < end else None
            yield step, batch.to(self.group.device)

    def validate(self, shapes: Sequence[Any]) -> dict[str, float]:
        if isinstance(self.config, StructureTrainConfig):
            return validate_structure(self.result, shapes, device=self.group.device)
        if isinstance(shapes, TokenDataset):
            return validate_tokens(self.result, shapes, device=self.group.device)
        assert isinstance(self.config, TrainConfig)
        scores = validate(self.result, shapes, self.config, device=self.group.device)
        return scores if self.codebook is None else {**scores, **self.codebook.scores()}

    def step(self, batch: AnyBatch, step: int) -> dict[str, Tensor]:
        if self.codebook is not None:
            self.codebook.before(step, self.samples)
        parts = train_step(self.trained, self.optimizer, batch, self.config, step, rank=self.group.rank)
        if self.average is not None:
            assert self.config.ema_decay is not None
            update_average(self.average, self.model, self.config.ema_decay)
        if self.codebook is not None:
            self.codebook.after(step)
        self.done = step + 1
        return parts

    def log(self, metrics: dict[str, float]) -> None:
        if self.directory is not None:
            rate = learning_rate(self.config, self.done - 1)
            _append_metrics(self.directory / METRICS_FILE, self.done, metrics, rate)

    def save(self) -> None:
        if self.directory is not None and self.group.first:
            checkpoint.save(self.path, step=self.done, **self.state())
        self.group.barrier()

    def finish(self) -> Any:
        result = self.result.eval()
        if self.codebook is not None:
            self.codebook.finish()
        if self.directory is not None and self.group.first:
            result.save_pretrained(self.directory / MODEL_DIRECTORY)
        self.group.barrier()
        return result


def fit_meshes(
    samples: Sequence[ShapeSamples],
    recipe: TrainConfig | str = "vecset-single",
    *,
    steps: int | None = None,
    seed: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> FieldAutoencoder:
    """`fit` with a recipe, or its name in `recipes.RECIPES`, whose `steps` and `seed` can be overridden."""
    config = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(config, TrainConfig):
        raise TypeError(f"`recipe` must be one of a field, got {recipe!r}: call `fit` with its configuration")
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
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * model, of the parameters."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)


def _due(every: int, done: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _seed(config: RunConfig, *key: int | str) -> int:
    return keyed_generator(config.seed, *key).initial_seed()


def _synchronized(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Only the last piece of a batch has its gradients averaged over the processes."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def _metadata(samples: Sequence[Any], initial: PretrainedModel | None) -> CheckpointMetadata:
    """What the trained model says of its data."""
    if isinstance(samples, TokenDataset):
        return samples.metadata
    if isinstance(samples, PreparedDataset):
        return CheckpointMetadata(preparation=samples.prepared.spec.to_dict())
    return CheckpointMetadata() if initial is None else initial.metadata


def _require_same_model(initial: PretrainedModel, config: RunConfig) -> None:
    wanted: Any = config.model
    if isinstance(initial, VAT) and isinstance(wanted, VATConfig) and not initial.config.quantize:
        wanted = dataclasses.replace(wanted, quantize=False)  # what comes before quantization
    if type(initial) is not config.model_class or initial.config != wanted:
        raise ValueError(
            f"`initial` must be the model of the configuration, {config.model}, got {initial.config}"
        )


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(former if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(former)


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
