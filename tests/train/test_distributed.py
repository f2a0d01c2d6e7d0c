"""Two gloo processes train as one does with the same global batch, and their run resumes bit for bit."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import ball, run, same, small_config
from test_vat_training import MODEL as CODED

from fastshape.models import MODELS, load
from fastshape.train.distributed import local_device
from fastshape.train.loop import MODEL_DIRECTORY

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_distributed import CONFIGS, SHAPES
from test_train import run, stop_at, Stopped

limit = int(sys.argv[4])
try:
    run(CONFIGS[sys.argv[2]], SHAPES, output_dir=sys.argv[3], on_step=stop_at(limit) if limit else None)
except Stopped:
    sys.exit(5)
"""

SHAPES = [ball(0.7), ball(0.5, seed=1), ball(0.6, seed=2)]
CONFIGS = {
    # Dropped paths are drawn by each process for itself: without them.
    "plain": small_config(
        batch_size=4,
        steps=12,
        kl_weight=0.01,
        model=dataclasses.replace(small_config().model, drop_path=0.0),
        token_counts=(4, 8),
        gradient_clip=0.5,
        ema_decay=0.9,
        checkpoint_every=5,
    ),
    "vat": small_config(
        batch_size=4,
        steps=12,
        kl_weight=1e-4,
        initialization="kernel",
        continuous_share=0.5,
        revive_every=100,  # a process knows residuals of its own only
        ema_decay=0.9,
        model=dataclasses.replace(CODED, point_features=0, output="occupancy", ema=True),
    ),
    "dropped": small_config(batch_size=4, steps=12, micro_batch_size=1, checkpoint_every=5),
}


def torchrun(folder: Path, config: str, *, stop: int = 0, processes: int = 2) -> int:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    script = folder.parent / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    arguments = [str(script), str(Path(__file__).parent), config, str(folder), str(stop)]
    return subprocess.run([*launcher, *arguments], capture_output=True, timeout=300).returncode


def distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    """The largest difference of a parameter, relative to the largest of its tensor."""
    left, right = a.state_dict(), b.state_dict()
    return max(float((left[n] - right[n]).abs().max() / left[n].abs().max().clamp_min(1e-3)) for n in left)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    assert torchrun(tmp_path / "two", "plain") == 0
    two = load(tmp_path / "two" / MODEL_DIRECTORY)
    one = run(CONFIGS["plain"], SHAPES)
    fresh = MODELS["VecSetVAE"](one.config)
    assert distance(one, fresh) > 0.1  # it moved
    assert distance(one, two) < 1e-5


@pytest.mark.slow
def test_two_processes_share_a_codebook(tmp_path):
    """Through k-means and running means. A token between two codes may take either."""
    assert torchrun(tmp_path / "two", "vat") == 0
    two, one = load(tmp_path / "two" / MODEL_DIRECTORY), run(CONFIGS["vat"], SHAPES)
    for name in ("cluster_size", "codebook"):
        mine, theirs = (getattr(model.quantizer, name) for model in (one, two))
        assert (mine - theirs).abs().max() < 0.1 * mine.abs().max()


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(tmp_path):
    assert torchrun(tmp_path / "straight", "dropped") == 0
    assert torchrun(tmp_path / "cut", "dropped", stop=7) != 0
    assert torchrun(tmp_path / "cut", "dropped") == 0
    names = [tmp_path / name / MODEL_DIRECTORY for name in ("straight", "cut")]
    assert same(*(load(name) for name in names))
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("straight", "cut")]
    assert lines[0] == lines[1]


def test_micro_batches_give_the_same_gradient():
    whole = run(CONFIGS["plain"], SHAPES)
    pieces = run(dataclasses.replace(CONFIGS["plain"], micro_batch_size=3), SHAPES)
    assert distance(whole, pieces) < 1e-5
    assert not same(whole, pieces)  # another order of sums


def test_a_batch_that_cannot_be_shared_is_refused():
    from fastshape import train

    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 3 processes, got 4"):
        train.sample_batch(SHAPES, CONFIGS["plain"], 0, world_size=3)


def test_a_process_takes_its_own_gpu(monkeypatch):
    assert local_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == torch.device("cuda", 3)
    assert local_device("cuda:1") == torch.device("cuda", 1)
    assert local_device("cpu") == torch.device("cpu")
