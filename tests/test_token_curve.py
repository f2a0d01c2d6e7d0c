"""The script that measures a model at many numbers of tokens."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_models import exact, tiny

from fastshape import geometry
from fastshape.testing import icosphere

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "token_curve.py"
if not SCRIPT.is_file():
    pytest.skip("the scripts are not part of an installed package", allow_module_level=True)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # it takes its charts from beside it
        yield load()


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("token_curve", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["token_curve"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    path = tmp_path / "ball.ply"
    geometry.save(geometry.Mesh(*icosphere(3)), path)
    return path


def run(script: ModuleType, meshes: list[Path], output: Path, tokens: str) -> list[dict[str, str]]:
    options = ["--tokens", tokens, "--resolution", "24", "--samples", "500", "--points", "200"]
    script.main(["a-model", *map(str, meshes), "-o", str(output), *options])
    with open(output.with_suffix(".csv"), newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", ["VecSetVAE", "DoraVAE", "LaGeM"])
def test_a_line_for_every_mesh_and_count(script, mesh, tmp_path, monkeypatch, family):
    pytest.importorskip("PIL")
    model = exact(family, geometry.load(mesh))
    monkeypatch.setattr(script.models, "load", lambda name, device, kind: model)
    lines = run(script, [mesh, mesh], tmp_path / "curve.png", "24,8")
    assert [(line["mesh"], line["tokens"]) for line in lines] == [("ball.ply", "8"), ("ball.ply", "24")] * 2
    for line in lines:
        assert float(line["iou"]) > 0.9
        assert float(line["chamfer_l1_floor"]) > 0
        assert float(line["extract"]) > 0
        counts = script.token_counts(model, int(line["tokens"]))
        assert int(line["query_bytes"]) == model.query_bytes(counts)
    assert int(lines[1]["latent_bytes"]) == pytest.approx(3 * int(lines[0]["latent_bytes"]))
    picture = (tmp_path / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000


def test_a_model_without_a_surface_leaves_gaps(script, mesh, tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    model = tiny("VecSetVAE")
    monkeypatch.setattr(model, "_field", lambda points, context: torch.full(points.shape[:2], -1.0))
    monkeypatch.setattr(script.models, "load", lambda name, device, kind: model)
    (line,) = run(script, [mesh], tmp_path / "curve", "8")
    assert (line["faces"], line["chamfer_l1"], line["iou"]) == ("0", "", "")
    assert (tmp_path / "curve.png").is_file()


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"),
    [
        (0.5, 0.9, False),
        (0.4, 0.4, False),
        (0.0, 1.0, False),
        (3e-4, 7.0, True),
        (5.0, 5.0, True),
        (46, 570, True),
    ],
)
def test_ticks_enclose_the_values(script, low, high, logarithmic):
    found = importlib.import_module("charts").ticks(low, high, logarithmic)
    assert found == sorted(set(found))
    assert 2 <= len(found) <= 11
    assert found[0] <= low * (1 + 1e-6)
    assert found[-1] >= high * (1 - 1e-6)
    if not logarithmic:
        steps = [b - a for a, b in pairwise(found)]
        assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
