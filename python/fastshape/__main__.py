"""``python -m fastshape``: the command line, and ``--cmake-dir`` for C++ programs."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    if sys.argv[1:] == ["--cmake-dir"]:
        print(Path(__file__).resolve().parent / "lib" / "cmake" / "fastshape")
        return 0
    from fastshape.cli import main as cli

    return cli()


if __name__ == "__main__":
    sys.exit(main())
