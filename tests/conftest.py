"""Every test keeps its state, cache and pictures in folders of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine import Engine, Request


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
def own_folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    home = tmp_path_factory.mktemp("home")
    if request.path.name.startswith(("test_tui", "test_process")):
        shutil.copytree(request.getfixturevalue("measured_plans"), home / "cache" / "plans")
    for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
        monkeypatch.setenv(f"TEXTTOIMAGETOOL_{name}_DIR", str(home / name.lower()))
    return home
