"""The binding reads tensors without torch: what it cannot use it refuses with a message, and never crashes.

Called straight, past the operator and its own checks, as a framework author might.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastshape
from fastshape import _C, testing


def call(points, indices=None):
    clouds = torch.tensor([[0], [4], [2], [0], [0]])
    indices = torch.full((1, 2), -1) if indices is None else indices
    _C.farthest_point_sampling(points, clouds, 2, None, indices, None)
    return indices


def good_points():
    return torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [2, 0, 0]]])


def fake_points():
    with FakeTensorMode():
        return torch.rand(1, 4, 3)


def test_a_good_tensor_is_read():
    assert call(good_points()).tolist() == [[0, 2]]


def test_axes_of_size_one_may_have_any_stride():
    points = good_points().as_strided((1, 4, 3), (999, 3, 1))
    assert call(points).tolist() == [[0, 2]]


def test_storage_offsets_are_followed():
    points = torch.cat([torch.full((1, 1, 3), 9.0), good_points()], dim=1)[:, 1:]
    assert call(points).tolist() == [[0, 2]]


def test_subclasses_and_parameters_are_read():
    class Subclass(torch.Tensor):
        pass

    assert call(good_points().as_subclass(Subclass)).tolist() == [[0, 2]]
    assert call(torch.nn.Parameter(good_points())).tolist() == [[0, 2]]


WRONG = {
    "none": (lambda: None, TypeError, "must be a torch.Tensor.*NoneType"),
    "list": (lambda: [[0.0, 0, 0]], TypeError, "must be a torch.Tensor.*list"),
    "numpy": (lambda: good_points().numpy(), TypeError, "must be a torch.Tensor.*ndarray"),
    "fake": (fake_points, TypeError, "without storage"),
    "meta": (lambda: good_points().to("meta"), TypeError, "`points`"),
    "sparse": (lambda: good_points().to_sparse(), TypeError, "dense tensor"),
    "quantized": (
        lambda: torch.quantize_per_tensor(good_points(), 0.1, 0, torch.qint8),
        TypeError,
        "dense tensor",
    ),
    "complex": (lambda: good_points().to(torch.complex64), TypeError, "must be float32"),
    "conjugate": (lambda: good_points().to(torch.complex64).conj(), TypeError, "must be float32"),
    "half": (lambda: good_points().half(), TypeError, "must be float32, got float16"),
    "double": (lambda: good_points().double(), TypeError, "must be float32, got float64"),
    "not contiguous": (lambda: good_points().transpose(1, 2), ValueError, "must be contiguous"),
    "expanded": (lambda: torch.rand(1, 1, 3).expand(1, 4, 3), ValueError, "must be contiguous"),
    "negated": (lambda: torch._neg_view(good_points()), ValueError, "resolve_neg"),
    "shape": (lambda: torch.rand(4), ValueError, r"`points` must have shape .* got \(4,\)"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_refused(name):
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call(make())


def test_every_tensor_argument_is_checked():
    with pytest.raises(TypeError, match="`indices` must be int64, got float32"):
        call(good_points(), torch.zeros(1, 2))


# ---- The exchange table's version --------------------------------------------------------------------------


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32))


class _Table(ctypes.Structure):
    _fields_ = (("version", _Version), ("previous", ctypes.c_void_p), ("functions", ctypes.c_void_p * 5))


def forged_type(major: int, minor: int, name: bytes = b"dlpack_exchange_api"):
    """A type that offers an exchange table of another version of DLPack, as a future torch may."""
    table = _Table(_Version(major, minor), None, (ctypes.c_void_p * 5)())
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    members = {
        "__dlpack_c_exchange_api__": new_capsule(ctypes.addressof(table), name, None),
        "keep": (table, name),
    }
    return type("Forged", (), members)


@pytest.mark.parametrize("version", [(2, 0), (0, 8), (1, 1)])
def test_another_dlpack_version_is_refused(version):
    with pytest.raises(RuntimeError, match=f"Forged offers DLPack {version[0]}.{version[1]}"):
        call(forged_type(*version)())


def test_a_capsule_of_another_name_is_refused():
    with pytest.raises(TypeError, match="not a 'dlpack_exchange_api' capsule"):
        call(forged_type(1, 3, b"something_else")())


# ---- The module --------------------------------------------------------------------------------


def test_versions_agree():
    assert fastshape.__version__ == _C.__version__


def test_instruction_sets():
    with pytest.raises(ValueError, match="'portable', 'avx2' or 'avx512', got 'sse'"):
        _C.set_instruction_set("sse")
    for name in testing.instruction_sets():
        with testing.instruction_set(name):
            assert _C.instruction_set() == name


def test_import_is_light_and_silent():
    """Importing the package alone imports no torch; the models import without a warning."""
    code = "import sys, fastshape; assert 'torch' not in sys.modules; import fastshape.models"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_kernels_run_in_a_forked_child():
    """A data loader's worker is a fork: the parent's threads are not there, a lock of theirs may be."""
    code = (
        "import os, torch\n"
        "from fastshape.ops import farthest_point_sampling as sample\n"
        "torch.set_num_threads(2)\n"
        "points = torch.rand(8, 4096, 3)\n"
        "want = sample(points, 64)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(sample(points, 64), want) else 1)\n"
        "raise SystemExit(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == 0


def test_wide_instructions_stay_in_their_files():
    """An inline function compiled for AVX-512 must not become everybody's: linkers keep one copy of many."""
    archive = Path(fastshape.__file__).parent / "lib" / "libfastshape_kernels.a"
    if not archive.exists() or shutil.which("nm") is None:
        pytest.skip("needs an installed package and nm")
    listing = subprocess.run(["nm", "-A", str(archive)], capture_output=True, text=True).stdout
    wide = [line for line in listing.splitlines() if "_avx2.cpp.o" in line or "_avx512.cpp.o" in line]
    assert wide or platform.machine() not in ("x86_64", "AMD64")
    shared = [line for line in wide if re.search(r" [WVu] ", line)]
    assert shared == []
