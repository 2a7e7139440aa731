"""What a picture says about itself, and what a hostile picture may not do to the reader."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from engine.folders import shown_path
from engine.images.metadata import Record, encode_png, parameters_text, read_parameters, read_record, read_settings
from engine.images.texts import MAX_TEXT_BYTES
from engine.request import Request, RequestError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = b"\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0"
FORGE_LINE = "Steps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 99, "
FORGE_LINE += 'Size: 512x768, Model hash: abcdef0123, Model: flux1-dev, Lora hashes: "a: 1, Seed: 5", Version: f2.0'


def record_of(prompt: str = "a red circle", **changes: Any) -> Record:
    request = {"steps": 4, "seed": 42, "width": 64, "height": 64, "precision": "fp32", "guidance": 3.5}
    values: dict[str, Any] = {
        "request": Request(prompt=prompt, **request),  # type: ignore[arg-type]
        "model": "demo",
        "model_hash": "0123456789abcdef" * 4,
        "versions": {"engine": "0.1.0", "torch": "2.9.0", "python": "3.11.7"},
        "seconds_by_phase": {"encode": 0.1, "denoise": 1 / 3, "decode": 2.5e-9},
        "device": "cpu",
        "reproduce": {"batching": 1, "threads": 2, "tiles": None, "kernels": ["a", {"b": True}]},
    }
    return Record(**{**values, **changes})


def noise(side: int = 64) -> Image.Image:
    return Image.frombytes("RGB", (side, side), bytes(i * i * 7 % 251 for i in range(side * side * 3)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(*texts: bytes) -> bytes:
    """A PNG whose pixels nobody could decode: reading settings must not try."""
    return SIGNATURE + chunk(b"IHDR", HEADER) + b"".join(texts) + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b"")


def itxt(text: bytes, key: bytes = b"texttoimagetool", compressed: bool = False) -> bytes:
    flags = b"\1\0" if compressed else b"\0\0"
    return chunk(b"iTXt", key + b"\0" + flags + b"\0\0" + text)


def with_values(**changes: Any) -> bytes:
    """The JSON of a good record, changed: `...` leaves a field out, `request__steps` reaches inside the request."""
    values = json.loads(record_of().to_json())
    for name, value in changes.items():
        target, key = (values["request"], name[9:]) if name.startswith("request__") else (values, name)
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return json.dumps(values).encode()


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "picture.png"
    path.write_bytes(data)
    return path


def refusal(path: str | Path) -> str:
    """What the one sentence that refuses `path` says after the file's name."""
    with pytest.raises(RequestError) as caught:
        read_settings(path)
    assert caught.value.field == "from"
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert len(message) < 500
    assert message.endswith(".")
    assert message.startswith(shown_path(path) + " ")
    return message.removeprefix(shown_path(path))


# The record


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        "rond rouge à côté",
        "赤い円 🔴",
        "two\nlines\n",
        "a\r\nb\tc",
        "Negative prompt: none\nSteps: 9, Seed: 9, Size: 9x9",
        "x: y, \"quoted\", 'single', \\backslash\\",
        "nul \0 and escape \x1b[31m",
        "🔴" * 10_000,
        "\x01" * 9_999 + "x",
    ],
    ids=lambda prompt: ascii(prompt[:16]),
)
def test_a_picture_gives_back_the_record_it_was_saved_with(tmp_path: Path, prompt: str) -> None:
    record = record_of(prompt)
    path = saved(tmp_path, encode_png(noise(), record))
    assert read_record(path) == record
    assert read_record(str(path)) == record
    with Image.open(path) as image:
        assert image.convert("RGB").tobytes() == noise().tobytes()


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    seconds = {"denoise": 0.1 + 0.2, "decode": 5e-324, "save": 1.7976931348623157e308, "load": 0}
    record = record_of(seconds_by_phase=seconds, reproduce={"low": -(2**63), "high": 2**63 - 1, "f": -1e-300})
    record = dataclasses.replace(record, request=dataclasses.replace(record.request, seed=2**64 - 1, guidance=None))
    read = read_record(saved(tmp_path, encode_png(noise(), record)))
    assert read == record
    assert repr(read.seconds_by_phase) == repr(seconds)


def test_a_version_may_be_a_kind_of_text(tmp_path: Path) -> None:
    """`torch.__version__` is one."""
    version = type("Version", (str,), {})("2.9.0+cpu")
    record = record_of(versions={"torch": version})
    assert read_record(saved(tmp_path, encode_png(noise(), record))).versions == {"torch": "2.9.0+cpu"}


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": True},
        {"schema": 1.0},
        {"model": 5},
        {"model": "\ud800"},
        {"model_hash": "0" * 10},
        {"model_hash": "G" * 64},
        {"model_hash": None},
        {"device": None},
        {"versions": []},
        {"versions": {"torch": 2}},
        {"versions": {2: "torch"}},
        {"seconds_by_phase": {"denoise": "1"}},
        {"seconds_by_phase": {"denoise": -1.0}},
        {"seconds_by_phase": {"denoise": float("nan")}},
        {"seconds_by_phase": {"denoise": True}},
        {"reproduce": None},
        {"reproduce": {"x": float("inf")}},
        {"reproduce": {"x": (1, 2)}},
        {"reproduce": {"x": 2**63}},
        {"reproduce": {"x": {"x": {"x": {"x": {"x": {"x": {"x": {"x": {}}}}}}}}}},
        {"request": None},
        {"request": Request(prompt="x", steps=1, seed=1, width=64, height=64, precision="fp32", count=2)},
        {"request": Request(prompt="x", steps=1, width=64, height=64, precision="fp32")},
        {"request": Request(prompt="x", steps=1, seed=1, width=64, height=64)},
    ],
    ids=str,
)
def test_a_record_that_could_not_be_read_back_is_refused_when_it_is_made(changes: dict[str, Any]) -> None:
    assert record_of()
    with pytest.raises(ValueError, match="must"):
        record_of(**changes)


# What other tools see


def test_other_tools_see_parameters_and_software_and_nothing_of_comfyui(tmp_path: Path) -> None:
    record = record_of()
    with Image.open(saved(tmp_path, encode_png(noise(), record))) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert set(image.text) == {"parameters", "texttoimagetool", "Software"}
        assert image.text["Software"] == "TextToImageTool"
        assert image.text["parameters"] == parameters_text(record)
        assert json.loads(image.text["texttoimagetool"])["request"]["prompt"] == "a red circle"


@pytest.mark.parametrize(("prompt", "kind"), [("déjà vu", b"tEXt"), ("赤い円", b"iTXt")])
def test_parameters_are_a_latin_1_text_where_they_can_be(prompt: str, kind: bytes) -> None:
    data = encode_png(noise(), record_of(prompt))
    assert data.count(kind + b"parameters\0") == 1
    assert data.index(b"parameters\0") < data.index(b"IDAT")
    assert data.count(b"iTXttexttoimagetool\0") == 1


def test_a_nul_in_the_prompt_does_not_cut_the_parameters(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, encode_png(noise(), record_of("before\0after")))) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.text["parameters"].startswith("beforeafter\nSteps: 4, ")


def test_the_details_line_is_what_forge_writes_for_flux() -> None:
    text = parameters_text(record_of("a red circle\nabove a blue square"))
    assert text == (
        "a red circle\nabove a blue square\n"
        "Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 42, "
        "Size: 64x64, Model hash: 0123456789, Model: demo, Version: TextToImageTool v0.1.0"
    )


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("demo", "Model: demo,"),
        ("/home/me/models/flux dev", "Model: flux dev,"),
        ("C:\\models\\flux\\", "Model: flux,"),
        ("a, b", 'Model: "a, b",'),
        ("a: b", 'Model: "a: b",'),
        ("a\nb", 'Model: "a\\nb",'),
        ('"a"', 'Model: "\\"a\\"",'),
        ("赤: い", 'Model: "赤: い",'),
    ],
)
def test_a_model_name_is_quoted_where_readers_would_split_it(model: str, written: str) -> None:
    line = parameters_text(record_of(model=model)).split("\n")[-1]
    assert line.startswith("Steps: ")
    assert written in line


def test_no_guidance_and_no_hash_leave_their_keys_out() -> None:
    record = record_of(model_hash="")
    text = parameters_text(dataclasses.replace(record, request=dataclasses.replace(record.request, guidance=None)))
    assert "Distilled" not in text
    assert "Model hash" not in text
    assert "CFG scale: 1, Seed: 42" in text


# Pictures of other tools


@pytest.mark.parametrize(
    "texts",
    [
        chunk(b"tEXt", b"parameters\0a cat\nin a hat\nNegative prompt: dogs\n" + FORGE_LINE.encode()),
        chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a cat\r\nin a hat\n" + FORGE_LINE.encode())),
        itxt(zlib.compress(b"a cat\nin a hat\n" + FORGE_LINE.encode()), b"parameters", compressed=True),
    ],
)
def test_a_picture_of_another_tool_gives_what_its_parameters_say(tmp_path: Path, texts: bytes) -> None:
    record = read_record(saved(tmp_path, png(chunk(b"tEXt", b"prompt\0{}"), texts)))
    request = record.request
    assert request.prompt.replace("\r", "") == "a cat\nin a hat"
    assert (request.steps, request.seed, request.width, request.height) == (20, 99, 512, 768)
    assert (request.guidance, request.precision, request.count) == (3.5, None, 1)
    assert (record.model, record.model_hash, record.versions) == ("", "", {})


def test_settings_after_the_pixels_are_found(tmp_path: Path) -> None:
    body = encode_png(noise(), record_of())
    start = body.index(b"iTXttexttoimagetool") - 4
    end = start + 12 + int.from_bytes(body[start : start + 4], "big")
    moved = body[:start] + body[end:-12] + body[start:end] + body[-12:]
    assert moved.index(b"IDAT") < moved.index(b"iTXttexttoimagetool")
    assert read_record(saved(tmp_path, moved)) == record_of()


def test_our_own_parameters_text_can_be_read_like_another_tools(tmp_path: Path) -> None:
    text = parameters_text(record_of("a cat", model="odd, name: x")).encode()
    request = read_record(saved(tmp_path, png(chunk(b"tEXt", b"parameters\0" + text)))).request
    assert request == Request(prompt="a cat", steps=4, seed=42, width=64, height=64, guidance=3.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no settings that"),
        ("a cat", "no settings that"),
        ("a cat\nSteps: 20, Sampler: Euler, Size: 512x512", "does not say its seed; add --seed"),
        ("a cat\nSteps: twenty, Seed: 1, Size: 512x512", "does not say its steps"),
        ("a cat\nSteps: -4, Seed: 1, Size: 512x512", "steps must be"),
        ("a cat\nSteps: 4, Seed: ١٢, Size: 512x512", "does not say its seed"),
        ("a cat\nSteps: 4, Seed: 1_0, Size: 512x512", "does not say its seed"),
        (f"a cat\nSteps: 4, Seed: {'9' * 5000}, Size: 512x512", "does not say its seed"),
        ("a cat\nSteps: 4, Seed: 1, Size: 512", "does not say its size; add --size"),
        (f"a cat\nSteps: 4, x: {'y' * 10_000}, Seed: 1, Size: 64x64", "does not say its seed and size"),
        ('a cat\nLora: ", Steps: 4, Seed: 1, Size: 64x64"', "no settings that"),
        (f"a cat\nSteps: 4, Seed: {2**64}, Size: 512x512", "seed must be"),
        ("a cat\nSteps: 0, Seed: 1, Size: 512x512", "steps must be"),
        ("a cat\nSteps: 4, Seed: 1, Size: 1000x512", "add --size 1008x512, the nearest one"),
        ("a cat\nSteps: 4, Seed: 1, Size: 64x64, Distilled CFG Scale: 99", "guidance must be"),
        ("Steps: 4, Seed: 1, Size: 64x64", "prompt is empty"),
        ("Negative prompt: cats\nSteps: 4, Seed: 1, Size: 64x64", "prompt is empty"),
        (f"{'a' * 10_001}\nSteps: 4, Seed: 1, Size: 64x64", "at most 10000"),
    ],
    ids=lambda value: ascii(value[-32:]),
)
def test_parameters_that_cannot_be_used_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = saved(tmp_path, png(itxt(text.encode(), b"parameters")))
    assert said in refusal(path)


def test_a_long_line_of_words_is_read_in_one_pass(tmp_path: Path) -> None:
    """A careless pattern takes quadratic time for these and would not come back."""
    for filler in ("a" * 500_000, " " * 500_000 + "x", 'k: "' * 100_000, '\\"' * 200_000):
        assert "no settings that" in refusal(saved(tmp_path, png(itxt(filler.encode(), b"parameters"))))


# Hostile and damaged files


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.png")
    assert "is a folder" in refusal(tmp_path)
    saved(tmp_path, b"")
    assert "cannot be read" in refusal(tmp_path / "picture.png" / "below.png")
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000 + ".png"))
    assert "not a path" in refusal("nul\0.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert "not an ordinary file" in refusal(tmp_path / "pipe.png")  # and does not wait for a writer
        assert read_parameters(tmp_path / "pipe.png") == ""


def test_the_file_name_in_a_message_cannot_touch_the_terminal(tmp_path: Path) -> None:
    name = "evil\x1b]0;title\x07\u202egnp.\n.png"
    assert shown_path(tmp_path / name).endswith("evil\\x1b]0;title\\x07\\u202egnp.\\n.png'")
    assert len(shown_path("x/" * 3000)) < 210
    for path in (tmp_path / name, "x/" * 3000, "\ud800.png", "\udcff.png"):
        assert refusal(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG", b"not a picture", bytes(2000)],
    ids=lambda data: ascii(data[:8]),
)
def test_what_is_not_a_png_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "is not a PNG picture" in refusal(saved(tmp_path, data))


def test_a_picture_without_settings_is_refused(tmp_path: Path) -> None:
    buffer = BytesIO()
    noise().save(buffer, "PNG")
    assert "has no settings" in refusal(saved(tmp_path, buffer.getvalue()))


def test_a_picture_cut_short_gives_its_record_or_a_sentence_at_every_length(tmp_path: Path) -> None:
    data = encode_png(noise(), record_of())
    end = data.index(b"tEXtSoftware") - 4  # the record is whole from here on, however little of the pixels is left
    path = tmp_path / "picture.png"
    for length in range(len(SIGNATURE), end):
        path.write_bytes(data[:length])
        assert "ends too early" in refusal(path)
    for length in (end, end + 1, len(data) - 20, len(data)):
        path.write_bytes(data[:length])
        assert read_record(path) == record_of()


def test_a_changed_byte_in_the_record_is_noticed(tmp_path: Path) -> None:
    data = encode_png(noise(), record_of())
    changed = data.replace(b'"seed": 42', b'"seed": 43')
    assert changed != data
    assert "damaged" in refusal(saved(tmp_path, changed))


COMPRESSED = zlib.compress(record_of().to_json().encode())


@pytest.mark.parametrize(
    "text",
    [
        itxt(b"\xff\xfe"),
        itxt(b"not deflate", compressed=True),
        itxt(COMPRESSED[:-1], compressed=True),
        itxt(COMPRESSED[: len(COMPRESSED) // 2], compressed=True),
        chunk(b"zTXt", b"texttoimagetool\0\0not deflate"),
        chunk(b"zTXt", b"texttoimagetool\0"),
    ],
)
def test_a_damaged_text_is_refused(tmp_path: Path, text: bytes) -> None:
    assert read_record(saved(tmp_path, png(itxt(COMPRESSED, compressed=True)))) == record_of()
    assert "damaged" in refusal(saved(tmp_path, png(text)))


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{}", b'"text"', b"{", b"{'a': 1}", b"\xef\xbb\xbf{}"])
def test_json_that_is_no_record_is_refused(tmp_path: Path, text: bytes) -> None:
    assert "cannot be read: it" in refusal(saved(tmp_path, png(itxt(text))))


def test_a_text_chunk_without_its_own_fields_is_refused(tmp_path: Path) -> None:
    for kind in (b"iTXt", b"tEXt"):
        assert "not valid JSON" in refusal(saved(tmp_path, png(chunk(kind, b"texttoimagetool\0"))))


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": "1"},
        {"schema": ...},
        {"extra": 1},
        {"model": ...},
        {"model": ""},
        {"model": ["demo"]},
        {"model": "\x1b[2Jdemo"},
        {"model": "\u202eomed"},
        {"model": "\ud800"},
        {"model_hash": "0"},
        {"device": "cpu\x07"},
        {"versions": {"torch\x1b": "2"}},
        {"versions": {"torch": None}},
        {"seconds_by_phase": {"denoise": "long"}},
        {"seconds_by_phase": {"denoise": float("nan")}},
        {"seconds_by_phase": {"denoise": float("inf")}},
        {"reproduce": {"x": "a\nb"}},
        {"reproduce": {"x": 10**30}},
        {"reproduce": []},
        {"request": ...},
        {"request": []},
        {"request": "a red circle"},
        {"request__prompt": ...},
        {"request__prompt": 5},
        {"request__prompt": "  "},
        {"request__prompt": "\udfff"},
        {"request__prompt": "x" * 10_001},
        {"request__steps": ...},
        {"request__steps": "4"},
        {"request__steps": 4.0},
        {"request__steps": True},
        {"request__steps": 10**30},
        {"request__steps": {"\x1b": "\x1b"}},
        {"request__seed": None},
        {"request__seed": -1},
        {"request__width": 100},
        {"request__count": 2},
        {"request__count": None},
        {"request__guidance": "3"},
        {"request__guidance": float("inf")},
        {"request__guidance": 10**31},
        {"request__precision": "fp8\x1b[0m"},
        {"request__precision": ["fp32"]},
        {"request__pickle\x1b": 1},
    ],
    ids=lambda changes: ascii(changes)[:60],
)
def test_a_record_with_a_wrong_value_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_record(saved(tmp_path, png(itxt(with_values())))) == record_of()
    assert "settings that cannot be" in refusal(saved(tmp_path, png(itxt(with_values(**changes)))))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("1e999", "too large"),
        ("-1e999", "too large"),
        ("9" * 100_000, "too long"),
        ("0." + "1" * 100_000, "too long"),
        ("Infinity", "not a JSON number"),
        ("NaN", "not a JSON number"),
    ],
    ids=lambda value: value[:12],
)
def test_numbers_beyond_all_measure_are_refused(tmp_path: Path, number: str, said: str) -> None:
    text = with_values().replace(b'"threads": 2', f'"threads": {number}'.encode())
    assert text != with_values()
    assert said in refusal(saved(tmp_path, png(itxt(text))))


@pytest.mark.parametrize("depth", [10, 100, 900, 980, 100_000])
@pytest.mark.parametrize("place", [b'"threads": 2', b'"guidance": 3.5', b'"prompt": "a red circle"', b'"schema": 1'])
def test_deep_nesting_is_refused(tmp_path: Path, depth: int, place: bytes) -> None:
    text = with_values().replace(place, place.split(b":")[0] + b": " + b"[" * depth + b"]" * depth)
    assert text != with_values()
    assert "cannot be" in refusal(saved(tmp_path, png(itxt(text))))
    assert "nested too deeply" in refusal(saved(tmp_path, png(itxt(b"[" * 200_000))))


def declared_only(path: Path) -> None:
    """100 MB of plain text, as a file with a hole."""
    path.write_bytes(SIGNATURE + chunk(b"IHDR", HEADER) + (10**8).to_bytes(4, "big") + b"iTXttexttoimagetool\0\0\0\0\0")
    os.truncate(path, 10**8)


def bomb(kind: bytes, before: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        stream = zlib.compressobj(9)
        data = b"".join(stream.compress(b" " * 2**20) for _ in range(100)) + stream.flush()
        assert len(data) < MAX_TEXT_BYTES
        path.write_bytes(png(chunk(kind, before + data)))

    return write


@pytest.mark.parametrize(
    "write",
    [declared_only, bomb(b"zTXt", b"texttoimagetool\0\0"), bomb(b"iTXt", b"parameters\0\1\0\0\0")],
    ids=["plain", "zTXt bomb", "iTXt bomb"],
)
def test_a_hundred_megabytes_of_text_are_refused_without_holding_them(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "picture.png"
    write(path)
    tracemalloc.start()
    try:
        assert "more than 1 MiB of text" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_big_chunks_of_others_are_skipped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    size = 10**8
    with open(path, "wb") as file:
        file.write(SIGNATURE + chunk(b"IHDR", HEADER))
        for start in (b"tEXtworkflow\0", b"IDATpixels\0"):
            file.write(size.to_bytes(4, "big") + start)
            file.seek(size - len(start) + 4 + 4, os.SEEK_CUR)
        file.write(itxt(with_values()))
    assert path.stat().st_size > 2 * size
    tracemalloc.start()
    try:
        assert read_record(path) == record_of()
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_endless_empty_chunks_are_given_up(tmp_path: Path) -> None:
    assert "too many parts" in refusal(saved(tmp_path, png(chunk(b"tEXt", b"") * 70_000)))


def test_a_chunk_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    for kind in (b"IDAT", b"tEXt", b"iTXt"):
        claims = (2**32 - 1).to_bytes(4, "big") + kind + b"short"
        assert "ends too early" in refusal(saved(tmp_path, SIGNATURE + chunk(b"IHDR", HEADER) + claims))


def test_settings_are_read_without_pillow_and_without_torch(tmp_path: Path) -> None:
    """In a fresh interpreter: neither importing nor reading needs the pixels' decoder."""
    path = saved(tmp_path, encode_png(noise(), record_of()))
    code = (
        "import sys, engine.images.save, engine.images.metadata as m\n"
        "print(m.read_record(sys.argv[1]).request.seed)\n"
        "print(sorted({'PIL', 'torch', 'numpy', 'textual'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["42", "[]"]
