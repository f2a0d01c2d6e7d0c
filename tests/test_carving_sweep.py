"""The script that measures thresholds of depth carving."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "carving_sweep.py"
if not SCRIPT.is_file():
    pytest.skip("the scripts are not part of an installed package", allow_module_level=True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("carving_sweep", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["carving_sweep"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_line_for_every_shape_and_threshold(script, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    options = ["--resolution", "24", "--views", "2", "--size", "48", "--samples", "20000"]
    script.main(["torus", "half_pipe", "-o", str(tmp_path / "sweep"), *options])
    assert "torus 2 / decoded: kept" in capsys.readouterr().out
    with open(tmp_path / "sweep.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * len(script.THRESHOLDS)
    for name in ("torus", "half_pipe"):
        for neighborhood in ("0", "1"):
            rows = [x for x in lines if (x["shape"], x["neighborhood"]) == (name, neighborhood)]
            kept, lost = ([float(x[key]) for x in rows] for key in ("kept", "lost"))
            assert kept == sorted(kept)  # a larger threshold keeps more and loses less
            assert lost == sorted(lost, reverse=True)
            assert 0 < kept[0] < kept[-1] <= 1
        assert lost[-1] < 0.02
    with image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (2 * script.WIDTH, script.HEIGHT + 30)
        assert len(picture.getcolors(1 << 16)) > 50
