"""The layers hold: who may import whom in Python, who may include whom in C++, and the stub is the module.

csrc/core  <-  csrc/<family>  <-  csrc/bindings
_C  <-  _library  <-  ops  <-  nn  <-  models  <-  checkpoints, train, pipelines  <-  cli
ops  <-  geometry  <-  models          ops  <-  losses  <-  train, fit
runtime imports nothing of the package  <-  models and all above, fit
reference and flow import torch only; only tests and benchmarks import reference
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each part may import of the package. A part that is not here breaks the test: place it first.
ALLOWED: dict[str, set[str]] = {
    "_C": set(),
    "_library": {"_C"},
    "ops": {"_library"},
    "nn": {"ops"},
    "geometry": {"ops"},
    "losses": {"ops"},
    "flow": set(),
    "reference": set(),
    "runtime": set(),
    "models": {"nn", "ops", "geometry", "runtime"},
    "checkpoints": {"models", "nn", "ops", "geometry", "runtime"},
    "train": {"models", "nn", "ops", "geometry", "losses", "flow", "checkpoints", "runtime"},
    "fit": {"ops", "geometry", "losses", "runtime"},
    "pipelines": {"models", "nn", "ops", "geometry", "checkpoints", "flow", "runtime"},
    "cli": {
        *("pipelines", "train", "checkpoints", "models", "nn", "ops", "geometry", "losses", "flow", "fit"),
        "runtime",
    },
    "testing": {"_C", "_library", "ops"},
    "__main__": {"cli"},
}
# ``fastshape/__init__.py`` itself takes the version from the extension module and loads the rest lazily.
ALLOWED["__init__"] = {"_C", *ALLOWED} - {"__init__", "__main__", "testing", "_library", "reference"}
TORCH_ONLY = ("flow", "reference")
# The command line also reports what the extension module was built with. ``from_official`` of a model hands
# over to its checkpoint map when it is called.
EXCEPTIONS: dict[str, set[str]] = {"cli": {"_C"}, "models": {"checkpoints"}}


def imported_modules(source: str, module: str, is_package: bool) -> set[str]:
    """The full names of everything a module imports, at any depth; relative imports resolved."""
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            found.add(node.args[0].value)
    return found


def part_of(name: str) -> str | None:
    """``fastshape.ops.sampling`` is of part ``ops``; None for another package or for fastshape itself."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "fastshape" and len(pieces) > 1 else None


def python_violations(package: Path) -> list[str]:
    """Every import of a package tree that the layers do not allow."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        pieces = path.relative_to(package).with_suffix("").parts
        part = pieces[0]
        is_package = pieces[-1] == "__init__"
        module = ".".join(["fastshape", *(pieces[:-1] if is_package else pieces)])
        where = path.relative_to(package).as_posix()
        if part not in ALLOWED:
            wrong.append(f"{where}: {part} has no place in the layers")
            continue
        known = {*ALLOWED, "_C"}
        for name in sorted(imported_modules(path.read_text(), module, is_package)):
            top = name.split(".")[0]
            target = part_of(name)
            if target is not None and target in known and target != part:
                if target not in ALLOWED[part] | EXCEPTIONS.get(part, set()):
                    wrong.append(f"{where}: {part} imports {target} ({name})")
            elif part in TORCH_ONLY and top not in {"torch", "fastshape", *sys.stdlib_module_names}:
                wrong.append(f"{where}: {part} imports {name}; it may import torch only")
    return wrong


INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
PYTHON_HEADERS = re.compile(r"^(Python\.h|pybind11/|torch/|ATen/|c10/)|(^|/)dlpack")


def include_violations(csrc: Path) -> list[str]:
    """Every include of a source tree that the layers do not allow."""
    wrong = []
    folders = {path.name for path in csrc.iterdir() if path.is_dir()}
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
            continue
        where = path.relative_to(csrc)
        part = where.parts[0]
        for bracket, name in INCLUDE.findall(path.read_text()):
            if part != "bindings" and PYTHON_HEADERS.search(name) and where.name != "tensor_view.cpp":
                wrong.append(f"{where.as_posix()}: {name} outside bindings")
            if bracket == "<":
                continue
            target = Path(name).parts[0]
            if target not in folders:
                beside = (path.parent / name).resolve()
                if not beside.is_relative_to(csrc.resolve()):
                    wrong.append(f"{where.as_posix()}: {name} is outside csrc")
                    continue
                target = beside.relative_to(csrc.resolve()).parts[0]
            if target == part or part == "bindings":
                continue
            if target != "core":
                wrong.append(f"{where.as_posix()}: {part} includes {target} ({name})")
        if path.suffix in (".cu", ".cuh") and part != "core" and "__shared__" in path.read_text():
            wrong.append(f"{where.as_posix()}: a __shared__ variable; use shared_memory<S>()")
    return wrong


# ---- The tree as it is -------------------------------------------------------------------------------------


def test_python_imports() -> None:
    package = ROOT / "python" / "fastshape"
    if not package.is_dir():
        pytest.skip("no source tree")
    assert python_violations(package) == []


def test_includes() -> None:
    csrc = ROOT / "csrc"
    if not csrc.is_dir():
        pytest.skip("no source tree")
    assert include_violations(csrc) == []


# ---- Planted violations: the test must see them ------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("models/vecset.py", "from fastshape import _C\n", "models imports _C"),
        ("models/vecset.py", "import fastshape._C as c\n", "models imports _C"),
        ("models/vecset.py", "from .._library import define\n", "models imports _library"),
        ("models/vecset.py", "def f():\n    from fastshape.train import fit\n", "models imports train"),
        ("models/vecset.py", "from fastshape.reference import sampling\n", "models imports reference"),
        (
            "geometry/mesh.py",
            "import importlib\nimportlib.import_module('fastshape.models')\n",
            "imports models",
        ),
        ("geometry/__init__.py", "from ..nn import layers\n", "geometry imports nn"),
        ("nn/attention.py", "from fastshape import models\n", "nn imports models"),
        ("ops/sampling.py", "from .. import geometry\n", "ops imports geometry"),
        ("flow/paths.py", "import numpy as np\n", "flow imports numpy"),
        ("flow/paths.py", "from fastshape.ops import farthest_point_sampling\n", "flow imports ops"),
        ("reference/sampling.py", "import scipy.spatial\n", "reference imports scipy.spatial"),
        ("helpers/misc.py", "", "helpers has no place"),
    ],
)
def test_planted_import(tmp_path: Path, file: str, source: str, expected: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    found = python_violations(tmp_path)
    assert any(expected in line for line in found), found


def test_allowed_imports(tmp_path: Path) -> None:
    good = {
        "__init__.py": "from fastshape._C import __version__\n",
        "_library.py": "import torch\nfrom fastshape import _C\n",
        "ops/sampling.py": "from .._library import define\nfrom . import geometry\n",
        "geometry/mesh.py": "import numpy, trimesh\nfrom fastshape import ops\nfrom .io import load\n",
        "models/vecset.py": "from fastshape import geometry, nn, ops\nfrom fastshape.nn.layers import MLP\n",
        "flow/paths.py": "import math\nimport torch\nfrom .samplers import euler\n",
        "cli/__init__.py": "from fastshape.pipelines import reconstruct\n",
    }
    for file, source in good.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    # `from . import geometry` inside ops is ops/geometry.py, not fastshape.geometry.
    assert python_violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("sampling/a_cpu.cpp", '#include "geometry/bvh.h"\n', "sampling includes geometry"),
        ("sampling/a_cpu.cpp", '#include "../geometry/bvh.h"\n', "sampling includes geometry"),
        ("core/a.h", '#include "sampling/a.h"\n', "core includes sampling"),
        ("geometry/bvh.h", '#include "bindings/tensor.h"\n', "geometry includes bindings"),
        ("geometry/bvh.h", "#include <pybind11/pybind11.h>\n", "outside bindings"),
        ("geometry/bvh_cuda.cu", "#  include <torch/extension.h>\n", "outside bindings"),
        ("geometry/bvh_cuda.cu", "__shared__ float x[4];\n", "__shared__"),
    ],
)
def test_planted_include(tmp_path: Path, file: str, source: str, expected: str) -> None:
    for folder in ("core", "sampling", "geometry", "bindings"):
        (tmp_path / folder).mkdir()
    (tmp_path / "geometry" / "bvh.h").touch()
    (tmp_path / file).write_text(source)
    found = include_violations(tmp_path)
    assert any(expected in line for line in found), found


def test_allowed_includes(tmp_path: Path) -> None:
    good = {
        "core/check.h": "#include <string>\n",
        "core/cuda_utils.cuh": '#include "core/emulation/fibers.h"\n',
        "sampling/a.h": '#include "core/check.h"\n',
        "sampling/a_cpu.cpp": '#include "sampling/a.h"\n#include "a.h"\n',
        "bindings/sampling.cpp": '#include <pybind11/pybind11.h>\n#include "sampling/a.h"\n',
    }
    for file, source in good.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert include_violations(tmp_path) == []


# ---- The stub is the module --------------------------------------------------------------------------------


def stub_functions(source: str) -> dict[str, list[str]]:
    """Function names of a stub with their argument names."""
    return {
        node.name: [
            argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        ]
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }


def stub_attributes(source: str) -> set[str]:
    return {
        node.target.id
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def bound_arguments(function: object) -> list[str] | None:
    """The argument names in a bound function's own signature line; None where it names none (overloads)."""
    text = inspect.getdoc(function) or ""
    name = getattr(function, "__name__", "")
    match = re.match(rf"{re.escape(name)}\((.*?)\)(?: -> .*)?$", text.splitlines()[0] if text else "")
    if match is None:
        return None
    # Commas inside brackets belong to types, not to the argument list.
    depth, pieces, current = 0, [], ""
    for letter in match[1]:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            pieces.append(current)
            current = ""
        else:
            current += letter
    pieces.append(current)
    names = [piece.split(":")[0].split("=")[0].strip() for piece in pieces if piece.strip()]
    return [n for n in names if n not in ("*", "/")]


def test_stub_is_the_module() -> None:
    from fastshape import _C

    stub = Path(_C.__file__ or "").parent / "_C.pyi"
    if not stub.exists():
        stub = ROOT / "python" / "fastshape" / "_C.pyi"
    source = stub.read_text()
    functions, attributes = stub_functions(source), stub_attributes(source)
    public = {name for name in dir(_C) if not name.startswith("_")}
    bound = {name for name in public if callable(getattr(_C, name))}
    assert bound == set(functions), "functions of _C and of _C.pyi"
    assert public - bound == attributes - {"__version__"}, "attributes of _C and of _C.pyi"
    for name in sorted(bound):
        arguments = bound_arguments(getattr(_C, name))
        assert arguments is not None, f"_C.{name} has no signature: overloads are not used here"
        assert arguments == functions[name], f"arguments of _C.{name} and of its stub"


def test_bound_arguments_reads_a_signature_line() -> None:
    def f() -> None:
        """f(points: fastshape.Tensor, sizes: dict[str, tuple[int, int]], count: int = 3) -> None"""

    assert bound_arguments(f) == ["points", "sizes", "count"]


def test_every_operator_is_registered_by_ops() -> None:
    """Only ops (and testing) call _library, so that `grep` for an operator's name shows its whole path."""
    package = ROOT / "python" / "fastshape"
    if not package.is_dir():
        pytest.skip("no source tree")
    callers = {
        path.relative_to(package).parts[0].removesuffix(".py")
        for path in package.rglob("*.py")
        if any(
            part_of(name) == "_library"
            for name in imported_modules(
                path.read_text(),
                ".".join(["fastshape", *path.relative_to(package).with_suffix("").parts]),
                path.name == "__init__.py",
            )
        )
    }
    assert callers <= {"ops", "testing"}
