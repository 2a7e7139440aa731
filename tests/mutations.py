"""Hostile changes to files: of values in a JSON or TOML tree, of bytes, of texts in a PNG, and of what lies at a path.

Every function takes a `random.Random` and gives the same change for the same state of it. What is changed was valid
before, so that most of the ways into a reader are walked before it finds what is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

CANARY = "canary-0f3a"  # stands in files that nobody may quote
PIECE = "evil_code"  # a module in the folder that nobody may import


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that goes into a JSON document as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """An object whose keys may be there twice."""

    pairs: tuple[tuple[str, Any], ...]


def junk(rng: Random) -> Any:
    """A value that nobody expects."""
    return rng.choice(JUNK)(rng)


def texts(rng: Random) -> str:
    """A text that nobody expects."""
    return rng.choice(TEXTS)


TEXTS = (
    *(
        "",
        " ",
        "x",
        "x" * 5000,
        "\u00e9" * 300,
        "\ud800",
        "a\udfffb",
        "a\0b",
        "\x1b[2J\x1b]0;owned\x07",
        "\u202eevil\u2066",
    ),
    *(
        "\u200b\u2060",
        "line\nline\rline",
        "[bold red]markup[/]",
        "{0}{name}%s",
        "'; DROP TABLE jobs; --",
        "nan",
        "1e999",
    ),
    *("/dev/zero", "/etc/passwd", "../outside/secret.json", "../../outside", "\\\\host\\share\\x", "/\\host\\share"),
    *("file:///etc/passwd", "http://127.0.0.1:9/x", "~root", "~nobody-is-called-this/x", "C:\\x", "CON", ".", ".."),
    *("RagTokenizer", "AutoModel", "BertModel", "FluxPipeline", "__class__", "os.system", f"{PIECE}.Evil"),
)
NUMBERS = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "1.5",
        "-0.0",
        "1e308",
        "1e999",
        "NaN",
        "Infinity",
        "-Infinity",
        "2147483647",
        "2147483648",
    ),
    *("4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1000000000", "1" + "0" * 30),
    *("1" + "0" * 5000, "1e-320", "65536", "1000003"),
)


def _deep(rng: Random) -> Raw:
    depth = rng.choice((10, 100, 1000, 100_000))
    opening, closing_ = rng.choice((("[", "]"), ('{"a":', "}")))
    return Raw(opening * depth + "1" + closing_ * depth)


JUNK: tuple[Callable[[Random], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.random() < 0.5,
    lambda rng: Raw(rng.choice(NUMBERS)),
    lambda rng: Raw(rng.choice(NUMBERS)),
    texts,
    texts,
    lambda rng: [],
    lambda rng: {},
    lambda rng: [texts(rng)] * rng.choice((1, 2, 1000)),
    lambda rng: [Raw(rng.choice(NUMBERS))] * rng.choice((1, 3, 4, 1000)),
    lambda rng: {texts(rng): Raw(rng.choice(NUMBERS))},
    lambda rng: {str(number): number for number in range(rng.choice((3, 5000)))},
    _deep,
)

# Keys that make libraries import, download, ask, or build something else than what is meant.
CODE: dict[str, Any] = {
    "auto_map": {"AutoTokenizer": [None, f"{PIECE}.Evil"], "AutoModel": f"{PIECE}.Evil", "AutoConfig": f"{PIECE}.Evil"},
    "trust_remote_code": True,
    "_attn_implementation": "somebody/kernel",
    "attn_implementation": "somebody/kernel",
    "_attn_implementation_internal": "somebody/kernel",
    "use_kernels": True,
    "tokenizer_class": "RagTokenizer",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fast_tokenizer_files": ["tokenizer.other.json"],
    "custom_pipelines": {"text-to-image": {"impl": f"{PIECE}.Evil"}},
    "architectures": ["AutoModel"],
    "model_type": "rag",
    "_class_name": [PIECE, "Evil"],
    "_name_or_path": "http://127.0.0.1:9/x",
    "torch_dtype": "evil",
    "dtype": "float4_e2m1fn_x2",
    "num_labels": 10**9,
    "id2label": {"x": "y"},
    "pruned_heads": {"0": [0, 1]},
    "is_decoder": True,
    "tie_word_embeddings": 3,
    "backend": "evil",
    "chat_template": "{% for x in range(10**9) %}{% endfor %}",
    "processor_class": "AutoProcessor",
    "transformers_weights": "../outside/secret.json",
    "_use_default_values": ["num_layers", "in_channels"],
    "extra_special_tokens": {"x": "<x>"},
    "model_input_names": ["x"],
    "padding_side": "up",
    "added_tokens_decoder": {"99999999": {"content": "x"}},
}


# JSON


def to_json(value: Any) -> str:
    """JSON with all that `Raw` and `Pairs` allow; lone surrogates as escapes."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{to_json(item)}" for key, item in value.pairs) + "}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{to_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(to_json, value)) + "]"
    return json.dumps(value)


def change_json(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A JSON document with one to three changes, and what they are in words."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):  # it was changed before
        return change_bytes(data, rng)
    if rng.random() < 0.12:
        return _spoiled(data, rng)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree, what = _changed_tree(tree, rng)
        done.append(what)
    return to_json(tree).encode("utf-8", "surrogatepass"), "; ".join(done)


def _spoiled(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A document that is no JSON, or another one, as a whole."""
    choices: tuple[tuple[str, Callable[[], bytes]], ...] = (
        ("cut off", lambda: data[: rng.randrange(len(data) + 1)]),
        ("empty", lambda: b""),
        ("a byte order mark", lambda: b"\xef\xbb\xbf" + data),
        ("UTF-16", lambda: data.decode("utf-8", "replace").encode("utf-16")),
        ("Latin-1", lambda: b'{"\xe9": "\xff\xfe"}'),
        ("a list", lambda: b"[" + data + b"]"),
        ("something else", lambda: to_json(junk(rng)).encode("utf-8", "surrogatepass")),
        ("a comma too many", lambda: data.replace(b",", b",,", 1)),
        ("twice", lambda: data + data),
        ("brackets without end", lambda: b"[" * 200_000),
        ("two megabytes of blanks", lambda: data + b" " * (2 * 2**20)),
        ("NULs", lambda: bytes(len(data))),
        ("a list of many lists", lambda: b"[" + b"[]," * 300_000 + b"[]]"),
        ("an object of many keys", lambda: b"{" + b",".join(b'"k%d":0' % n for n in range(50_000)) + b"}"),
    )
    what, made = rng.choice(choices)
    return made(), f"all of it: {what}"


Step = str | int


def _paths(tree: Any, here: tuple[Step, ...] = ()) -> list[tuple[Step, ...]]:
    """Where values lie; of long lists and objects only some."""
    found = [here] if here else []
    items: Sequence[tuple[Step, Any]] = ()
    if isinstance(tree, dict):
        items = [*tree.items()]
    elif isinstance(tree, list):
        items = [*enumerate(tree)]
    if len(items) > 60:
        items = [*items[:30], *items[-30:]]
    for step, value in items:
        found += _paths(value, (*here, step))
    return found


def _at(tree: Any, path: Sequence[Step]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _changed_tree(tree: Any, rng: Random) -> tuple[Any, str]:
    paths = _paths(tree)
    if not paths or not isinstance(tree, (dict, list)):
        return junk(rng), "all replaced"
    # The upper ones more often: deep in a vocabulary little happens.
    path = min(rng.sample(paths, min(2, len(paths))), key=len)
    parent, last = _at(tree, path[:-1]), path[-1]
    old, shown = parent[last], ".".join(str(step)[:30] for step in path)
    match rng.choice(("junk", "junk", "junk", "drop", "double", "code", "code", "rename", "wrap", "scale", "swap")):
        case "drop":
            del parent[last]
            return tree, f"without {shown}"
        case "double" if isinstance(parent, dict):
            pairs = Pairs((*parent.items(), (str(last), junk(rng))))
            return (pairs if len(path) == 1 else _put(tree, path[:-1], pairs)), f"{shown} twice"
        case "code":
            place = parent if isinstance(parent, dict) else tree
            if isinstance(place, dict):
                key = rng.choice(sorted(CODE))
                place[key] = CODE[key] if rng.random() < 0.8 else junk(rng)
                return tree, f"{key} beside {shown}"
        case "rename" if isinstance(parent, dict):
            new = rng.choice((texts(rng), str(last).upper(), str(last) + "x", rng.choice(sorted(CODE))))
            parent[new] = parent.pop(last)
            return tree, f"{shown} called {new[:40]!a}"
        case "wrap":
            parent[last] = rng.choice(([old], {"value": old}, str(old)[:10_000]))
            return tree, f"{shown} wrapped"
        case "scale" if isinstance(old, (int, float)):
            factor = rng.choice((-1, 0, 2, 10, 1000, 10**6, 10**9, 0.5))
            parent[last] = old * factor
            return tree, f"{shown} * {factor}"
        case "swap":
            other = rng.choice(paths)
            with suppress(LookupError, TypeError):
                value = _at(tree, other)
                if other[: len(path)] != path and path[: len(other)] != other:
                    parent[last] = value
                    return tree, f"{shown} as {'.'.join(map(str, other))[:60]}"
    new_value = junk(rng)
    parent[last] = new_value
    return tree, f"{shown} = {_short(new_value)}"


def _put(tree: Any, path: Sequence[Step], value: Any) -> Any:
    _at(tree, path[:-1])[path[-1]] = value
    return tree


def _short(value: object) -> str:
    text = ascii(value.text if isinstance(value, Raw) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Bytes, lines and texts


def change_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    """Some bytes of a file changed."""
    where = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 256) + 1)
    match rng.choice(("flip", "flip", "cut", "insert", "drop", "double", "number", "zero", "append")):
        case "flip" if data:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 2, 8, 64))):
                changed[rng.randrange(min(len(data), rng.choice((64, 1024, len(data)))))] ^= 1 << rng.randrange(8)
            return bytes(changed), "bits flipped"
        case "cut":
            return data[:where], f"cut off at {where}"
        case "insert":
            return data[:where] + rng.randbytes(rng.choice((1, 8, 500))) + data[where:], f"bytes inserted at {where}"
        case "drop":
            return data[:where] + data[where + rng.choice((1, 8, 500)) :], f"bytes left out at {where}"
        case "double":
            return data[:where] + data[where : where + 200] + data[where:], f"bytes doubled at {where}"
        case "number":
            number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1))
            form = rng.choice(("<Q", "<I", ">I"))
            packed = struct.pack(form, number & (2 ** (8 * struct.calcsize(form)) - 1))
            return data[:where] + packed + data[where + len(packed) :], f"{number} at {where}"
        case "zero":
            count = rng.choice((8, 100, 4000))
            return data[:where] + bytes(len(data[where : where + count])) + data[where + count :], f"NULs at {where}"
    return data + rng.randbytes(rng.choice((1, 100, 100_000))), "bytes appended"


def change_text(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A file of lines, such as prompts or merges, changed as text."""
    lines = data.decode("utf-8", "replace").split("\n")
    place = rng.randrange(len(lines))
    match rng.choice(("junk", "junk", "long", "many", "bytes", "order", "encoding")):
        case "junk":
            lines[place] = texts(rng)
            what = f"line {place + 1} is {_short(lines[place])}"
        case "long":
            lines[place] = (lines[place] or "x") * 20_000
            what = f"line {place + 1} is long"
        case "many":
            lines = lines * rng.choice((100, 3000))
            what = "many lines"
        case "order":
            rng.shuffle(lines)
            what = "lines in another order"
        case "encoding":
            name = rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1"))
            return "\n".join(lines).encode(name, "replace"), name
        case _:
            return change_bytes(data, rng)
    return "\n".join(lines).encode("utf-8", "surrogatepass"), what


TOML_VALUES = (
    *("true", "1", "-1", "0", "1.5", "nan", "inf", "-inf", "9" * 5000, "1" + "0" * 40, "[]", "{}", '""', "[[1]]"),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '"x"', f'"{"x" * 5000}"', "'\u202eevil'", '"\\u001b[2J"'),
    *(
        '"\\uD800"',
        '"/dev/zero"',
        '"~nobody-is-called-this"',
        '"[bold]"',
        "[" * 3000 + "]" * 3000,
        "{a = {a = {a = 1}}}",
    ),
    *(
        '"auto"',
        '"#12345"',
        '"ansi_blue"',
        '"rgb(999,0,0)"',
        '"hsl(1e9,1%,1%)"',
        '"12GiB"',
        '"ctrl+c"',
        '"a b c"',
        "0x",
    ),
)
TOML_KEYS = (
    *(
        "x",
        '""',
        '"\\u001b"',
        "a.b.c",
        f'"{"k" * 4000}"',
        "__class__",
        "colors",
        "name",
        "model",
        "job.cancel",
        "'\u202e'",
    ),
    ".".join(["a"] * 3000),
)


def change_toml(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A TOML file with one to three lines changed."""
    if rng.random() < 0.15:
        return change_text(data, rng)
    lines = data.decode("utf-8", "replace").split("\n")
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = [number for number, line in enumerate(lines) if "=" in line] or [0]
        place = rng.choice(places)
        key, _, value = lines[place].partition("=")
        match rng.choice(("value", "value", "value", "key", "drop", "double", "table", "many")):
            case "value":
                lines[place] = f"{key.rstrip()} = {rng.choice(TOML_VALUES)}"
            case "key":
                lines[place] = f"{rng.choice(TOML_KEYS)} ={value}"
            case "drop":
                del lines[place]
            case "double":
                lines.insert(place, lines[place])
            case "table":
                lines.insert(place, f"[{rng.choice(TOML_KEYS)}]")
            case "many":
                lines += [f"key{number} = {rng.choice(TOML_VALUES[:12])}" for number in range(rng.choice((10, 1500)))]
        done.append(_short(lines[min(place, len(lines) - 1)] if lines else ""))
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass"), "; ".join(done)


# Headers of weights


def change_safetensors(data: bytes, rng: Random) -> tuple[bytes, str]:
    """The header changed as JSON with its length set right, or the file as bytes."""
    if rng.random() < 0.35:
        return change_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.02:
        text = rng.choice((b"[]," * 33_000_000, b'{"a":' * 19_000_000, b"[" * 99_000_000, b'"' + b"x" * 99_000_000))
        return len(text).to_bytes(8, "little") + text + rest, f"a header of {len(text)} bytes: {text[:8].decode()}..."
    try:
        tree = json.loads(header)
    except (ValueError, RecursionError):  # it was changed before
        return change_bytes(data, rng)
    names = [name for name in tree if name != "__metadata__"]
    if names and rng.random() < 0.5:
        name = rng.choice(names)
        match rng.choice(("shape", "dtype", "offsets", "name", "more", "none", "metadata")):
            case "shape":
                tree[name]["shape"] = rng.choice(
                    ([0], [], [2**62, 4], [-1, -1], [1] * 5000, [2**31, 2**31], [1.0], [True], ["1"], [10**30], [3, 0])
                )
                if rng.random() < 0.4:  # that agrees with its place
                    tree[name]["data_offsets"] = [0, 0]
            case "dtype":
                tree[name]["dtype"] = rng.choice(
                    ("F4", "F8_E5M2", "I64", "BOOL", "U8", "", "\x1b[2J", "x" * 5000, "C64")
                )
            case "offsets":
                tree[name]["data_offsets"] = rng.choice(([0, 2**62], [-8, 0], [5, 1], [0], [0, 0, 0], [0.0, 4.0], None))
            case "name":
                tree[rng.choice((texts(rng), name + "x", "x" * 100_000, rng.choice(names) + ".weight"))] = tree.pop(
                    name
                )
            case "more":
                empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(rest), len(rest)]}
                tree |= {f"{name}.{number}": empty for number in range(rng.choice((1, 3000)))}
            case "none":
                tree = {}
            case "metadata":
                tree["__metadata__"] = rng.choice(({"format": 1}, {texts(rng): texts(rng)}, [], {"k": "v" * 10**6}))
        text = to_json(tree).encode("utf-8", "surrogatepass")
        what = f"{name[:60]} changed"
    else:
        text, what = change_json(header, rng)
    return len(text).to_bytes(8, "little") + text + rest, f"header: {what}"


def change_gguf(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A GGUF file with other numbers in its header, as bytes, or one whose fields are made up."""
    if rng.random() < 0.7:
        changed = bytearray(data)
        if rng.random() < 0.4:
            where = rng.choice((4, 8, 16, 24, 32))
            number = rng.choice((0, 1, 2, 4, 100, 10_000, 100_000, 2**32 - 1, 2**62, 2**64 - 1))
            changed[where : where + 8] = struct.pack("<Q", number)
            return bytes(changed), f"{number} at {where}"
        return change_bytes(data, rng)
    fields = b""
    count = rng.choice((1, 3, 500))
    for number in range(count):
        name = rng.choice((b"general.alignment", b"general.architecture", b"k%d" % number, rng.randbytes(9)))
        fields += struct.pack("<Q", len(name)) + name
        kind = rng.choice((0, 4, 6, 7, 8, 9, 10, 12, 13, 2**32 - 1))
        fields += struct.pack("<I", kind)
        match kind:
            case 8:
                fields += struct.pack("<Q", rng.choice((3, 2**20, 2**20 + 1, 2**63))) + b"abc"
            case 9:
                inner = rng.choice((0, 8, 9, 10, 77))
                fields += struct.pack("<IQ", inner, rng.choice((1, 3, 2**20, 2**40))) + rng.randbytes(40)
            case _:
                fields += rng.randbytes(8)
    start = b"GGUF" + struct.pack("<IQQ", rng.choice((1, 2, 3, 4)), rng.choice((0, 1, 50)), rng.choice((count, 10_000)))
    return start + fields + data[: rng.randrange(2000)], f"{count} fields made up"


def large_gguf(file: Path) -> None:
    """4 GB of text fields in a file that takes no room."""
    each = 2**20
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 4000))
        for number in range(4000):
            key = b"k%d" % number
            stream.write(struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, each))
            stream.seek(each, os.SEEK_CUR)
        stream.truncate(stream.tell())


# Pictures


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(kind, body) of each chunk."""
    chunks, place = [], 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png_of(chunks: Sequence[tuple[bytes, bytes]], wrong: int = -1) -> bytes:
    """A PNG of these chunks; that of number `wrong` has a wrong checksum."""
    data = b"\x89PNG\r\n\x1a\n"
    for number, (kind, body) in enumerate(chunks):
        checksum = zlib.crc32(kind + body) ^ (number == wrong)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return data


def change_png(data: bytes, rng: Random) -> tuple[bytes, str]:
    """A picture with a changed record, other texts, other chunks, or other bytes."""
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    chunks = png_chunks(data)
    if not chunks or len(chunks[0][1]) < 13:  # it was changed before
        return change_bytes(data, rng)
    if rng.random() < 0.6:
        for number, (kind, body) in enumerate(chunks):
            if kind == b"iTXt" and body.startswith(b"texttoimagetool\0"):
                text, what = change_json(body.partition(b"\0")[2][4:], rng)
                if rng.random() < 0.2:
                    body = b"texttoimagetool\0\1\0\0\0" + zlib.compress(text)
                else:
                    body = b"texttoimagetool\0\0\0\0\0" + text
                chunks[number] = kind, body
                return png_of(chunks), f"record: {what}"
    name = rng.choice((b"texttoimagetool", b"parameters", b"Software", b"x" * 79, b""))
    ihdr = chunks[0][1]
    large = struct.pack(">II", *rng.choice(((2**31 - 1, 2**31 - 1), (0, 0), (60_000, 60_000), (1, 2**30)))) + ihdr[8:]
    bomb = zlib.compress(bytes(40 * 2**20), 9)
    lines = f"{texts(rng)}\nSteps: {rng.choice(NUMBERS)}, Seed: {rng.choice(NUMBERS)}, Size: {texts(rng)[:50]}x64"
    made: tuple[tuple[str, Callable[[], list[tuple[bytes, bytes]]]], ...] = (
        ("another text first", lambda: [chunks[0], (b"tEXt", name + b"\0" + rng.randbytes(50)), *chunks[1:]]),
        ("a bomb of text", lambda: [chunks[0], (b"iTXt", name + b"\0\1\0\0\0" + bomb), *chunks[1:]]),
        ("a packed text", lambda: [chunks[0], (b"zTXt", name + b"\0\0" + rng.choice((bomb, b"x", b""))), *chunks[1:]]),
        ("a profile", lambda: [chunks[0], (b"iCCP", b"x\0\0" + bomb), *chunks[1:]]),
        ("only other texts", lambda: [chunks[0], (b"tEXt", b"parameters\0" + _latin(lines)), *chunks[-2:]]),
        ("another size", lambda: [(b"IHDR", large), *chunks[1:]]),
        ("another header", lambda: [(b"IHDR", ihdr[:8] + rng.randbytes(5)), *chunks[1:]]),
        ("no pixels", lambda: [chunk for chunk in chunks if chunk[0] != b"IDAT"]),
        ("packed NULs for pixels", lambda: [*chunks[:-2], (b"IDAT", bomb), chunks[-1]]),
        ("no end", lambda: chunks[:-1]),
        ("an animation", lambda: [chunks[0], (b"acTL", struct.pack(">II", 2**31, 0)), *chunks[1:]]),
        ("another order", lambda: rng.sample(chunks, len(chunks))),
        ("many chunks", lambda: [chunks[0], *[(b"teSt", b"")] * rng.choice((1000, 70_000)), *chunks[1:]]),
        ("long text", lambda: [chunks[0], (b"tEXt", name + b"\0" + b"x" * (2**20 + 5)), *chunks[1:]]),
    )
    what, build = rng.choice(made)
    return png_of(build(), rng.randrange(len(chunks)) if rng.random() < 0.05 else -1), what


def _latin(text: str) -> bytes:
    return text.encode("latin-1", "replace")


# Databases


def change_sqlite(file: Path, rng: Random) -> str:
    """A database with other values in its rows, other tables, or other bytes."""
    if rng.random() >= 0.2:
        with suppress(sqlite3.Error):  # of one that was changed before
            return _changed_database(file, rng)
    data, what = change_bytes(file.read_bytes(), rng)
    put(file, data)
    return what


def _changed_database(file: Path, rng: Random) -> str:
    strict = rng.random() < 0.5
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        if not tables:
            raise sqlite3.DatabaseError("it was emptied before")
        table = rng.choice(tables)
        if rng.random() < 0.15:
            statements = (
                f"PRAGMA user_version = {rng.choice((0, 2, 99, -1))}",
                f"DROP TABLE {table}",
                f"ALTER TABLE {table} RENAME TO other",
                f"CREATE TABLE {table}2 (x)",
                f"CREATE TRIGGER t AFTER INSERT ON {table} BEGIN SELECT RAISE(ABORT, '\x1b[2Jno'); END",
                f"DROP TABLE {table}; CREATE VIEW {table} AS SELECT 1 AS id, 'x' AS text, 'y' AS job",
                f"DROP TABLE {table}; CREATE TABLE {table} (id, text, path, pid, started, active, ended, session, key, "
                "value, state, position, finished, job)",
            )
            statement = rng.choice(statements)
            db.executescript(statement)
            return statement[:80]
        if not strict:  # the same table, which takes anything
            create = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
            rows = db.execute(f"SELECT * FROM {table}").fetchall()
            loose = re.sub(r" STRICT$", "", create)
            loose = re.sub(r"(INTEGER|TEXT|REAL|BLOB)(?! PRIMARY)( NOT NULL)?", "", loose)
            db.execute(f"DROP TABLE {table}")
            db.execute(loose)
            if rows:
                db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        column = rng.choice(columns)
        row = db.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid LIMIT 1").fetchone()
        value: Any = row[1] if row else None
        if isinstance(value, str) and value[:1] in '{["' and rng.random() < 0.8:
            text, what = change_json(value.encode(), rng)
            value = text.decode("utf-8", "replace")
        else:
            value = rng.choice(
                (
                    None,
                    "",
                    "x",
                    "\x1b[2J\u202e",
                    b"\xff\xfe",
                    0,
                    -1,
                    2**62,
                    1.5,
                    1e308,
                    float("inf"),
                    "x" * 5000,
                    "[" * 10**5,
                )
            )
            what = _short(value)
        with suppress(sqlite3.Error, OverflowError):  # that this column cannot hold
            every = rng.random() < 0.5
            db.execute(f"UPDATE {table} SET {column} = ?" + ("" if every else " WHERE rowid = 1"), (value,))
        return f"{table}.{column}: {what}"


# What lies at a path


def put(file: Path, data: bytes) -> None:
    """Write a file anew: others may be the same one by a link."""
    with suppress(OSError):
        file.unlink()
    file.write_bytes(data)


def change_place(file: Path, outside: Path, rng: Random) -> str:
    """Something else than an ordinary file at this path. `outside` is a folder that does not belong to it."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink()
    match rng.choice(
        ("folder", "zero", "loop", "nowhere", "secret", "pipe", "sparse", "empty", "socket", "gone", "full")
    ):
        case "folder":
            file.mkdir()
            (file / "x").write_text("x")
            return "a folder"
        case "zero":
            file.symlink_to("/dev/zero")
            return "a link to /dev/zero"
        case "loop":
            file.symlink_to(file.name)
            return "a link to itself"
        case "nowhere":
            file.symlink_to(outside / "nothing")
            return "a link to nothing"
        case "secret":
            file.symlink_to(outside / rng.choice(("secret.json", "secret.txt", "secret.safetensors", "folder")))
            return "a link out of the folder"
        case "pipe":
            os.mkfifo(file)
            return "a named pipe"
        case "sparse":
            with file.open("wb") as stream:
                stream.write(rng.choice((b"{", b"GGUF\3\0\0\0", b"\0" * 8, b"\xff" * 7 + b"\0", b"[")))
                stream.truncate(rng.choice((2**21, 2**28, 2**34)))
            return "a large file without content"
        case "socket":
            with closing(socket.socket(socket.AF_UNIX)) as end, suppress(OSError):
                end.bind(str(file))
            return "a socket"
        case "gone":
            return "gone"
        case "full":
            file.symlink_to("/dev/full")
            return "a link to /dev/full"
    file.write_bytes(b"")
    return "empty"


def plant_code(folder: Path) -> None:
    """Modules and pickles that must never run, where libraries look for them."""
    code = f"raise SystemExit('{CANARY}')\n"
    pickled = b"cos\nsystem\n(S'true'\ntR."
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
        for name in (f"{PIECE}.py", "modeling.py", "tokenization.py", "__init__.py", "conftest.py"):
            (place / name).write_text(code)
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "tokenizer.pkl"):
            (place / name).write_bytes(pickled)
