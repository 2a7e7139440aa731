"""What cannot be seen is shown for what it is, and what scripts and emoji need stays whole."""

from __future__ import annotations

import pytest

from engine.text import printable, quoted, unseen

WRITTEN = {
    "a Persian verb, with a joiner between its parts": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "a half form of Devanagari": "\u0915\u094d\u200d\u0937",
    "ra with ya in Bengali": "\u09b0\u200d\u09cd\u09af",
    "a conjunct of Sinhala": "\u0dc1\u0dca\u200d\u0dbb\u0dd3",
    "a chillu of Malayalam": "\u0d28\u0d4d\u200d",
    "a Mongolian vowel in another form": "\u1820\u180b",
    "a name's ideograph in its own form": "\u845b\U000e0100",
    "an astronaut": "\U0001f469\u200d\U0001f680",
    "a flag of several emoji": "\U0001f3f3\ufe0f\u200d\U0001f308",
    "a shaken head": "\U0001f642\u200d\u2194\ufe0f",
    "a family with skin": "\U0001f468\U0001f3fd\u200d\U0001f469\U0001f3fb\u200d\U0001f467",
    "a heart, and a telephone as text": "\u2764\ufe0f \u260e\ufe0e",
    "a keycap": "1\ufe0f\u20e3",
    "the flag of Scotland": "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "the end of a verse": "\u06dd\u0661",
    "letters with marks": "e\u0301 \u05d1\u05b0 \u0e01\u0e34",
}
HIDDEN = {
    "a direction override": ("\u202eevil", "\\u202eevil"),
    "an isolate and a mark of direction": ("a\u2066b\u200fc", "a\\u2066b\\u200fc"),
    "a zero-width space": ("sa\u200bfe", "sa\\u200bfe"),
    "a joiner between Latin letters": ("sa\u200dfe", "sa\\u200dfe"),
    "one joiner too many": ("\u0645\u200c\u200c\u0646", "\u0645\u200c\\u200c\u0646"),
    "a variation selector alone": ("a\ufe0fb\U000e0101", "a\\ufe0fb\\U000e0101"),
    "one selector too many": ("\u2764\ufe0f\ufe0f", "\u2764\ufe0f\\ufe0f"),
    "a joiner behind what cannot be seen": ("\u2060\u200d\u263a", "\\u2060\\u200d\u263a"),
    "letters as tags": ("a\U000e0068\U000e0069", "a\\U000e0068\\U000e0069"),
    "a flag without an end": ("\U0001f3f4\U000e0067", "\U0001f3f4\\U000e0067"),
    "letters that are blank": ("\u3164\u115f\u034f", "\\u3164\\u115f\\u034f"),
    "a soft hyphen, a byte order mark": ("a\u00adb\ufeff", "a\\xadb\\ufeff"),
    "an escape sequence": ("\x1b[2J\x9b", "\\x1b[2J\\x9b"),
    "half a character, a private one": ("\ud800\ue000", "\\ud800\\ue000"),
    "ends of lines and odd blanks": ("a\nb\u2028c\u00a0d", "a b c d"),
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_is_written_with_invisible_characters_stays_as_it_is(text: str) -> None:
    assert unseen(f"before {text} behind") == []
    assert printable(text) == text


@pytest.mark.parametrize(("text", "shown"), HIDDEN.values(), ids=HIDDEN.keys())
def test_what_cannot_be_seen_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert unseen(printable(text)) == []
    assert unseen(quoted(text)) == []
