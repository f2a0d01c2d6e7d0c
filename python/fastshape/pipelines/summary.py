"""What many comparisons say together: means, intervals, levels of detail, and what failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Record = Mapping[str, Any]

_OF_SOLIDS = ("volume_", "near_", "pooled_")
_LARGER_IS_BETTER = ("fscore@", "precision@", "recall@", "normal_", "signed_normal_", *_OF_SOLIDS)


def larger_is_better(key: str) -> bool:
    """Whether a higher value of this score is the better one."""
    return key.startswith(_LARGER_IS_BETTER)


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """An interval for the mean of the shapes that these are a sample of; None for fewer than two.

    The percentiles of the means of `resamples` samples drawn from `values` with replacement (Efron 1979).
    With few shapes it is too narrow, by a tenth or so for ten.
    """
    if len(values) < 2:
        return None
    data = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(resamples, dtype=torch.float64)
    step = max(1, 2_000_000 // len(data))
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        picked = torch.randint(len(data), (rows, len(data)), generator=generator)
        means[begin : begin + rows] = data[picked].mean(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True)
class Statistic:
    """One score over the shapes of a group.

    Attributes:
        count: shapes that have it. Scores of solids count only where both meshes have a clear inside.
        mean, std: over them; the deviation is that of a sample (n - 1), NaN for one shape.
        interval: 95 % bootstrap interval of the mean; None for one shape.
        floor: mean of the sampling floors; None for scores without one.
    """

    count: int
    mean: float
    std: float
    interval: tuple[float, float] | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Summary:
    """One group of surfaces: watertight, raw and visible ones are not comparable and never put together.

    Attributes:
        group: whose shapes.
        count: shapes that were compared.
        statistics: by score.
        levels: level of detail -> its number of shapes and statistics, without intervals.
        unclear: names of the shapes without a clear inside, whose scores of solids do not count.
        latent_bytes, latent_length: means, where known of every shape.
    """

    group: str
    count: int
    statistics: dict[str, Statistic]
    levels: dict[int, tuple[int, dict[str, Statistic]]] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()
    latent_bytes: float | None = None
    latent_length: float | None = None


def summarize(records: Iterable[Record], *, seed: int = 0) -> list[Summary]:
    """A summary for every group among the records that were compared, largest first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["status"] == "ok":
            groups.setdefault(record["group"], []).append(record)
    summaries = []
    for group, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        levels: dict[int, list[Record]] = {}
        for record in members:
            levels.setdefault(record["level"], []).append(record)
        latents = {}
        for key in ("latent_bytes", "latent_length"):
            known = [record[key] for record in members if record[key] is not None]
            latents[key] = sum(known) / len(known) if len(known) == len(members) else None
        summaries.append(
            Summary(
                group=group,
                count=len(members),
                statistics=_statistics(members, seed),
                levels={
                    level: (len(part), _statistics(part, None)) for level, part in sorted(levels.items())
                },
                unclear=tuple(r["name"] for r in members if r["inside_is_clear"] is False),
                **latents,
            )
        )
    return summaries


def _statistics(records: Sequence[Record], seed: int | None) -> dict[str, Statistic]:
    found = {}
    for key in records[0]["values"]:
        used = [
            record
            for record in records
            if record["values"].get(key) is not None
            and not (key.startswith(_OF_SOLIDS) and record["inside_is_clear"] is False)
        ]
        if not used:
            continue
        values = [record["values"][key] for record in used]
        mean = math.fsum(values) / len(values)
        deviation = math.nan
        if len(values) > 1:
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        floors = [record["floor"][key] for record in used if record["floor"].get(key) is not None]
        found[key] = Statistic(
            count=len(values),
            mean=mean,
            std=deviation,
            interval=None if seed is None else bootstrap_interval(values, seed=seed),
            floor=math.fsum(floors) / len(floors) if floors else None,
        )
    return found


def worst(records: Iterable[Record], key: str, count: int = 5) -> list[Record]:
    """The shapes with the worst value of a score, worst first; equal ones by name."""
    scored = [r for r in records if r["status"] == "ok" and r["values"].get(key) is not None]
    sign = 1 if larger_is_better(key) else -1
    return sorted(scored, key=lambda r: (sign * r["values"][key], r["name"]))[:count]
