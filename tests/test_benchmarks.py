"""The benchmark harness, on rows that need no kernel."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of an installed package", allow_module_level=True)
if importlib.util.find_spec("benchmarks") is None:
    sys.path.insert(0, str(ROOT))

from benchmarks import machine, measure, peers, registry, report, runner  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.registry import Case, Peer, Quoted, Row, Target, row  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def limits() -> measure.Limits:
    """Probed once for all tests here."""
    return measure.Limits()


@pytest.fixture
def rows() -> list[Row]:
    """Two rows: a sum of squares with peers of every kind, and a wrong one."""
    declared: list[Row] = []

    @row(family="fake", op="square_sum", shape="1k", devices=("cpu",), rows=declared, count=1000)
    @row(family="fake", op="square_sum", shape="10k", devices=("cpu",), rows=declared, count=10_000)
    def square_sum(device: torch.device, count: int) -> Case:
        values = torch.rand(count, device=device)
        return Case(
            run=lambda: (values * values).sum(),
            reference=lambda: (values**2).sum(),
            check=lambda result, expected: torch.testing.assert_close(result, expected),
            peers={
                "dot": lambda: torch.dot(values, values),
                "half": Peer(lambda: values.sum(), note="not the same thing"),
                "tuple": Peer(lambda: (values.square().sum(), None), result=lambda pair: pair[0]),
                "broken": lambda: values.reshape(7, -1, 11, 13, 17, 19),
                "missing": None,
            },
            bytes=4.0 * count,
            flops=2.0 * count,
            quoted=[Quoted("paper", 1.0, "another machine", "table 1")],
            memory=True,
            target=Target("dot", 1e9),
        )

    @row(family="fake", op="wrong", shape="1", dtype="int64", devices=("cpu",), rows=declared)
    def wrong(device: torch.device) -> Case:
        return Case(run=lambda: torch.tensor(1), reference=lambda: torch.tensor(2))

    return declared


def test_record_of_a_row(rows: list[Row], limits: measure.Limits) -> None:
    record = runner.run_row(rows[0], CPU, limits, seconds=0.02)
    assert record["status"] == "ok"
    own = record["seconds"]
    assert own["runs"] >= 5
    assert own["minimum"] <= own["lower_quartile"] <= own["median"] <= own["upper_quartile"]
    assert record["bytes"] == 4.0 * rows[0].parameters["count"]
    assert record["bound"] in ("memory", "arithmetic")
    assert record["share_of_limit"] == pytest.approx(record["floor_seconds"] / own["median"])
    assert record["memory_peak_bytes"] is None or record["memory_peak_bytes"] >= 0
    found = record["peers"]
    assert found["dot"]["ratio"] == pytest.approx(found["dot"]["seconds"]["median"] / own["median"])
    assert [found[name]["status"] for name in ("dot", "half", "tuple", "broken", "missing")] == [
        "ok",
        "ok",
        "ok",
        "failed",
        "not installed",
    ]
    assert [found[name]["agrees"] for name in ("dot", "half", "tuple")] == [True, False, True]
    assert record["quoted"][0]["ratio"] == pytest.approx(1.0 / own["median"])
    assert record["target"]["met"]


def test_a_wrong_result_is_loud_and_not_timed(rows: list[Row]) -> None:
    record = runner.run_row(rows[2], CPU, measure.Limits(), seconds=0.02)
    assert record["status"] == "wrong"
    assert "seconds" not in record
    assert "Expected 2 but got 1" in record["error"]


def test_a_raising_row_is_a_failure() -> None:
    def make(device: torch.device) -> Case:
        raise RuntimeError("no such kernel")

    record = runner.run_row(Row("fake", "raises", "1", "float32", ("cpu",), make, {}), CPU, measure.Limits())
    assert record["status"] == "failed"
    assert "no such kernel" in record["error"]


def test_exact_is_exact() -> None:
    registry.exact(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]))
    with pytest.raises(AssertionError):
        registry.exact(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
    with pytest.raises(AssertionError):
        registry.exact(torch.tensor([1], dtype=torch.int32), torch.tensor([1]))


def test_a_row_is_declared_once(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="declared twice"):
        row(family="fake", op="wrong", shape="1", dtype="int64", rows=rows)(lambda device: None)  # type: ignore


def test_interleaved_finds_the_slower_one() -> None:
    found = measure.interleaved(
        {"fast": lambda: time.sleep(1e-3), "slow": lambda: time.sleep(3e-3)}, CPU, seconds=0.05, cold=False
    )
    assert found["fast"].median < found["slow"].median
    assert found["fast"].cpu < found["fast"].median  # sleeping costs no processor time


def test_setup_runs_before_every_call() -> None:
    calls = []
    measure.interleaved(
        {"run": lambda: calls.append("run")},
        CPU,
        seconds=0.01,
        setup=lambda: calls.append("setup"),
        maximum_runs=5,
    )
    assert calls[::2] == ["setup"] * (len(calls) // 2)
    assert calls[1::2] == ["run"] * (len(calls) // 2)


def test_a_call_longer_than_the_budget_is_timed_three_times() -> None:
    found = measure.interleaved({"run": lambda: time.sleep(0.02)}, CPU, seconds=0.01, cold=True)
    assert found["run"].runs == 3


def test_command(
    rows: list[Row],
    limits: measure.Limits,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "Limits", lambda: limits)
    output = tmp_path / "new.json"
    options = ["--seconds", "0.02", "--device", "cpu", "--output", str(output)]
    assert main([*options, "--op", "square"], rows) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("quoted paper", "dot: ", "differs", "not installed"))
    first = json.loads(output.read_text())
    assert [r["shape"] for r in first["rows"]] == ["10k", "1k"]
    assert first["machine"]["cores"] >= 1
    assert first["versions"]["torch"] == torch.__version__
    assert first["threads"] == torch.get_num_threads()
    assert first["limits"]["cpu"]["copy_bytes_per_second"] > 0

    assert main([*options, "--shape", "10k", "--compare", str(output)], rows) == 0
    assert "against" in capsys.readouterr().out
    assert len(json.loads(output.read_text())["rows"]) == 2, "rows that were not run stay in the file"

    assert main([*options, "--op", "wrong"], rows) == 1
    assert main([*options, "--family", "nothing"], rows) == 2
    if not torch.cuda.is_available():
        assert main(["--device", "cuda"], rows) == 2


def test_comparison_counts_changes_beyond_the_spread(rows: list[Row], limits: measure.Limits) -> None:
    record = runner.run_row(rows[0], CPU, limits, seconds=0.02)
    old: dict[str, Any] = {
        "machine": {"name": "m"},
        "versions": {"commit": "c"},
        "rows": [json.loads(json.dumps(record))],
    }
    console = Console(file=io.StringIO())
    assert report.print_comparison(console, old, [record]) == 0
    old["rows"][0]["seconds"] |= {"median": record["seconds"]["median"] / 100, "spread": 0.0}
    assert (
        report.print_comparison(console, old, [record | {"seconds": record["seconds"] | {"spread": 0.1}}])
        == 1
    )


def test_peer_by_path(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("answer = 42\n")
    peers.add_path(f"theirs={tmp_path / 'theirs.py'}")
    loaded = peers.load("theirs")
    assert getattr(loaded, "answer", None) == 42
    assert peers.load("unheard_of") is None
    assert peers.installed("a_module_that_is_not_there") is None
    with pytest.raises(ValueError, match="NAME=PATH"):
        peers.add_path("theirs")
    with pytest.raises(ValueError, match="there is no"):
        peers.add_path(f"theirs={tmp_path / 'absent.py'}")


def test_collected_rows_have_full_names() -> None:
    pytest.importorskip("fastshape.ops")
    for declared in registry.collect():
        assert all((declared.family, declared.op, declared.shape))
        assert hasattr(torch, declared.dtype), f"{declared.op}: {declared.dtype} is no torch dtype"
        assert set(declared.devices) <= {"cpu", "cuda"}


def test_machine_slug_is_a_file_name() -> None:
    assert machine.slug().replace("-", "").isalnum()
    assert report.time_text(2.5e-3) == "2.5 ms"
    assert report.count_text(4.3e12, "B/s") == "4.3 TB/s"


def test_a_stopped_run_keeps_its_rows(rows: list[Row], limits: measure.Limits, tmp_path: Path) -> None:
    output = tmp_path / "new.json"

    def stop(device: torch.device) -> Case:
        raise KeyboardInterrupt

    stopped = Row("fake", "stop", "1", "float32", ("cpu",), stop, {})
    assert main(["--seconds", "0.02", "--device", "cpu", "--output", str(output)], [rows[0], stopped]) == 1
    assert [r["op"] for r in json.loads(output.read_text())["rows"]] == ["square_sum"]
