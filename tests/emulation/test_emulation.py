"""The emulation of CUDA kernels on the CPU: correct kernels give right results, planted faults are caught.

The kernels are in correct.cu and faults.cu, the program that runs them in main.cpp. It is built here three
times: plain, with AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = ["ascending", "descending", "random 1", "random 2", "random 3"]
RIGHT, WRONG, ERROR, SANITIZER = 0, 1, 2, 66
BUILDS = {"plain": "", "address": "address", "thread": "thread"}


def tool(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def build(kind: str) -> Path:
    """The test program of one kind; built once, whoever of several test processes comes first."""
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None or ninja is None or not (shutil.which("c++") or os.environ.get("CXX")):
        pytest.skip("needs cmake, ninja and a C++ compiler")
    folder = ROOT / "build" / "emulation" / kind
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    options = {"PYTHON": "OFF", "CUDA": "OFF", "EMULATION": "ON", "SANITIZE": BUILDS[kind]}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            configure + [f"-DFASTSHAPE_{name}={value}" for name, value in options.items()],
            [cmake, "--build", folder, "--target", "emulation_test"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "emulation_test"


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    return {}


@pytest.fixture
def run(programs):
    """run(kind, case, schedule) -> (exit status, output)."""

    def run(kind: str, case: str, schedule: str = "ascending") -> tuple[int, str]:
        if kind not in programs:
            programs[kind] = build(kind)
        options = f"exitcode={SANITIZER}:halt_on_error=1"
        environment = {
            **os.environ,
            "LD_PRELOAD": "",
            "ASAN_OPTIONS": f"{options}:detect_leaks=0",
            "UBSAN_OPTIONS": options,
            "TSAN_OPTIONS": f"{options}:report_bugs=1",
        }
        done = subprocess.run(
            [programs[kind], case, *schedule.split()],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def kinds(*names: str):
    """The sanitized builds count as slow: the program is compiled first."""
    return pytest.mark.parametrize(
        "kind", [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in names]
    )


# ---- Kernels that keep the rules ---------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@kinds("plain", "address", "thread")
def test_correct_kernels(run, kind, schedule):
    status, output = run(kind, "correct", schedule)
    assert status == RIGHT, output
    assert output.count(": right") == 18


# ---- Barriers that are not there ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES[:3])
@pytest.mark.parametrize(
    "case",
    [
        "missing_barrier",
        "missing_barrier_ahead",
        "missing_second_barrier",
        "missing_syncwarp",
        "missing_fence",
        "race_between_blocks",
    ],
)
def test_races_are_reported(run, case, schedule):
    status, output = run("thread", case, schedule)
    assert status == SANITIZER, output
    assert "ThreadSanitizer: data race" in output
    assert "faults.cu" in output


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("case", ["missing_barrier", "missing_barrier_ahead", "missing_second_barrier"])
def test_missing_barrier_gives_a_wrong_result(run, case, schedule):
    status, output = run("plain", case, schedule)
    assert status == WRONG, output


# ---- Memory ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("shared_overflow", "AddressSanitizer: use-after-poison"),
        ("shared_underflow", "AddressSanitizer: use-after-poison"),
        ("global_overflow", "AddressSanitizer: heap-buffer-overflow"),
        ("member_overflow", "index 8 out of bounds for type 'int [8]'"),
        ("misaligned", "misaligned address"),
    ],
)
def test_bad_accesses_are_reported(run, case, message):
    status, output = run("address", case)
    assert status == SANITIZER, output
    assert message in output
    assert "faults.cu" in output


@pytest.mark.parametrize("case", ["shared_overflow", "shared_underflow"])
def test_plain_build_notices_writes_outside_shared_memory(run, case):
    status, output = run("plain", case)
    assert status == ERROR, output
    assert "wrote outside its 256 bytes of shared memory" in output


@kinds("plain", "address", "thread")
def test_unwritten_shared_memory_is_not_zero(run, kind):
    status, output = run(kind, "uninitialized")
    assert status == WRONG, output
    assert "nan" in output


# ---- Collectives, and sizes --------------------------------------------------------------------------------


@kinds("plain", "address", "thread")
@pytest.mark.parametrize("schedule", SCHEDULES[:3])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("divergent_shuffle", "divergent warp: this lane arrives at a shuffle"),
        ("shuffle_with_exited", "exit"),
        ("shuffle_outside_mask", "reads from lane 20, which is not in its mask 0xffff"),
        ("caller_outside_mask", "__any_sync with mask 0xffff by lane"),
        ("mismatched_masks", "deadlock: every thread waits for another"),
        ("divergent_barrier", "barrier in divergent code: this thread arrives at __syncthreads"),
        ("deadlock", "threads 0-15: __syncthreads (faults.cu:"),
        ("live_lock", "live-lock: block (1, 0, 0), thread (0, 0, 0) and others call spin_wait"),
        ("cluster_wait_alone", "cluster_wait without a cluster_arrive"),
        ("cluster_map_global", "not into this block's shared memory"),
        ("grid_sync_without_cooperation", "not started by launch_cooperative"),
    ],
)
def test_broken_rules_are_errors(run, kind, case, message, schedule):
    status, output = run(kind, case, schedule)
    assert status == ERROR, output
    assert f"error: {case}: " in output
    assert message in output
    assert "block (" in output


@kinds("plain", "address", "thread")
@pytest.mark.parametrize("schedule", SCHEDULES[:3])
def test_memory_of_finished_blocks_is_gone(run, kind, schedule):
    status, output = run(kind, "missing_cluster_sync", schedule)
    assert status == ERROR, output
    assert "whose threads have all exited" in output


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("too_little_shared", "uses 256 bytes of shared memory but was launched with 252"),
        ("too_much_shared", "a block has at most 232448"),
        ("block_too_large", "1 to 1024 are possible"),
        ("empty_grid", "a grid of (0, 1, 1) blocks"),
        ("cluster_does_not_divide", "must divide the grid"),
        ("cooperative_too_large", "too many blocks in cooperative launch: 9, the device holds 8"),
        ("workspace_too_small", "the workspace has 1 bytes"),
    ],
)
def test_refused_sizes(run, case, message):
    status, output = run("plain", case)
    assert status == ERROR, output
    assert f"error: {case}: " in output
    assert message in output


def test_every_fault_has_a_test(run):
    status, output = run("plain", "list")
    assert status == 0
    source = Path(__file__).read_text()
    assert [
        line for line in output.splitlines() if f'"{line.split()[1]}"' not in source and "fault" in line
    ] == []


# ---- The same files under nvcc -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["correct.cu", "faults.cu"])
def test_compiles_with_nvcc(tmp_path, name):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here")
    flags = ["-std=c++17", "--fmad=false", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}"]
    flags += [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    command = [nvcc, *flags, "-c", ROOT / "tests" / "emulation" / name, "-o", tmp_path / "out.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
