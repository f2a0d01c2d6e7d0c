"""Adapters to other people's code, used where it is installed or named by ``--peer NAME=PATH``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_paths: dict[str, Path] = {}


def add_path(argument: str) -> None:
    """Take one ``NAME=PATH`` of the command line; PATH is a Python file or the folder of a package."""
    name, separator, path = argument.partition("=")
    if not separator or not name or not path:
        raise ValueError(f"--peer takes NAME=PATH, got {argument!r}")
    resolved = Path(path).expanduser().resolve()
    if not resolved.exists():
        raise ValueError(f"--peer {name}: there is no {resolved}")
    _paths[name] = resolved


def path(name: str) -> Path | None:
    """The path given for a peer, or None."""
    return _paths.get(name)


def load(name: str) -> ModuleType | None:
    """The module at the path given for a peer, None without one. A folder is a package."""
    found = path(name)
    if found is None:
        return None
    module_name = f"benchmark_peer_{name}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    file = found / "__init__.py" if found.is_dir() else found
    search = [str(found)] if found.is_dir() else None
    spec = importlib.util.spec_from_file_location(module_name, file, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise ImportError(f"--peer {name}: {file} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(file.parent))  # for the files beside it that it imports
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def installed(name: str) -> ModuleType | None:
    """The installed module of that name, or None where it is missing or cannot be loaded on this machine."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None
