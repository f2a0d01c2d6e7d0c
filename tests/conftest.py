"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastshape import testing

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-backends",
        default="",
        help="back ends (cpu,emulated,cuda) that must be here: a missing one is an error, not a skip",
    )
    parser.addoption("--emulated", default="build/emulated", help="the folder of the emulated module's build")


def pytest_configure(config: pytest.Config) -> None:
    testing.load_emulated(config.rootpath / config.getoption("--emulated"))


def pytest_sessionstart(session: pytest.Session) -> None:
    for name in filter(None, session.config.getoption("--require-backends").split(",")):
        reason = testing.missing_backend(name)
        if reason is not None:
            pytest.exit(f"back end {name} is required: {reason}", returncode=3)


@pytest.fixture(params=testing.BACKENDS)
def backend(request: pytest.FixtureRequest):
    """cpu, the CUDA kernels emulated on the CPU, and cuda where there is a GPU; active during the test."""
    reason = testing.missing_backend(request.param)
    if reason is not None:
        pytest.skip(reason)
    with testing.Backend(request.param) as active:
        yield active


@pytest.fixture(scope="session", params=("cpu", "cuda"))
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one: for models, whose kernels are tested elsewhere."""
    reason = testing.missing_backend(request.param)
    if reason is not None:
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture(params=testing.instruction_sets())
def instruction_set(request: pytest.FixtureRequest):
    with testing.instruction_set(request.param):
        yield request.param


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN
