"""Every test keeps its state, cache and pictures in folders of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
        monkeypatch.setenv(f"TEXTTOIMAGETOOL_{name}_DIR", str(home / name.lower()))
    return home
