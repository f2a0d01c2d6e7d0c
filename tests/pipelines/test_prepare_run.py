"""The run over many meshes: each once, under limits, resumable, shared by ranks."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import prepare_tasks
import pytest

from fastshape import geometry
from fastshape.geometry import PrepareError, PrepareSpec, shapes
from fastshape.pipelines import Item, PrepareReport, Rank, default_rank, find_items, prepare
from fastshape.pipelines.status import StatusWriter, merge_index, read_lines
from fastshape.pipelines.workers import WorkerPool
from fastshape.runtime.files import read_safetensors

SPEC = PrepareSpec(num_surface=20, num_volume=30, num_near=40)


def write_items(folder: Path, texts: list[str]) -> list[Path]:
    """One file for each text, with the extension of a mesh."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.stl" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def run(inputs: Path | list[Path], output: Path, spec: PrepareSpec = SPEC, **options) -> PrepareReport:
    options = {"workers": 2, "task": prepare_tasks.digest, **options}
    return prepare([inputs] if isinstance(inputs, Path) else inputs, output, spec, **options)


def tree(output: Path) -> dict[str, str]:
    """A hash of each file but the status files, whose lines tell times."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and not path.name.startswith("status-")
    }


def status(output: Path) -> list[dict]:
    return [line for path in sorted(output.glob("status-*.jsonl")) for line in read_lines(path)]


def test_meshes_become_files_an_index_and_status_lines(tmp_path) -> None:
    folder = tmp_path / "meshes"
    (folder / "deep" / "er").mkdir(parents=True)
    geometry.save(shapes.torus(segments=16), folder / "torus.ply")
    geometry.save(shapes.knot(segments=24), folder / "deep" / "er" / "knot.obj")
    (folder / "empty.stl").touch()
    (folder / "deep" / "sheet.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 2\n")
    (folder / "notes.md").write_text("no mesh")
    report = prepare([folder], tmp_path / "out", SPEC, workers=2)
    assert report.counts == {"ok": 2, "failed": 2}
    assert sorted(failure.reason for failure in report.failures) == [
        "file is empty",
        "no surface area: all triangles are points or lines",
    ]
    index = list(read_lines(tmp_path / "out" / "index.jsonl"))
    assert [Path(line["source"]).name for line in index] in (
        ["torus.ply", "knot.obj"],
        ["knot.obj", "torus.ply"],
    )
    for line in index:
        path = tmp_path / "out" / line["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == line["sha256"]
        tensors, metadata = read_safetensors(path)
        mesh = geometry.load(line["source"])
        expected = geometry.prepare(mesh, SPEC)
        assert tensors.keys() == expected.keys()
        assert all(bool((tensors[name] == expected[name]).all()) for name in expected)
        assert json.loads(metadata["spec"]) == SPEC.to_dict()
        assert metadata["source_sha256"] == hashlib.sha256(Path(line["source"]).read_bytes()).hexdigest()
        assert line["counts"] == {"surface": 20, "volume": 30, "near": 40}
    lines = status(tmp_path / "out")
    assert Counter(line["status"] for line in lines) == {"ok": 2, "failed": 2}
    assert all(line["seconds"] >= 0 and line["size"] >= 0 for line in lines)
    assert json.loads((tmp_path / "out" / "spec.json").read_text())["spec_hash"] == SPEC.hash
    assert not list((tmp_path / "out").glob(".*"))


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path) -> None:
    write_items(
        tmp_path / "in", [f"item {n // 2 if n > 30 else n}{' bad' * (n in (5, 17))}" for n in range(40)]
    )
    run(tmp_path / "in", tmp_path / "whole", SPEC)
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import prepare_tasks\n"
        "from fastshape.geometry import PrepareSpec\n"
        "from fastshape.pipelines import prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare([{str(tmp_path / 'in')!r}], {str(tmp_path / 'out')!r},\n"
        f"            PrepareSpec.from_json({SPEC.to_json()!r}), workers=2, task=prepare_tasks.slow_digest)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("??/*"))) < 12 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(tmp_path / "out" / "status-0.jsonl", "ab") as file:
        file.write(b'{"path": "/torn", "status": "o')
    before = len(list((tmp_path / "out").glob("??/*")))
    assert 12 <= before < 30
    report = run(tmp_path / "in", tmp_path / "out", SPEC)
    assert report.counts["done"] >= 10
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert len(tree(tmp_path / "out")) == 2 + report.num_indexed
    assert all(line["path"] != "/torn" for line in status(tmp_path / "out"))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("??/*")}
    again = run(tmp_path / "in", tmp_path / "out", SPEC)
    assert again.counts.keys() == {"done", "failed before"}
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("??/*")}


def test_an_item_that_takes_too_long_is_given_up(tmp_path) -> None:
    write_items(tmp_path / "in", ["1", "sleep", "2"])
    report = run(tmp_path / "in", tmp_path / "out", task=prepare_tasks.misbehave, timeout=4.0)
    assert report.counts == {"ok": 2, "failed": 1}
    assert (report.failures[0].kind, report.failures[0].reason) == ("timeout", "took more than 4 s")


def test_bad_items_are_failures_with_a_reason_and_the_run_goes_on(tmp_path) -> None:
    words = ["1", "2", "crash", "3", "exit", "allocate", "4", "grow", "mistake", "bad", "5"]
    write_items(tmp_path / "in", words)
    report = run(tmp_path / "in", tmp_path / "out", task=prepare_tasks.misbehave, memory=1 << 30)
    assert report.counts == {"ok": 5, "failed": 6}
    found = {failure.item.path: (failure.kind, failure.reason) for failure in report.failures}
    by_word = {Path(path).read_text(): answer for path, answer in found.items()}
    assert by_word["crash"] == ("crash", "the process died of SIGSEGV (something native went wrong)")
    assert by_word["exit"] == ("crash", "the process ended with code 3")
    assert by_word["allocate"] == ("memory", "took more than 1,024 MiB")
    assert by_word["grow"] == ("memory", "took more than 1,024 MiB")
    assert by_word["bad"] == ("mesh", "this one is bad")
    kind, reason = by_word["mistake"]
    assert kind == "error"
    assert reason.startswith("KeyError: 'nobody expected this' (prepare_tasks.py:")
    lines = {line["path"]: line for line in status(tmp_path / "out")}
    assert all(lines[path]["reason"] == reason for path, (_, reason) in found.items())
    assert report.peak_memory > 1 << 29


def test_failures_are_tried_again_on_request_and_when_the_file_changes(tmp_path) -> None:
    paths = write_items(tmp_path / "in", ["bad 1", "bad 2", "good"])
    run(tmp_path / "in", tmp_path / "out")
    calls = run(tmp_path / "in", tmp_path / "out")
    assert calls.counts == {"failed before": 2, "done": 1}
    assert [failure.reason for failure in calls.failures] == ["this one is bad"] * 2
    assert run(tmp_path / "in", tmp_path / "out", retry_failed=True).counts == {"failed": 2, "done": 1}
    paths[0].write_text("mended")
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.counts == {"failed before": 1, "done": 1, "ok": 1}
    assert report.num_indexed == 2
    paths[2].write_text("another")  # what was prepared from its former bytes leaves the index
    assert run(tmp_path / "in", tmp_path / "out").num_indexed == 2
    line = next(read_lines(tmp_path / "out" / "index.jsonl"))
    (tmp_path / "out" / line["file"]).unlink()  # a lost file is made again
    assert run(tmp_path / "in", tmp_path / "out").counts == {"ok": 1, "done": 1, "failed before": 1}
    assert hashlib.sha256((tmp_path / "out" / line["file"]).read_bytes()).hexdigest() == line["sha256"]


def test_equal_inputs_are_done_once(tmp_path) -> None:
    write_items(tmp_path / "in", ["one", "two", "one", "one", "bad", "bad"])
    (tmp_path / "in" / "other.ply").write_text("one")  # another extension, another reader
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.counts == {"ok": 3, "duplicate": 2, "failed": 2}
    index = {Path(line["source"]).name: line for line in read_lines(tmp_path / "out" / "index.jsonl")}
    assert index.keys() == {"000.stl", "001.stl", "other.ply"}
    assert [Path(path).name for path in index["000.stl"]["duplicates"]] == ["002.stl", "003.stl"]
    assert Counter(line["status"] for line in status(tmp_path / "out")) == report.counts
    assert run(tmp_path / "in", tmp_path / "out").counts == {"done": 5, "failed before": 2}


def test_ranks_share_the_items_exactly(tmp_path) -> None:
    write_items(tmp_path / "in", [f"item {n % 25}" for n in range(30)])
    run(tmp_path / "in", tmp_path / "single")
    items = find_items([tmp_path / "in"], tmp_path / "out")
    parts = [[item for item in items if item in Rank(rank, 3)] for rank in range(3)]
    assert sorted(item.path for part in parts for item in part) == [item.path for item in items]
    assert all(parts)
    for rank in range(3):
        report = run(tmp_path / "in", tmp_path / "out", rank=Rank(rank, 3))
        assert report.total == len(parts[rank])
    assert {line["path"]: line["key"] for line in status(tmp_path / "out")} == {
        line["path"]: line["key"] for line in status(tmp_path / "single")
    }
    assert tree(tmp_path / "out") == tree(tmp_path / "single")
    # Another number of ranks goes on with what the first three have done.
    assert run(tmp_path / "in", tmp_path / "out").counts == {"done": 30}


def test_the_rank_comes_from_the_launcher() -> None:
    assert default_rank({}) == Rank(0, 1, "")
    assert default_rank({"RANK": "2", "WORLD_SIZE": "4"}) == Rank(2, 4, "torchrun")
    task = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}
    assert default_rank(task) == Rank(0, 1, "")  # a batch script without srun is one process
    assert default_rank({**task, "SLURM_STEP_ID": "0"}) == Rank(3, 8, "Slurm's tasks")
    shell = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    assert default_rank(shell) == Rank(0, 1, "Slurm's tasks")  # salloc's: one process in a job of eight
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2"}
    array["SLURM_ARRAY_TASK_COUNT"] = "4"
    assert default_rank(array) == Rank(2, 4, "Slurm's array")
    both = default_rank({**task, **array, "SLURM_STEP_ID": "0"})
    assert (both.rank, both.world_size) == (2 * 8 + 3, 32)
    with pytest.raises(PrepareError, match="RANK='x', expected an integer"):
        default_rank({"RANK": "x", "WORLD_SIZE": "4"})
    with pytest.raises(PrepareError, match=r"the rank must lie in 0\.\.3, got 4"):
        Rank(4, 4)


def test_inputs_are_folders_files_and_lists(tmp_path, monkeypatch) -> None:
    a, b, c = write_items(tmp_path / "in", ["a", "b", "c"])
    (tmp_path / "in" / ".hidden.stl").touch()
    (tmp_path / "in" / "out").mkdir()
    (tmp_path / "in" / "out" / "x.stl").touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "linked.obj").symlink_to(a)
    (tmp_path / "list.txt").write_text("# a comment\nin/001.stl\n\n/none.obj\n")
    (tmp_path / "list.csv").write_text("name,path\nfirst,in/000.stl\n")
    (tmp_path / "list.jsonl").write_text('{"path": "in/002.stl"}\n"in/000.stl"\n')
    output = tmp_path / "in" / "out"
    found = find_items([tmp_path / "in"], output)
    assert [item.name for item in found] == ["000.stl", "001.stl", "002.stl", "linked.obj"]
    assert found[0] == Item(str(a), "000.stl")
    lists = [tmp_path / name for name in ("list.txt", "list.csv", "list.jsonl")]
    assert [item.path for item in find_items(lists, output)] == [str(b), "/none.obj", str(a), str(c)]
    monkeypatch.chdir(tmp_path)
    assert find_items(["in/000.stl", a], output) == [Item(str(a), "in/000.stl")]
    (tmp_path / "bad.csv").write_text("name\nx\n")
    (tmp_path / "bad.jsonl").write_text('{"file": 1}\n')
    for name, message in (
        ("none", "no such file or folder"),
        ("bad.csv", "expected a column 'path', got name"),
        ("bad.jsonl", "line 1: expected an object with 'path'"),
        (Path(__file__), "expected a folder, a mesh"),
    ):
        with pytest.raises(PrepareError, match=message):
            find_items([name], output)
    report = run([tmp_path / "list.txt"], tmp_path / "result")
    assert report.counts == {"ok": 1, "failed": 1}
    assert report.failures[0].reason == "no such file"


def test_what_stops_a_run_is_one_clear_error(tmp_path) -> None:
    write_items(tmp_path / "in", ["a"])
    run(tmp_path / "in", tmp_path / "out")
    other = PrepareSpec(num_surface=21, num_volume=30, num_near=40, seed=1)
    with pytest.raises(
        PrepareError, match=r"another specification \(num_surface 20 there, 21 here; seed 0 there"
    ):
        run(tmp_path / "in", tmp_path / "out", other)
    (tmp_path / "file").touch()
    with pytest.raises(PrepareError, match="a file is in the way"):
        run(tmp_path / "in", tmp_path / "file")
    (tmp_path / "out" / "spec.json").write_text("{}")
    with pytest.raises(PrepareError, match="not a specification"):
        run(tmp_path / "in", tmp_path / "out")


def test_two_processes_of_one_rank_are_refused(tmp_path) -> None:
    fcntl = pytest.importorskip("fcntl")
    write_items(tmp_path / "in", ["a"])
    run(tmp_path / "in", tmp_path / "out")
    with open(tmp_path / "out" / "status-0.jsonl", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PrepareError, match="another process is writing it; give each its own --rank"):
            run(tmp_path / "in", tmp_path / "out")


def test_an_output_that_cannot_be_written_ends_the_run(tmp_path) -> None:
    write_items(tmp_path / "in", ["a", "b"])
    (tmp_path / "out").mkdir()
    for number in range(256):
        (tmp_path / "out" / f"{number:02x}").touch()
    with pytest.raises(PrepareError, match=r"cannot write .*safetensors \(File exists\)"):
        run(tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x1c", "\x0c"])
def test_a_name_in_a_list_may_hold_what_looks_like_the_end_of_a_line(tmp_path, separator) -> None:
    (path,) = write_items(tmp_path, ["a"])
    name = f"a{separator}b.stl"
    path.rename(tmp_path / name)
    for ending, text in (
        ("txt", f"{name}\n"),
        ("csv", f"path\n{name}\n"),
        ("jsonl", json.dumps(name, ensure_ascii=False) + "\n" if separator > " " else json.dumps(name)),
    ):
        (tmp_path / f"list.{ending}").write_text(text, encoding="utf-8")
        items = find_items([tmp_path / f"list.{ending}"], tmp_path / "out")
        assert [item.path for item in items] == [str(tmp_path / name)], ending


def test_no_meshes_are_an_error_and_the_output_may_be_the_input(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(PrepareError, match=f"{tmp_path / 'in'}: no meshes in it"):
        run(tmp_path / "in", tmp_path / "out")
    write_items(tmp_path / "in", ["a", "b"])
    assert run(tmp_path / "in", tmp_path / "in").counts == {"ok": 2}
    assert run(tmp_path / "in", tmp_path / "in").counts == {"done": 2}


def test_gltf_whose_buffer_changed_is_prepared_anew(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    path, buffer = tmp_path / "in" / "a.gltf", tmp_path / "in" / "a b.bin"
    path.write_text(json.dumps({"buffers": [{"uri": "a%20b.bin"}, {"uri": "data:,x"}]}))
    buffer.write_bytes(b"one")
    assert run(tmp_path / "in", tmp_path / "out").counts == {"ok": 1}
    assert run(tmp_path / "in", tmp_path / "out").counts == {"done": 1}
    buffer.write_bytes(b"three")
    assert run(tmp_path / "in", tmp_path / "out").counts == {"ok": 1}
    buffer.unlink()
    assert run(tmp_path / "in", tmp_path / "out").counts == {"ok": 1}


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path) -> None:
    resource = pytest.importorskip("resource")
    output = tmp_path / "out"
    run(write_items(tmp_path / "in", ["a"]), output)
    before = (output / "index.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = StatusWriter(output, 7)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(PrepareError, match=r"status-7.jsonl: cannot be written \(File too large\)"):
            writer.append({"path": "x" * 200})
        with pytest.raises(OSError, match="File too large") as caught:
            merge_index(output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.close()
    assert caught.value.filename == str(output / "index.jsonl")
    assert (output / "index.jsonl").read_bytes() == before
    assert not list(output.glob(".index*"))
    StatusWriter(output, 7).close()
    assert (output / "status-7.jsonl").read_bytes() == b""  # the torn line is cut off


def test_a_process_that_dies_while_it_waits_costs_no_item(tmp_path) -> None:
    with WorkerPool(1, tmp_path) as pool:
        pool._workers[0].process.kill()
        pool._workers[0].process.join()
        pool.submit("ticket", abs, -3)
        (result,) = pool.wait(60)
    assert (result.ticket, result.value, result.failure) == ("ticket", 3, None)


def test_a_limit_below_what_a_process_needs_is_refused(tmp_path) -> None:
    with pytest.raises(PrepareError, match="at least 384 MiB, got 10 MiB"):
        run(write_items(tmp_path / "in", ["a"]), tmp_path / "out", memory=10 << 20)
    assert run(tmp_path / "in", tmp_path / "out", memory=384 << 20).counts == {"ok": 1}
