"""The `fastshape` command."""

from fastshape.cli.app import main as main
