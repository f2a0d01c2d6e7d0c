"""The benchmark of training steps: what it counts, and that its rows are the paper's models."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of an installed package", allow_module_level=True)
if importlib.util.find_spec("benchmarks") is None:
    sys.path.insert(0, str(ROOT))

from benchmarks import bench_models, measure, registry, report, runner  # noqa: E402

from fastshape.models import LaGeM, VecSetVAE  # noqa: E402

CPU = torch.device("cpu")
TINY = bench_models.Pair(
    dim=16,
    heads=2,
    tokens=(12, 6, 3),
    channels=(2, 3, 4),
    vecset_channels=4,
    layers=1,
    batch_size=2,
    num_points=40,
    num_queries=20,
)


def test_saved_bytes_of_two_layers() -> None:
    first, second = torch.nn.Linear(3, 5), torch.nn.Linear(5, 7, bias=False)
    parameters = [*first.parameters(), *second.parameters()]
    x = torch.rand(2, 3)
    # The first layer keeps x for its weight's gradient, relu its result, the second layer's input;
    # the second layer's weight is a parameter, and its result is kept by nobody.
    expected = 4 * (2 * 3 + 2 * 5)
    assert measure.saved_bytes(lambda: second(first(x).relu()), parameters) == expected
    assert measure.saved_bytes(lambda: second(first(x).relu()).sum().backward(), parameters) == expected
    assert measure.saved_bytes(lambda: second(first(x).relu())) == expected + 4 * 7 * 5
    with torch.no_grad():
        assert measure.saved_bytes(lambda: second(first(x).relu())) == 0


def test_saved_bytes_counts_storages() -> None:
    x = torch.rand(100, 10, requires_grad=True)
    assert measure.saved_bytes(lambda: x[:5] * x[5:10]) == x.nbytes, "two small views of one storage"
    assert measure.saved_bytes(lambda: x[:5] * x[5:10], [x]) == 0
    assert measure.saved_bytes(lambda: x.exp().exp(), [x]) == 2 * x.nbytes


@pytest.mark.parametrize(
    ("pair", "vecset", "lagem"),
    [(bench_models.PAPER_LARGE, 424.24, 499.85), (bench_models.PAPER_SMALL, 106.13, 125.15)],
)
def test_the_models_have_the_parameters_of_the_paper(
    pair: bench_models.Pair, vecset: float, lagem: float
) -> None:
    with torch.device("meta"):
        models = VecSetVAE(pair.vecset()), LaGeM(pair.lagem())
    ours = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
    assert ours == pytest.approx([vecset, lagem], rel=1e-3)  # the small LaGeM is 125.09


def test_a_row_reports_time_and_memory_of_both() -> None:
    row = registry.Row(
        "models", "step", "tiny", "float32", ("cpu",), bench_models.lagem_train_step, {"pair": TINY}
    )
    record = runner.run_row(row, CPU, measure.Limits(), seconds=0.02)
    assert record["status"] == "ok", record.get("error")
    vecset = record["peers"]["vecset"]
    assert vecset["agrees"]
    for name in ("saved", "state"):
        assert vecset["count_ratios"][name] == vecset["counts"][name] / record["counts"][name]
    parameters = sum(p.numel() for p in LaGeM(TINY.lagem()).parameters())
    assert record["counts"]["state"] == pytest.approx(16 * parameters, rel=0.02)
    assert all(quoted["ratio"] is None for quoted in record["quoted"])
    console = Console(file=io.StringIO(), width=300)
    report.print_table(console, [record])
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(
        words in printed for words in ("saved ", "vecset, saved: ", "quoted VecSet: 648 ms, 56.1 GB (")
    )


def test_a_wrong_loss_is_found() -> None:
    training = bench_models.Training(TINY.training(TINY.lagem(), CPU), TINY.batch(CPU))
    training.check(training.step())
    wrong = dataclasses.replace(training.config, near_weight=0.2)
    training = bench_models.Training(training.config, training.batch)
    training.config = wrong
    with pytest.raises(AssertionError):
        training.check(training.step())


def test_more_tokens_save_more() -> None:
    """The ratio that the paper reports grows with the tokens, and does not depend on the machine."""
    ratios = []
    for factor in (1, 8):
        tokens = tuple(factor * count for count in TINY.tokens)
        pair = dataclasses.replace(TINY, tokens=tokens, layers=8)
        batch = pair.batch(CPU)
        steps = [
            bench_models.Training(pair.training(model, CPU), batch) for model in (pair.lagem(), pair.vecset())
        ]
        lagem, vecset = (measure.saved_bytes(step.step, step.model.parameters()) for step in steps)
        ratios.append(lagem / vecset)
    assert ratios[1] < ratios[0]
    assert ratios[1] < 0.75
