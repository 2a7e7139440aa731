"""Every test keeps its state, cache and pictures in folders of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` skip where torch sees no card; torch is asked only where there is such a test."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA card"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
        monkeypatch.setenv(f"TEXTTOIMAGETOOL_{name}_DIR", str(home / name.lower()))
    return home
