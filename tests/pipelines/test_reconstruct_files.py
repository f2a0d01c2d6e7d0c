"""Many meshes through a model: records, resume, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import ball, tiny

from fastshape import geometry
from fastshape.geometry import MeshError, shapes
from fastshape.pipelines import Job, ReconstructSettings, reconstruct_file, reconstruct_files
from fastshape.pipelines.reconstruct_page import COLUMNS, cells, html_page, mean_cells, write_page

QUICK = ReconstructSettings(resolution=16, num_samples=500)


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Two meshes, and a file that is none in between."""
    geometry.save(shapes.torus(segments=16), tmp_path / "a.ply")
    (tmp_path / "b.ply").write_text("no mesh")
    geometry.save(shapes.knot(segments=24), tmp_path / "c.ply")
    return [Job(f"set/{name}", tmp_path / f"{name}.ply", tmp_path / "out" / f"{name}.glb") for name in "abc"]


def test_a_bad_mesh_is_a_record_and_ends_nothing(tmp_path, jobs) -> None:
    begun: list[str] = []
    seen: list[str] = []
    records = reconstruct_files(
        jobs,
        ball("VecSetVAE"),
        tmp_path / "out",
        QUICK,
        on_start=lambda job: begun.append(job.name),
        on_item=lambda record: seen.append(record["status"]),
    )
    assert begun == [record["name"] for record in records] == ["set/a", "set/b", "set/c"]
    assert seen == ["ok", "failed", "ok"]
    assert records[1]["reason"]
    assert str(jobs[1].source) not in records[1]["reason"]  # the row names it already
    assert [job.output.is_file() for job in jobs] == [True, False, True]
    stored = json.loads((tmp_path / "out" / "shapes" / "set" / "b.json").read_text())
    assert (stored["status"], stored["reason"]) == ("failed", records[1]["reason"])
    with pytest.raises(MeshError, match=r"b\.ply: "):
        reconstruct_file(jobs[1], ball("VecSetVAE"), QUICK)


def test_an_error_of_ours_is_a_record_with_its_kind(tmp_path, jobs) -> None:
    def broken(job, mesh):
        raise ZeroDivisionError("in the model")

    records = reconstruct_files(jobs[:1], broken, tmp_path / "out", QUICK)
    assert records[0]["reason"] == "ZeroDivisionError: in the model"


def test_ctrl_c_ends_the_run(tmp_path, jobs) -> None:
    def stop(job, mesh):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct_files(jobs, stop, tmp_path / "out", QUICK)


def test_only_what_still_holds_is_kept(tmp_path, jobs) -> None:
    model, folder = ball("VecSetVAE"), tmp_path / "out"

    def kept(settings: ReconstructSettings = QUICK, **about: str) -> list[str]:
        records = reconstruct_files(jobs, model, folder, settings, about=about, resume=True)
        return [record["name"] for record in records if record.get("kept")]

    assert kept() == []
    assert kept() == ["set/a", "set/c"]  # what failed is tried again
    assert kept(weights="others") == []
    assert kept(weights="others") == ["set/a", "set/c"]
    assert kept(ReconstructSettings(resolution=17, num_samples=500)) == []
    assert kept() == []
    jobs[2].output.unlink()
    assert kept() == ["set/a"]
    geometry.save(shapes.torus(segments=20), jobs[0].source)
    assert kept() == ["set/c"]
    (folder / "shapes" / "set" / "a.json").write_text("{")
    assert kept() == ["set/c"]


def test_a_kept_record_is_the_first_one(tmp_path, jobs) -> None:
    model = ball("LaGeM")
    first = reconstruct_files(jobs[:1], model, tmp_path / "out", QUICK)
    second = reconstruct_files(jobs[:1], model, tmp_path / "out", QUICK, resume=True)
    assert second[0].pop("kept")
    assert second == first
    assert first[0]["tokens"] == [16, 8, 4]
    assert first[0]["latent_bytes"] == 4 * (16 * 4 + 8 * 6 + 4 * 8)


def test_each_mesh_may_have_a_model_of_its_own(tmp_path, jobs) -> None:
    given = []

    def model_for(job, mesh):
        given.append((job.name, mesh.num_faces))
        return ball("VecSetVAE")

    records = reconstruct_files([jobs[0], jobs[2]], model_for, tmp_path / "out", QUICK)
    assert [name for name, _ in given] == ["set/a", "set/c"]
    assert all("train" in record["seconds"] for record in records)


def test_the_page_says_all_and_escapes_it(tmp_path, jobs) -> None:
    records = reconstruct_files(jobs, ball("VecSetVAE"), tmp_path / "out", QUICK)
    records[0]["name"] = "a<b>&c"
    text = html_page(records, {"model": "<i>"}, title="T & T", pictures={})
    assert "a&lt;b&gt;&amp;c" in text
    assert "<i>" not in text
    assert "T &amp; T" in text
    assert "2 of 3 shapes reconstructed, 1 failed" in text
    assert "Pictures" not in text
    row = cells(records[0])
    assert len(row) == len(COLUMNS) == len(mean_cells(records[::2]))
    assert row[0] == "16"
    write_page(records, tmp_path / "out" / "page.html", {}, title="T")
    assert (tmp_path / "out" / "page.html").read_text().startswith("<!doctype html>")


def test_an_iou_that_means_nothing_is_not_shown(tmp_path) -> None:
    geometry.save(shapes.half_pipe(), tmp_path / "pipe.ply")
    job = Job("pipe", tmp_path / "pipe.ply", tmp_path / "out.ply")
    record = reconstruct_file(job, ball("VecSetVAE"), QUICK)
    assert not record["clear"]
    assert cells(record)[-1] == "-"


def test_no_surface_is_a_reason(tmp_path, jobs) -> None:
    model = tiny("VecSetVAE")
    model._field = lambda points, context: -points.norm(dim=-1) - 1  # type: ignore[method-assign]
    records = reconstruct_files(jobs[:1], model, tmp_path / "out", QUICK)
    assert "no surface at level 0" in records[0]["reason"]
    assert "train longer" in records[0]["reason"]
