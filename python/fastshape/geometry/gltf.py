"""glTF 2.0 and its binary form GLB: the triangles of the default scene, and nothing else of it.

What would leave triangles out without a word is refused: compressed or instanced geometry, accessors that
reach beyond their buffer. Points and lines, and skins, are noted.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from fastshape.geometry.raw import MeshError, RawMesh, bake

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
_MAX_FACES = 1 << 28  # of all instances together
_MAX_SPARSE = 1 << 26


def read_gltf(path: Path, data: bytes) -> RawMesh:
    try:
        document, binary = _open(path, data)
        return _Reader(path, document, binary).mesh()
    except MeshError:
        raise
    except Exception as error:  # a document that is not what its schema says: anything can come
        detail = " ".join(str(error).split())[:120]
        kind = path.suffix[1:].upper()
        raise MeshError(path, f"not a readable {kind} file ({type(error).__name__}: {detail})") from error


def _open(path: Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk."""
    if path.suffix.lower() == ".gltf":
        return json.loads(data), b""
    if data[:4] != b"glTF" or len(data) < 12:
        raise MeshError(path, f"expected a file that starts with glTF, got {data[:4]!r}")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise MeshError(path, f"expected glTF version 2, got {version}")
    if length > len(data):
        raise MeshError(path, f"{len(data)} bytes read, file says {length}: a truncated GLB file")
    document, binary, at = None, b"", 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        chunk = data[at + 8 : at + 8 + size]
        if len(chunk) < size:
            raise MeshError(path, f"{len(chunk)} bytes of a chunk of {size} read: a truncated GLB file")
        if kind == b"JSON" and document is None:
            document = json.loads(chunk)
        elif kind == b"BIN\0" and not binary:
            binary = chunk
        at += 8 + size
    if not isinstance(document, dict):
        raise MeshError(path, "expected a chunk of JSON in the GLB file, got none")
    return document, binary


class _Reader:
    def __init__(self, path: Path, document: dict[str, Any], binary: bytes) -> None:
        self.path, self.document, self.binary = path, document, binary
        self.buffers: dict[int, bytes] = {}
        self.meshes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.others = 0  # primitives that are points or lines

    def mesh(self) -> RawMesh:
        missing = set(self.document.get("extensionsRequired", ())) & set(_COMPRESSED)
        if missing:
            raise self._compressed(min(missing))
        vertices: list[np.ndarray] = []
        faces: list[np.ndarray] = []
        num_vertices = num_faces = skinned = 0
        for number, node, matrix in self._nodes():
            if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
                what = f"node {number} has instances (EXT_mesh_gpu_instancing)"
                raise MeshError(self.path, f"{what}: not supported")
            if "mesh" not in node:
                continue
            points, triangles = self._mesh(node["mesh"])
            if not len(triangles):
                continue
            num_faces += len(triangles)
            if num_faces > _MAX_FACES:
                raise MeshError(self.path, f"more than {_MAX_FACES} triangles with all instances")
            skinned += "skin" in node
            name = str(node.get("name", number))[:40]
            moved, triangles = bake(self.path, f"of node '{name}'", points, triangles, matrix)
            vertices.append(moved)
            faces.append(triangles + num_vertices)
            num_vertices += len(moved)
        if not faces:
            what = f"only {self.others} primitives of points or lines" if self.others else "an empty scene"
            raise MeshError(self.path, f"expected triangles, got {what}")
        raw = RawMesh.of_triangles(np.concatenate(vertices), np.concatenate(faces))
        if self.others:
            raw.notes.append(f"{self.others} primitives of points or lines ignored")
        if skinned:
            raw.notes.append(f"{skinned} skinned meshes in the pose they are stored in")
        return raw

    def _nodes(self) -> list[tuple[int, dict[str, Any], np.ndarray]]:
        """Number, content and transform of all nodes of the default scene."""
        nodes = self.document.get("nodes", [])
        scenes = self.document.get("scenes", [])
        if scenes:
            roots = list(scenes[self.document.get("scene", 0)].get("nodes", []))
        else:
            children = {child for node in nodes for child in node.get("children", ())}
            roots = [number for number in range(len(nodes)) if number not in children]
        found, seen = [], set()
        todo = [(number, np.eye(4)) for number in reversed(roots)]
        while todo:
            number, above = todo.pop()
            if number in seen or number < 0:
                raise MeshError(self.path, f"node {number} is in the scene twice")
            seen.add(number)
            node = nodes[number]
            matrix = above @ _local(node)
            found.append((number, node, matrix))
            todo += [(child, matrix) for child in reversed(node.get("children", ()))]
        return found

    def _mesh(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self.meshes:
            points, faces, offset = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.int64)], 0
            for at, primitive in enumerate(self.document["meshes"][number]["primitives"]):
                compressed = set(primitive.get("extensions", {})) & set(_COMPRESSED)
                if compressed:
                    raise self._compressed(min(compressed))
                mode = primitive.get("mode", 4)
                if mode not in (4, 5, 6) or "POSITION" not in primitive["attributes"]:
                    self.others += 1
                    continue
                place = self._accessor(primitive["attributes"]["POSITION"], "VEC3")
                indices = (
                    self._accessor(primitive["indices"], "SCALAR")[:, 0].astype(np.int64)
                    if "indices" in primitive
                    else np.arange(len(place))
                )
                if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(place):
                    raise MeshError(
                        self.path,
                        f"primitive {at} of mesh {number} has the vertex index {indices.max()}, "
                        f"expected 0 to {len(place) - 1}",
                    )
                points.append(place)
                faces.append(self._triangles(indices, mode) + offset)
                offset += len(place)
            self.meshes[number] = np.concatenate(points), np.concatenate(faces)
        return self.meshes[number]

    def _triangles(self, indices: np.ndarray, mode: int) -> np.ndarray:
        if mode == 4:
            if len(indices) % 3:
                raise MeshError(self.path, f"{len(indices)} indices are not whole triangles")
            return indices.reshape(-1, 3)
        if len(indices) < 3:
            return np.zeros((0, 3), np.int64)
        if mode == 6:
            first = np.full(len(indices) - 2, indices[0])
            return np.stack([indices[1:-1], indices[2:], first], 1)
        strip = np.stack([indices[:-2], indices[1:-1], indices[2:]], 1)
        strip[1::2] = strip[1::2][:, [0, 2, 1]]
        return strip

    def _accessor(self, number: int, kind: str) -> np.ndarray:
        """(count, width) in the file's own type; normalized integers as float64."""
        accessor = self.document["accessors"][number]
        component, count = np.dtype(_TYPES[accessor["componentType"]]), int(accessor["count"])
        if accessor["type"] != kind or count < 0:
            raise MeshError(self.path, f"accessor {number} is {accessor['type']}, expected {kind}")
        width = _WIDTHS[kind]
        if "bufferView" in accessor:
            values = self._view(
                accessor["bufferView"], accessor.get("byteOffset", 0), component, count, width
            )
        elif "sparse" in accessor and count <= _MAX_SPARSE:
            values = np.zeros((count, width), component)
        else:
            raise MeshError(self.path, f"accessor {number} has no data")
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            at, new = sparse["indices"], sparse["values"]
            places = self._view(
                at["bufferView"],
                at.get("byteOffset", 0),
                np.dtype(_TYPES[at["componentType"]]),
                int(sparse["count"]),
                1,
            )
            values = values.copy()
            values[places[:, 0]] = self._view(
                new["bufferView"], new.get("byteOffset", 0), component, int(sparse["count"]), width
            )
        if accessor.get("normalized") and component.kind in "iu":
            return np.maximum(values / np.iinfo(component).max, -1.0)
        return values

    def _view(self, number: int, offset: int, component: np.dtype[Any], count: int, width: int) -> np.ndarray:
        view = self.document["bufferViews"][number]
        compressed = set(view.get("extensions", {})) & set(_COMPRESSED)
        if compressed:
            raise self._compressed(min(compressed))
        buffer = self._buffer(view["buffer"])
        size = component.itemsize * width
        stride = int(view.get("byteStride") or size)
        start = int(view.get("byteOffset", 0)) + int(offset)
        end = int(view.get("byteOffset", 0)) + int(view["byteLength"])
        need = start + stride * (count - 1) + size if count else start
        if min(start, stride, count) < 0 or need > end or need > len(buffer) or int(offset) < 0:
            raise MeshError(
                self.path,
                f"buffer view {number} ends at byte {min(end, len(buffer))}, its data at {need}: truncated",
            )
        return np.ndarray((count, width), component, buffer, start, (stride, component.itemsize))

    def _buffer(self, number: int) -> bytes:
        if number not in self.buffers:
            uri = self.document["buffers"][number].get("uri")
            if uri is None:
                data = self.binary
            elif uri.startswith("data:"):
                data = base64.b64decode(uri.partition(",")[2], validate=True)
            elif "://" in uri:
                raise MeshError(self.path, f"buffer {number} is on the network: {uri[:60]}")
            else:
                file = self.path.parent / unquote(uri)
                if not file.is_file():
                    raise MeshError(self.path, f"its buffer {unquote(uri)[:80]} does not exist")
                data = file.read_bytes()
            self.buffers[number] = data
        return self.buffers[number]

    def _compressed(self, extension: str) -> MeshError:
        what = f"compressed geometry ({extension})"
        return MeshError(self.path, f"{what} is not supported; save it uncompressed")


def _local(node: dict[str, Any]) -> np.ndarray:
    """A node's own transform."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    length = x * x + y * y + z * z + w * w
    s = 2 / length if length > 0 else 0.0
    matrix[:3, :3] = [
        [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
        [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
        [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64).reshape(3)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def write_glb(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    places = vertices.astype("<f4")
    kind, code = ("<u2", 5123) if len(vertices) < 1 << 16 else ("<u4", 5125)
    if len(vertices) >= 1 << 32:
        raise ValueError("a GLB file holds fewer than 2^32 vertices")
    corners = faces.astype(kind).tobytes()
    binary = places.tobytes() + corners
    document = {
        "asset": {"version": "2.0", "generator": "fastshape"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": len(vertices),
                "type": "VEC3",
                "min": places.min(0).astype(float).tolist(),
                "max": places.max(0).astype(float).tolist(),
            },
            {"bufferView": 1, "componentType": code, "count": faces.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": places.nbytes, "target": 34962},
            {"buffer": 0, "byteOffset": places.nbytes, "byteLength": len(corners), "target": 34963},
        ],
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    if length >= 1 << 32:
        raise ValueError("a GLB file holds fewer than 2^32 bytes; write PLY")
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, length) + chunks
