"""Many pairs: matching, records, resume, statistics, files and the page."""

import base64
import csv
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fastshape import __version__, geometry
from fastshape.geometry import Column, Mesh, Protocol, shapes
from fastshape.pipelines import Pair, PairError, evaluate_pairs, find_pairs
from fastshape.pipelines.evaluate import to_json
from fastshape.pipelines.pairs import with_latents
from fastshape.pipelines.report import (
    chosen_for_pictures,
    draw_pairs,
    heat_color,
    html_page,
    nice_limit,
    table_rows,
    write_page,
)
from fastshape.pipelines.summary import bootstrap_interval, larger_is_better, summarize, worst

QUICK = Protocol(
    name="quick",
    num_samples=500,
    num_volume_samples=300,
    num_near_samples=300,
    columns=(Column("chamfer_l1", "CD-L1"), Column("fscore@0.02", "F@.02 x100", 100, 2)),
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and targets of three shapes, one of them open, in other formats and a folder deeper."""
    predictions, targets = tmp_path / "predictions", tmp_path / "targets"
    for name, mesh in (
        ("torus", shapes.torus(segments=24)),
        ("deep/knot", shapes.knot(segments=40)),
        ("pipe", shapes.half_pipe()),
    ):
        for folder, ending, shift in ((predictions, ".stl", 0.01), (targets, ".ply", 0.0)):
            path = folder / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            geometry.save(Mesh(mesh.vertices + shift, mesh.faces), path)
    return predictions, targets


def test_folders_are_matched_by_stem(folders) -> None:
    pairs = find_pairs(*folders)
    assert [pair.name for pair in pairs] == ["deep/knot", "pipe", "torus"]
    assert pairs[0].prediction == folders[0] / "deep" / "knot.stl"
    assert pairs[0].target == folders[1] / "deep" / "knot.ply"
    two = find_pairs(folders[0] / "torus.stl", folders[1] / "pipe.ply")
    assert [(pair.name, pair.prediction, pair.target) for pair in two] == [
        ("torus", folders[0] / "torus.stl", folders[1] / "pipe.ply")
    ]


def test_a_missing_partner_is_an_error_or_a_failure(folders) -> None:
    (folders[0] / "torus.stl").unlink()
    (folders[1] / "pipe.ply").unlink()
    with pytest.raises(
        PairError, match="2 of 3 have no partner: pipe has no target; torus has no prediction"
    ):
        find_pairs(*folders)
    pairs = find_pairs(*folders, allow_missing=True)
    report = evaluate_pairs(pairs, preset=QUICK)
    assert [(r["name"], r["status"], r["reason"]) for r in report.records] == [
        ("deep/knot", "ok", ""),
        ("pipe", "missing", "no target"),
        ("torus", "missing", "no prediction"),
    ]
    assert len(report.failures) == 2


def test_a_list_of_pairs(folders, tmp_path) -> None:
    rows = [
        "name,prediction,target,group,latent_bytes,latent_length",
        "one,predictions/torus.stl,targets/torus.ply,raw,1024,32",
        ",predictions/deep/knot.stl,targets/deep/knot.ply,,,",
        "gone,predictions/none.stl,targets/pipe.ply,,,",
        "",
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(rows))
    with pytest.raises(PairError, match="gone has no prediction"):
        find_pairs(path)
    pairs = find_pairs(path, allow_missing=True)
    assert pairs[0] == Pair(
        "one", folders[0] / "torus.stl", folders[1] / "torus.ply", "raw", latent_bytes=1024, latent_length=32
    )
    assert [pair.name for pair in pairs] == ["one", "knot", "gone"]
    report = evaluate_pairs(pairs, preset=QUICK)
    assert [r["group"] for r in report.records] == ["raw", "watertight", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected the columns prediction and target, got a, b"),
        ("prediction,target,group\nx.stl,y.stl,nice\n", "line 2: `group` must be one of"),
        ("prediction,target,latent_bytes\nx.stl,y.stl,many\n", "line 2: expected a whole number, got 'many'"),
        ("prediction,target,name\nx.stl,y.stl,../up\n", "leads out of the output folder"),
        ("prediction,target\n", "no meshes to compare"),
        ("prediction,target\nx.stl,y.stl\nx.stl,y.stl\n", "two pairs have the name 'y'"),
    ],
)
def test_bad_lists(tmp_path, text, message) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(PairError, match=re.escape(message)):
        find_pairs(path, allow_missing=True)


def test_bad_inputs(folders, tmp_path) -> None:
    with pytest.raises(PairError, match="no such file or folder"):
        find_pairs(tmp_path / "none", folders[1])
    with pytest.raises(PairError, match="expected two files or two folders"):
        find_pairs(folders[0], folders[1] / "pipe.ply")
    with pytest.raises(PairError, match=r"or one \.csv of pairs"):
        find_pairs(folders[0])
    with pytest.raises(PairError, match="no such file"):
        find_pairs(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PairError, match="no meshes to compare"):
        find_pairs(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(PairError, match="no prediction has a target"):
        find_pairs(tmp_path / "empty", folders[1], allow_missing=True)
    geometry.save(shapes.torus(segments=8), folders[0] / "torus.obj")
    with pytest.raises(PairError, match="two files of one name"):
        find_pairs(*folders)


def test_latent_bytes(folders, tmp_path) -> None:
    pairs = find_pairs(*folders)
    assert {(p.latent_bytes, p.latent_length) for p in with_latents(pairs, "4096")} == {(4096, None)}
    table = tmp_path / "latents.csv"
    table.write_text("name,bytes,length\ndeep/knot,100,5\npipe,200,\ntorus,300,6\n")
    assert [(p.latent_bytes, p.latent_length) for p in with_latents(pairs, str(table))] == [
        (100, 5),
        (200, None),
        (300, 6),
    ]
    table = tmp_path / "latents.json"
    table.write_text(json.dumps({"deep/knot": 1, "pipe": {"bytes": 2, "length": 3}, "torus": 4}))
    assert [p.latent_bytes for p in with_latents(pairs, str(table))] == [1, 2, 4]
    table.write_text(json.dumps({"pipe": 1}))
    with pytest.raises(PairError, match="no latent bytes for deep/knot, torus"):
        with_latents(pairs, str(table))
    table.write_text("[1, 2]")
    with pytest.raises(PairError, match="expected the latents' bytes"):
        with_latents(pairs, str(table))
    with pytest.raises(PairError, match="expected a number of bytes"):
        with_latents(pairs, "a lot")


def test_files_and_resume(folders, tmp_path) -> None:
    pairs = with_latents(find_pairs(*folders), "2048")
    (folders[0] / "pipe.stl").write_bytes(b"not a mesh")
    output = tmp_path / "out"
    report = evaluate_pairs(pairs, output, QUICK, seed=7)
    assert [r["status"] for r in report.records] == ["ok", "failed", "ok"]
    assert "pipe.stl" in report.records[1]["reason"]

    one = json.loads((output / "shapes" / "deep" / "knot.json").read_text())
    assert one["status"] == "ok"
    assert one["latent_bytes"] == 2048
    assert one["settings"]["seed"] == 7
    assert one["settings"]["fastshape"] == __version__
    assert one["settings"]["box"] == "cube"
    assert one["settings"]["num_samples"] == 500
    assert one["values"]["chamfer_l1"] == report.records[0]["values"]["chamfer_l1"]
    assert one["files"]["target"]["faces"] == geometry.load(folders[1] / "deep" / "knot.ply").num_faces

    rows = list(csv.DictReader(io.StringIO((output / "shapes.csv").read_text())))
    assert [row["name"] for row in rows] == ["deep/knot", "pipe", "torus"]
    assert float(rows[2]["chamfer_l1"]) == report.records[2]["values"]["chamfer_l1"]
    assert float(rows[2]["floor:chamfer_l1"]) == report.records[2]["floor"]["chamfer_l1"]
    assert rows[1]["chamfer_l1"] == ""
    assert rows[1]["status"] == "failed"
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["pairs"], summary["failed"]) == (3, 1)
    assert [group["group"] for group in summary["groups"]] == ["watertight"]
    assert summary["groups"][0]["latent_bytes"] == 2048
    assert len(summary["shapes"]) == 3

    # Again: what was compared is taken over, what failed is tried again, and the files are the same bytes.
    before = {name: (output / name).read_bytes() for name in ("shapes.csv", "summary.json")}
    again = evaluate_pairs(pairs, output, QUICK, seed=7, resume=True)
    assert again.reused == 2
    assert {name: (output / name).read_bytes() for name in before} == before
    # Another seed, another file, another group: compared anew.
    assert evaluate_pairs(pairs, output, QUICK, seed=8, resume=True).reused == 0
    geometry.save(shapes.torus(segments=25), folders[0] / "torus.stl")
    assert evaluate_pairs(pairs, output, QUICK, seed=8, resume=True).reused == 1
    assert evaluate_pairs(pairs, output, QUICK, seed=8, resume=True, group="raw").reused == 0
    (output / "shapes" / "torus.json").write_text("{")
    assert evaluate_pairs(pairs, output, QUICK, seed=8, resume=True, group="raw").reused == 1


def test_a_stopped_run_goes_on(folders, tmp_path) -> None:
    pairs = find_pairs(*folders)

    def stop(record: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_pairs(pairs, tmp_path / "out", QUICK, on_item=stop)
    assert not (tmp_path / "out" / "summary.json").exists()
    report = evaluate_pairs(pairs, tmp_path / "out", QUICK, resume=True)
    assert report.reused == 1
    evaluate_pairs(pairs, tmp_path / "whole", QUICK)
    for name in ("shapes.csv", "summary.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_options_reach_the_protocol(folders) -> None:
    pairs = find_pairs(folders[0] / "torus.stl", folders[1] / "torus.ply")
    started: list[str] = []
    report = evaluate_pairs(
        pairs,
        preset="triposf",
        num_samples=300,
        sharp_normals=False,
        group="visible",
        on_start=lambda pair: started.append(pair.name),
    )
    assert started == ["torus"]
    assert report.settings["preset"] == "triposf"
    assert (report.protocol.num_samples, report.protocol.box, report.protocol.sharp_views) == (300, "unit", 0)
    assert report.records[0]["group"] == "visible"


def record(name: str, value: float, group: str = "raw", level: int = 1, **more) -> dict:
    return {
        "name": name,
        "status": "ok",
        "reason": "",
        "group": group,
        "level": level,
        "inside_is_clear": True,
        "latent_bytes": None,
        "latent_length": None,
        "values": {"chamfer_l1": value, "volume_iou": 0.5, "fscore@0.02": 1 - value},
        "floor": {"chamfer_l1": value / 2},
        **more,
    }


def test_statistics_by_hand() -> None:
    records = [
        record("a", 1.0),
        record("b", 2.0),
        record("c", 6.0, level=2, inside_is_clear=False),
        record("d", 100.0, group="watertight", latent_bytes=64),
        {**record("e", 1000.0), "status": "failed"},
    ]
    raw, watertight = summarize(records)
    assert (raw.group, raw.count, watertight.group, watertight.count) == ("raw", 3, "watertight", 1)
    found = raw.statistics["chamfer_l1"]
    assert found.mean == pytest.approx(3)
    assert found.std == pytest.approx(7**0.5)
    assert found.floor == pytest.approx(1.5)
    assert found.interval is not None
    assert 1 <= found.interval[0] < 3 < found.interval[1] <= 6
    assert raw.statistics["volume_iou"].count == 2  # not that of c, which has no clear inside
    assert raw.unclear == ("c",)
    assert raw.levels[1][0] == 2
    assert raw.levels[1][1]["chamfer_l1"].mean == pytest.approx(1.5)
    assert raw.levels[2][1]["chamfer_l1"].mean == pytest.approx(6)
    assert watertight.statistics["chamfer_l1"].interval is None
    assert watertight.latent_bytes == 64
    assert raw.latent_bytes is None
    assert [r["name"] for r in worst(records, "chamfer_l1", 2)] == ["d", "c"]
    assert [r["name"] for r in worst(records, "fscore@0.02", 1)] == ["d"]
    assert larger_is_better("near_accuracy")
    assert not larger_is_better("prediction_to_surface_max")


def test_the_bootstrap_covers_the_mean() -> None:
    """Of 400 samples of 40 shapes each, about 95 in 100 intervals hold the true mean."""
    draws = torch.randn(400, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    true = 2.718281828459045**0.5
    held = 0
    for row in draws.tolist():
        interval = bootstrap_interval(row, resamples=400)
        assert interval is not None
        held += interval[0] <= true <= interval[1]
    assert 0.86 <= held / 400 <= 0.97  # skewed: a little too narrow
    assert bootstrap_interval([1.0, 2.0, 3.0], seed=3) == bootstrap_interval([1.0, 2.0, 3.0], seed=3)
    assert bootstrap_interval([4.0, 4.0]) == (4.0, 4.0)
    assert bootstrap_interval([4.0]) is None


def test_json_that_every_reader_takes() -> None:
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf"), 1.5], 3: (1,)})) == {
        "a": None,
        "b": [None, 1.5],
        "3": [1],
    }


def test_rows_of_the_table(folders) -> None:
    report = evaluate_pairs(find_pairs(*folders), preset=QUICK)
    for summary in report.summaries():
        rows = table_rows(summary, report.protocol)
        assert [row.label for row in rows[:2]] == ["CD-L1", "F@.02 x100"]
        assert [row.own for row in rows[:3]] == [True, True, False]
        assert rows[0].mean == f"{summary.statistics['chamfer_l1'].mean:.4f}"
        assert rows[1].mean == f"{100 * summary.statistics['fscore@0.02'].mean:.2f}"
        labels = [row.label for row in rows]
        assert len(labels) == len(set(labels))
        assert {"normal consistency |cos|", "F@.001"} <= set(labels)
        assert ("volume IoU" in labels) == (summary.group == "watertight")  # the pipe has no clear inside


class Page(HTMLParser):
    """Checks that tags are balanced and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.stack.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_is_one_file(folders, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    (folders[0] / "pipe.stl").write_bytes(b"<b>&")
    report = evaluate_pairs(with_latents(find_pairs(*folders), "2048"), preset=QUICK)
    pictures = draw_pairs(report, 1, size=48)
    assert list(pictures) == [worst(report.records, "chamfer_l1", 1)[0]["name"]]
    path = tmp_path / "index.html"
    write_page(report, path, pictures, title="<mine> & yours")
    text = path.read_text()
    page = Page()
    page.feed(text)
    assert page.stack == []
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert len(page.loads) == 1
    assert image.open(io.BytesIO(base64.b64decode(page.loads[0].split(",")[1]))).size[0] > 4 * 48
    assert "<script" not in text
    assert "http" not in text
    assert "&lt;mine&gt; &amp; yours" in text
    for word in (
        "quick",
        "seed 0",
        "2,048 bytes",
        "2 of 3 pairs compared, 1 failed",
        "pipe.stl",
        "deep/knot",
    ):
        assert word in text, word
    assert "<img" not in html_page(report, {})


def test_pictures_of_the_worst_and_of_others(folders) -> None:
    report = evaluate_pairs(find_pairs(*folders), preset=QUICK)
    many = [record(f"s{i:02}", float(i)) for i in range(20)]
    chosen = [r["name"] for r in chosen_for_pictures(type(report)({}, QUICK, many), 6)]
    assert chosen == ["s19", "s18", "s17", "s11", "s06", "s00"]
    assert len(chosen_for_pictures(type(report)({}, QUICK, many), 50)) == 20


def test_colors() -> None:
    colors = heat_color(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 7.0]))
    light = colors @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert bool((light[1:5].diff() < 0).all())
    assert torch.equal(colors[4], colors[5])
    assert [nice_limit(v) for v in (0.011, 0.02, 0.3, 7, 0)] == pytest.approx([0.02, 0.02, 0.5, 10, 1e-3])


def test_names_of_any_bytes(tmp_path) -> None:
    sphere = shapes.torus(segments=12)
    name = os.fsdecode(b"a\xff")
    for side in ("p", "t"):
        (tmp_path / side).mkdir()
        geometry.save(sphere, tmp_path / side / f"{name}.obj")
        os.symlink(".", tmp_path / side / "loop")  # the folder within itself
    pairs = find_pairs(tmp_path / "p", tmp_path / "t")
    assert [pair.name for pair in pairs] == [name]
    report = evaluate_pairs(pairs, tmp_path / "out", QUICK)
    assert report.records[0]["status"] == "ok"
    assert evaluate_pairs(pairs, tmp_path / "out", QUICK, resume=True).reused == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["shapes"][0]["name"] == name
    assert "a\\udcff," in (tmp_path / "out" / "shapes.csv").read_text("utf-8")
    write_page(report, tmp_path / "page.html", {})
    assert "a\\udcff" in (tmp_path / "page.html").read_text("utf-8")


def test_resume_sees_the_buffers_of_gltf(tmp_path) -> None:
    for side, size in (("p", 1.0), ("t", 1.1)):
        (tmp_path / side).mkdir()
        corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]) * size
        (tmp_path / side / "a.bin").write_bytes(corners.numpy().tobytes())
        document = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
            "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
            "bufferViews": [{"buffer": 0, "byteLength": 36}],
            "buffers": [{"uri": "a.bin", "byteLength": 36}],
        }
        (tmp_path / side / "a.gltf").write_text(json.dumps(document))
    pairs = find_pairs(tmp_path / "p", tmp_path / "t")
    assert evaluate_pairs(pairs, tmp_path / "out", QUICK).records[0]["status"] == "ok"
    assert evaluate_pairs(pairs, tmp_path / "out", QUICK, resume=True).reused == 1
    (tmp_path / "p" / "a.bin").write_bytes((corners * 0.5).numpy().tobytes())
    assert evaluate_pairs(pairs, tmp_path / "out", QUICK, resume=True).reused == 0


def test_resume_sees_the_group_that_a_list_gives_and_the_page_escapes_names(folders, tmp_path) -> None:
    name = "<b>&torus"
    pair = Pair(name, folders[0] / "torus.stl", folders[1] / "torus.ply", group="raw")
    evaluate_pairs([pair], tmp_path / "out", QUICK)
    assert evaluate_pairs([pair], tmp_path / "out", QUICK, resume=True).reused == 1
    other = evaluate_pairs([replace(pair, group="visible")], tmp_path / "out", QUICK, resume=True)
    assert (other.reused, other.records[0]["group"]) == (0, "visible")
    page = html_page(other, {name: b""}, title=name)
    assert name not in page
    assert page.count("&lt;b&gt;&amp;torus") >= 4  # title, heading, figure, row
