"""The bench of faults itself, with as many kills as there are victims."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("kills and forks are POSIX's, the fork server's speed is Linux's", allow_module_level=True)

from tests.bench.faults import LOSSES, kill


def test_kills_at_random_moments_lose_nothing_that_was_told(tmp_path: Path) -> None:
    found = kill(3, 5, tmp_path)
    assert found["kills"] == 3
    assert {what: found[what] for what in LOSSES} == dict.fromkeys(LOSSES, 0)
