"""glTF: every way in which it holds triangles, and every way in which it could lose them without a word."""

import base64
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_files import CUBE_VERTICES, TRIANGLE, cube, refused, saved, write

from fastshape.geometry import Mesh, load, save, shapes

FLOAT, BYTE, SHORT, USHORT, UINT = 5126, 5120, 5122, 5123, 5125
SQUARE = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]


class Document:
    """A glTF document under construction; each array is a buffer view of one buffer."""

    def __init__(self) -> None:
        self.data = b""
        self.content = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}], "accessors": [], "bufferViews": [], "buffers": [{}],
        }  # fmt: skip

    def view(self, values, kind: str) -> int:
        data = np.asarray(values, kind).tobytes()
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.content["bufferViews"].append(view)
        self.data += data + bytes(-len(data) % 4)
        return len(self.content["bufferViews"]) - 1

    def accessor(self, values, kind="<f4", component=FLOAT, **more) -> int:
        values = np.asarray(values)
        entry = {
            "bufferView": self.view(values, kind), "componentType": component, "count": len(values),
            "type": "VEC3" if values.ndim == 2 else "SCALAR", **more,
        }  # fmt: skip
        self.content["accessors"].append(entry)
        return len(self.content["accessors"]) - 1

    def primitive(self, points, indices=None, mode=None, **more) -> dict:
        made = {"attributes": {"POSITION": self.accessor(points)}, **more}
        if indices is not None:
            made["indices"] = self.accessor(indices, "<u2", USHORT)
        if mode is not None:
            made["mode"] = mode
        self.content["meshes"][0]["primitives"].append(made)
        return made

    def gltf(self, folder: Path, uri: str | None = None) -> Path:
        if uri is None:
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
        self.content["buffers"] = [{"byteLength": len(self.data), "uri": uri}]
        return write(folder, "a.gltf", json.dumps(self.content))

    def glb(self, folder: Path) -> Path:
        self.content["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(self.content).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(self.data), b"BIN\0") + self.data
        return write(folder, "a.glb", struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def square(folder: Path, indices=None, mode=None) -> Mesh:
    document = Document()
    document.primitive(SQUARE, indices, mode)
    return load(document.glb(folder))


def test_triangles_strips_and_fans(tmp_path: Path) -> None:
    assert square(tmp_path, [0, 1, 2, 2, 1, 3]).faces.tolist() == [[0, 1, 2], [2, 1, 3]]
    strip = square(tmp_path, [0, 1, 2, 3], 5)
    assert strip.area == pytest.approx(1)
    assert strip.face_normals[:, 2].tolist() == [1, 1]
    fan = square(tmp_path, [0, 1, 3, 2], 6)
    assert fan.area == pytest.approx(1)
    assert fan.face_normals[:, 2].tolist() == [1, 1]
    assert square(tmp_path, None, 5).area == pytest.approx(1)


def test_buffers(tmp_path: Path) -> None:
    document = Document()
    document.primitive(TRIANGLE, [0, 1, 2])
    assert load(document.gltf(tmp_path)).area == 0.5
    write(tmp_path, "with space.bin", document.data)
    assert load(document.gltf(tmp_path, "with%20space.bin")).area == 0.5
    refused(document.gltf(tmp_path, "none.bin"), "its buffer none.bin does not exist")
    refused(document.gltf(tmp_path, "https://example.com/a.bin"), "buffer 0 is on the network")
    write(tmp_path, "short.bin", document.data[:-4])
    refused(document.gltf(tmp_path, "short.bin"), "truncated")


def test_strides_offsets_and_integers(tmp_path: Path) -> None:
    document = Document()
    interleaved = np.zeros((3, 6), "<f4")
    interleaved[:, 3:] = TRIANGLE
    view = document.view(interleaved, "<f4")
    document.content["bufferViews"][view]["byteStride"] = 24
    entry = {"bufferView": view, "byteOffset": 12, "componentType": FLOAT, "count": 3, "type": "VEC3"}
    document.content["accessors"].append(entry)
    document.content["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}})
    assert load(document.glb(tmp_path)).vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]

    quantized = Document()
    quantized.content["extensionsRequired"] = ["KHR_mesh_quantization"]
    places = np.array(TRIANGLE) * 32767
    position = quantized.accessor(places, "<i2", SHORT, normalized=True)
    quantized.content["meshes"][0]["primitives"].append({"attributes": {"POSITION": position}})
    assert load(quantized.glb(tmp_path)).bounds.tolist() == [[0, 0, 0], [1, 1, 0]]


def test_sparse_accessors(tmp_path: Path) -> None:
    document = Document()
    document.primitive(TRIANGLE, [0, 1, 2])
    accessor = document.content["accessors"][0]
    accessor["sparse"] = {
        "count": 1,
        "indices": {"bufferView": document.view([1], "<u2"), "componentType": USHORT},
        "values": {"bufferView": document.view([(5, 0, 0)], "<f4")},
    }
    assert load(document.glb(tmp_path)).area == 2.5
    del accessor["bufferView"]  # then all others are zero
    refused(document.glb(tmp_path), "no surface area")
    accessor["count"] = 1 << 40
    refused(document.glb(tmp_path), "accessor 0 has no data")


def test_transforms(tmp_path: Path) -> None:
    document = Document()
    document.primitive(CUBE_VERTICES, cube().faces.reshape(-1).tolist())
    half = math.sqrt(0.5)
    document.content["nodes"] = [
        {"translation": [5, 0, 0], "children": [1, 2]},
        {"mesh": 0, "rotation": [0, 0, half, half], "scale": [2, 2, 2]},
        {"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0, 0, 9, 0, 1]},
        {"mesh": 0, "scale": [1000, 1, 1]},  # in no scene
    ]
    mesh = load(document.glb(tmp_path))
    assert mesh.volume == pytest.approx(8 + 1)
    expected = torch.tensor([[3.0, 0, -1], [6, 10, 2]], dtype=torch.float64)
    torch.testing.assert_close(mesh.bounds, expected)
    del document.content["scenes"], document.content["scene"]  # then every root is shown
    assert load(document.glb(tmp_path)).num_faces == 36


def test_notes(tmp_path: Path) -> None:
    document = Document()
    document.primitive(TRIANGLE, [0, 1, 2])
    document.primitive(TRIANGLE, [0, 1], 1)
    document.content["nodes"][0]["skin"] = 0
    assert load(document.glb(tmp_path)).notes[:2] == (
        "1 primitives of points or lines ignored",
        "1 skinned meshes in the pose they are stored in",
    )
    lines = Document()
    lines.primitive(TRIANGLE, [0, 1], 1)
    refused(lines.glb(tmp_path), "expected triangles, got only 1 primitives of points or lines")


def test_what_could_lose_triangles_is_refused(tmp_path: Path) -> None:
    def bad(message: str, **changes) -> None:
        document = Document()
        primitive = document.primitive(TRIANGLE, [0, 1, 2])
        document.content |= {
            key: value for key, value in changes.items() if key in ("extensionsRequired", "nodes")
        }
        document.content["bufferViews"][0] |= changes.get("view", {})
        document.content["accessors"][0] |= changes.get("points", {})
        document.content["accessors"][1] |= changes.get("indices", {})
        primitive |= changes.get("primitive", {})
        refused(document.glb(tmp_path), message)

    draco = "compressed geometry (KHR_draco_mesh_compression) is not supported; save it uncompressed"
    bad(draco, extensionsRequired=["KHR_draco_mesh_compression"])
    bad(draco, primitive={"extensions": {"KHR_draco_mesh_compression": {}}})
    bad("(EXT_meshopt_compression)", view={"extensions": {"EXT_meshopt_compression": {}}})
    instanced = {"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {}}}
    bad("node 0 has instances", nodes=[instanced])
    bad("node 0 is in the scene twice", nodes=[{"mesh": 0, "children": [0]}])
    bad("buffer view 0 ends at byte 36, its data at 48: truncated", points={"count": 4})
    bad("truncated", points={"byteOffset": -12})
    bad("truncated", view={"byteLength": 1 << 40}, points={"count": 1 << 36})
    bad("accessor 0 is VEC2, expected VEC3", points={"type": "VEC2"})
    bad("2 indices are not whole triangles", indices={"count": 2})
    bad("not a readable GLB file (KeyError: 9999)", points={"componentType": 9999})
    bad("not a readable GLB file (IndexError", primitive={"attributes": {"POSITION": 7}})
    document = Document()
    document.primitive(TRIANGLE, [0, 1, 3])
    refused(document.glb(tmp_path), "primitive 0 of mesh 0 has the vertex index 3, expected 0 to 2")
    data = document.glb(tmp_path).read_bytes()
    refused(
        write(tmp_path, "b.glb", data[:4] + struct.pack("<I", 1) + data[8:]), "expected glTF version 2, got 1"
    )
    refused(write(tmp_path, "b.glb", struct.pack("<4sII", b"glTF", 2, 12)), "expected a chunk of JSON")


def test_written_files_are_what_others_read(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    for mesh in (cube(), shapes.torus(segments=400)):  # indices of two and of four bytes
        data = saved(tmp_path, "a.glb", mesh)
        assert data == saved(tmp_path, "b.glb", mesh)
        assert len(data) % 4 == 0
        theirs = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
        assert np.array_equal(theirs.vertices.astype(np.float32), mesh.vertices.float().numpy())
        assert np.array_equal(theirs.faces, mesh.faces.numpy())


def test_reads_what_others_write(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = shapes.torus(segments=32)
    made = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    turn = trimesh.transformations.rotation_matrix(1.0, (1, 2, 3), (0.5, 0, 0))
    scene = trimesh.Scene()
    scene.add_geometry(made, transform=turn)
    read = load(write(tmp_path, "a.glb", scene.export(file_type="glb")))
    moved = mesh.transform(torch.from_numpy(turn))
    torch.testing.assert_close(read.triangles.float(), moved.triangles, atol=1e-6, rtol=0)
    save(read, tmp_path / "b.glb")
    assert torch.equal(load(tmp_path / "b.glb").faces, read.faces)
