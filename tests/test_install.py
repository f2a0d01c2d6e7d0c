"""The source archive, installed into a fresh environment, and a C++ program on top of what it installs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("build", "cmake", "ninja", "pybind11", "scikit_build_core")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="no source tree"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED),
        reason=f"needs {', '.join(NEEDED)} (the test extra has them)",
    ),
]


def run(*command: object, cwd: Path | None = None) -> str:
    """The output of a command; its whole output where it fails. The caller's PYTHONPATH does not leak in."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_PRELOAD")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("fastshape-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(archive: Path) -> Path:
    """The wheel that the archive builds; without CUDA, which the ordinary installation compiles."""
    folder = archive.parent
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir"),
        *("--no-index", "-C", "cmake.define.FASTSHAPE_CUDA=OFF", "-w", folder, archive),
    )
    return next(folder.glob("fastshape-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel; torch comes from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    packages = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    outer = [path for path in (*site.getsitepackages(), *sys.path) if path.endswith("site-packages")]
    (Path(packages) / "dependencies.pth").write_text("\n".join(dict.fromkeys(outer)) + "\n")
    run(interpreter, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", wheel)
    return interpreter


def test_archive_has_the_sources_and_nothing_else(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for needed in ("CMakeLists.txt", "LICENSE", "NOTICE", "README.md", "csrc/bindings/module.cpp"):
        assert needed in names
    assert "python/fastshape/_C.pyi" in names
    assert not [
        n for n in names if n.endswith((".so", ".pyc")) or n.startswith(("build/", ".ci/", ".gpu-wheels/"))
    ]


def test_wheel_has_modules_headers_and_library(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.startswith("fastshape/_C.") and n.endswith(".so") for n in names)
    assert not [n for n in names if "_C_emulated" in n or "emulation/" in n or n.startswith("tests")]
    for needed in (
        "fastshape/py.typed",
        "fastshape/_C.pyi",
        "fastshape/include/sampling/farthest_point_sampling.h",
        "fastshape/include/core/parallel.h",
        "fastshape/lib/cmake/fastshape/fastshape-config.cmake",
    ):
        assert needed in names
    assert not [n for n in names if n.startswith("fastshape/include/bindings")]
    assert any(n.startswith("fastshape/lib/libfastshape_kernels") for n in names)
    weights = ROOT / "python" / "fastshape" / "weights"
    for file in weights.rglob("*.*"):
        assert f"fastshape/weights/{file.relative_to(weights).as_posix()}" in names
    assert wheel.stat().st_size < 40 << 20


def test_module_links_no_torch(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as zipped:
        name = next(n for n in zipped.namelist() if n.startswith("fastshape/_C.") and n.endswith(".so"))
        assert b"libtorch" not in zipped.read(name)
        assert b"libc10" not in zipped.read(name)


def test_fresh_environment(python: Path, tmp_path: Path) -> None:
    program = """
import fastshape, torch
from fastshape import ops
points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [8, 0, 0]])[None]
print(fastshape.__file__)
print(ops.farthest_point_sampling(points, 3).tolist())
"""
    file, indices = run(python, "-c", program, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(python.parent.parent)
    assert indices == "[[0, 4, 3]]"


def test_command(python: Path, tmp_path: Path) -> None:
    assert "reconstruct" in run(python.parent / "fastshape", "--help", cwd=tmp_path)


def test_cpp_consumer(python: Path, tmp_path: Path) -> None:
    folder = run(python, "-m", "fastshape", "--cmake-dir", cwd=tmp_path).strip()
    source = tmp_path / "consumer"
    shutil.copytree(ROOT / "tests" / "consumer", source)
    build = tmp_path / "build"
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", f"-Dfastshape_DIR={folder}", cwd=tmp_path)
    run("cmake", "--build", build, cwd=tmp_path)
    lines = run(build / "consumer", cwd=tmp_path).split("\n")
    assert lines[:3] == ["0 inf", "4 8", "3 3"]
