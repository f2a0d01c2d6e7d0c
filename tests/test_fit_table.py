"""The script that compares fits with dual marching cubes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastshape import geometry
from fastshape.geometry import shapes

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "fit_table.py"
if not SCRIPT.is_file():
    pytest.skip("the scripts are not part of an installed package", allow_module_level=True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_table"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_lines_are_kept_and_make_a_table(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "sharp_normal_error", lambda mesh, target: 0.25)  # takes seconds
    path = tmp_path / "ring.ply"
    geometry.save(shapes.torus(segments=16), path)
    words = [str(path), "--half", str(path), "--at", "16:2", "-o", str(tmp_path / "fits.csv")]
    script.main(words)
    out = capsys.readouterr().out
    lines = script.read(tmp_path / "fits.csv")
    assert [(line.mesh, line.resolution, line.steps) for line in lines] == [
        ("ring", 16, 2),
        ("half of ring", 16, 2),
    ]
    whole, half = lines
    assert (whole.mesh_open, whole.fit_open, whole.cubes_open) == (0, 0, 0)
    assert min(half.mesh_open, half.fit_open, half.cubes_open) > 0
    assert 0 < whole.floor < whole.fit_cd < 0.1
    assert 0 < whole.voxels_per_step <= whole.voxels
    assert "| half of ring, 16 | " in out
    monkeypatch.setattr(script, "measure", None)  # nothing is left to do
    script.main(words)
    assert script.read(tmp_path / "fits.csv") == lines
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("cubes", "fitted", "lower", "text"),
    [
        (0.25, 0.125, True, "**.125**"),
        (0.25, 0.125, False, "**.250**, .125"),
        (0.5, 0.50001, True, ".500, .500"),
    ],
)
def test_the_better_one_is_bold(script, cubes, fitted, lower, text):
    assert text in script._pair(cubes, fitted, 3, lower=lower)
