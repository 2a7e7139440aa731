"""Every test keeps its state, cache and pictures in folders of its own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Engine, Request

# Read when the hub's library is first imported: no test finds what the developer has downloaded.
os.environ["HF_HUB_CACHE"] = str(Path(tempfile.gettempdir()) / "texttoimagetool-tests-have-no-hub-cache")
# Read when torch is first imported: a thread that waits for another sleeps. It would spin, and take the core from the
# app or from a second engine, which made long jobs take five times as long. No bit of a picture depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# All that an engine's process has imported when it has painted; see `engines`.
IMPORTED = [
    *("engine.job", "engine.encode", "engine.denoise", "engine.decode", "engine.latents", "engine.preview"),
    *("engine.memory.planner", "engine.memory.enforce", "engine.images.save", "tests.conftest"),
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spawned: the engine's process starts as it does for a person, from nothing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` skip where torch sees no card; torch is asked only where there is such a test."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA card"))


@pytest.fixture(scope="session")
def measured_plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo model's plan measured, once for all tests that start an engine again and again."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTTOIMAGETOOL_CACHE_DIR", str(folder))
        with Engine.open("demo", device="cpu") as engine:
            engine.plan(Request("a circle"))
    return folder / "plans"


@pytest.fixture(autouse=True)
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine processes are forked from one that imported torch and its company once for all tests.

    Each is a process of its own, as always: with its pipe, its log and its environment, to be killed and to fault.
    Only the three to eight seconds of imports are gone, for which tests marked `spawned` are there.
    """
    if sys.platform != "linux" or request.node.get_closest_marker("spawned"):
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)

    def process(*, target: Callable[..., None], args: tuple[object, ...], **named: Any) -> Any:
        return context.Process(target=with_environment, args=(dict(os.environ), target, args), **named)

    forking = SimpleNamespace(Pipe=context.Pipe, Process=process)
    monkeypatch.setattr("engine.process.multiprocessing", SimpleNamespace(get_context=lambda method: forking))


def with_environment(environment: Mapping[str, str], target: Callable[..., None], args: tuple[object, ...]) -> None:
    """Run in a forked process, which has the environment of the one that it was forked from."""
    os.environ.clear()
    os.environ.update(environment)
    target(*args)


@pytest.fixture(autouse=True)
def own_folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    home = tmp_path_factory.mktemp("home")
    if request.path.name.startswith(("test_tui", "test_process")):
        shutil.copytree(request.getfixturevalue("measured_plans"), home / "cache" / "plans")
    for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
        monkeypatch.setenv(f"TEXTTOIMAGETOOL_{name}_DIR", str(home / name.lower()))
    return home
