"""Budgets as people write them."""

from __future__ import annotations

import pytest

from engine.memory.budget import read_size
from engine.request import RequestError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GiB", 12 * 2**30),
        ("12GB", 12 * 10**9),
        ("11.5 GiB", int(11.5 * 2**30)),
        ("800MiB", 800 * 2**20),
        ("0.5TiB", 2**39),
        (" 6GiB ", 6 * 2**30),
        ("auto", None),
        ("AUTO", None),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size: int | None) -> None:
    assert read_size(text, "vram") == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("12", "12GiB, or 12GB"),
        ("12gb", "write 12GB"),
        ("12gib", "write 12GiB"),
        ("12G", "units are"),
        ("0", "from 1MiB"),
        ("0GiB", "from 1MiB"),
        ("-1GiB", "from 1MiB"),
        ("1TiB", "less than 1TiB"),
        ("1KiB", "from 1MiB"),
        ("1e3GiB", "from 1MiB"),
        ("GiB", "from 1MiB"),
        ("", "from 1MiB"),
        ("nan", "from 1MiB"),
        ("\u0661\u0662GiB", "from 1MiB"),
        ("9" * 400 + "GiB", "from 1MiB"),
        ("12GiB\x1b[31m", "from 1MiB"),
    ],
)
def test_a_size_that_is_none_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_size(text, "ram")
    assert refused.value.field == "ram"
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).isprintable()
