"""Every test keeps its state, cache and pictures in folders of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# Read when the hub's library is first imported: no test finds what the developer has downloaded.
os.environ["HF_HUB_CACHE"] = str(Path(tempfile.gettempdir()) / "texttoimagetool-tests-have-no-hub-cache")
# Read when torch is first imported: a thread that waits for another sleeps. It would spin, and take the core from the
# app or from a second engine, which made long jobs take five times as long. No bit of a picture depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The tests' own workers keep the cores busy; the small tensors here gain nothing from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# All that an engine's process has imported when it has painted; see `engines`.
IMPORTED = [
    *(
        "engine.jobs.picture",
        "engine.sampling.denoise",
        "engine.sampling.decode",
        "engine.jobs.latents",
        "engine.sampling.preview",
    ),
    *("engine.families.flux1.networks", "engine.memory.planner", "engine.memory.enforce"),
    *("engine.images.save", "tests.conftest"),
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spawned: the engine's process starts as it does for a person, from nothing")
    config.addinivalue_line("markers", "unmeasured: no plan was measured before")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` skip where torch sees no card; torch is asked only where there is such a test."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA card"))


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plans measured, once for all tests and workers: a file's name says all that its number depends on."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plans"
    folder.mkdir(exist_ok=True)
    return folder


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
    request: pytest.FixtureRequest,
    plans: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    home = tmp_path_factory.mktemp("home")
    if not request.node.get_closest_marker("unmeasured"):
        share_plans(plans, home / "cache")
    for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
        monkeypatch.setenv(f"TEXTTOIMAGETOOL_{name}_DIR", str(home / name.lower()))
    return home


def share_plans(plans: Path, cache: Path) -> None:
    """Let this cache folder have the measured plans of all tests."""
    cache.mkdir()
    with suppress(OSError):  # Windows lets few people make links; there each test measures for itself
        (cache / "plans").symlink_to(plans, target_is_directory=True)
