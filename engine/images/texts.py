"""The texts inside a picture's file: chunks of PNG, EXIF and comments of JPEG and WebP, XMP.

A picture from the Internet can say anything, so its parts are walked here with hard limits: neither pixels nor any
text but those that are looked for are ever loaded, and nothing but bytes and offsets is interpreted.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 2**20  # of one text, after decompression; our own texts stay below 100 kB
MAX_PARTS = 2**16  # libpng writes pixels 8 KiB a chunk: this is half a gigabyte of them
MAX_KEYWORD_BYTES = 79  # PNG specification, 11.3.3.2
MAX_NAMES = 100  # of texts that are named, none of which is known
MAX_TAGS = 512  # of one directory of an EXIF block; cameras write fewer than 100

TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
# Names under which texts without a name of their own are found.
USER_COMMENT = "UserComment"
COMMENT = "comment"
XMP = "XML:com.adobe.xmp"
SOFTWARE_TAG = "Software"
_TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: SOFTWARE_TAG}
_EXIF_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286

ENDS_EARLY = "ends too early, the file is damaged; use another copy of the picture."
DAMAGED = "has damaged settings in it; use another copy of the picture."
TOO_LONG = f"has more than {MAX_TEXT_BYTES // 2**20} MiB of text for its settings; a picture's settings are shorter."


class UnreadableError(Exception):
    """The picture gives no settings: the message goes after the file's name and completes one sentence."""


def read_texts(file: BinaryIO, wanted: Collection[str]) -> tuple[dict[str, str], UnreadableError | None]:
    """The first text of each wanted name, and what is wrong with the file or with the first text that is wrong.

    Raises `UnreadableError` for what is no picture, `OSError` where reading fails.
    """
    file.seek(0)
    start = file.read(12)
    if start.startswith(PNG_SIGNATURE):
        file.seek(len(PNG_SIGNATURE))
        parts = _of_png(file, wanted)
    elif start.startswith(b"\xff\xd8\xff"):
        file.seek(2)
        parts = _of_jpeg(file)
    elif start[:4] == b"RIFF" and start[8:] == b"WEBP":
        parts = _of_webp(file)
    else:
        raise UnreadableError("is not a PNG picture, nor JPEG or WebP; give a picture as it was saved.")
    texts: dict[str, str] = {}
    problem: UnreadableError | None = None
    for part in parts:
        if isinstance(part, UnreadableError):
            problem = problem or part
            continue
        name, text = part
        if name in wanted:
            texts.setdefault(name, text)
            if len(texts) == len(wanted):
                break
    return texts, problem


def read_names(file: BinaryIO) -> list[str]:
    """The names of the texts in a PNG, without the texts; none of a JPEG or WebP, whose texts have no names."""
    file.seek(0)
    names: dict[str, None] = {}
    if file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE:
        for kind, length in _chunks(file):
            keyword = file.read(min(length, MAX_KEYWORD_BYTES + 1)) if kind in TEXT_CHUNKS else b""
            if b"\0" in keyword and len(names) < MAX_NAMES:
                names[keyword.partition(b"\0")[0].decode("latin-1")] = None
    return list(names)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk of a PNG, the file at its first byte."""
    for _ in range(MAX_PARTS):
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or kind == b"IEND":
            return
        end = file.tell() + length + 4
        yield kind, length
        file.seek(end)


Part = tuple[str, str] | UnreadableError


def _of_png(file: BinaryIO, wanted: Collection[str]) -> Iterator[Part]:
    names = {name.encode("latin-1"): name for name in wanted}
    seen: set[str] = set()
    for _ in range(MAX_PARTS):
        header = file.read(8)
        if len(header) < 8:
            yield UnreadableError(ENDS_EARLY)
            return
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if kind == b"IEND":
            return
        end = file.tell() + length + 4
        keyword = file.read(min(length, MAX_KEYWORD_BYTES + 1)) if kind in (*TEXT_CHUNKS, b"eXIf") else b""
        name = USER_COMMENT if kind == b"eXIf" else names.get(keyword.partition(b"\0")[0]) if b"\0" in keyword else None
        if name is None or name in seen or name not in wanted:
            file.seek(end)
            continue
        seen.add(name)
        if length > MAX_TEXT_BYTES:
            yield UnreadableError(TOO_LONG)
            file.seek(end)
            continue
        body = keyword + file.read(length - len(keyword))
        checksum = file.read(4)
        if len(body) < length or len(checksum) < 4:
            yield UnreadableError(ENDS_EARLY)
            return
        if zlib.crc32(kind + body) != int.from_bytes(checksum, "big"):
            yield UnreadableError(DAMAGED)
        elif kind == b"eXIf":
            yield from _of_exif(body)
        else:
            try:
                yield name, _decode_chunk(kind, body.partition(b"\0")[2])
            except UnreadableError as error:
                yield error
    yield UnreadableError("has too many parts for a picture; use another copy of it.")


def _of_jpeg(file: BinaryIO) -> Iterator[Part]:
    """APP1 (EXIF, XMP) and comments, before the first scan."""
    for _ in range(MAX_PARTS):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            yield UnreadableError(ENDS_EARLY if len(marker) < 2 else DAMAGED)
            return
        if marker[1] in (0xDA, 0xD9):  # pixels, or the end
            return
        length = int.from_bytes(file.read(2), "big")
        if length < 2:
            yield UnreadableError(DAMAGED)
            return
        if marker[1] not in (0xE1, 0xFE):
            file.seek(length - 2, os.SEEK_CUR)
            continue
        body = file.read(length - 2)
        if len(body) < length - 2:
            yield UnreadableError(ENDS_EARLY)
            return
        if marker[1] == 0xFE:
            yield COMMENT, decode_text(body)
        elif body.startswith(b"Exif\0\0"):
            yield from _of_exif(body[6:])
        elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            yield XMP, decode_text(body.partition(b"\0")[2])


def _of_webp(file: BinaryIO) -> Iterator[Part]:
    """The chunks EXIF and XMP, which come after the pixels."""
    for _ in range(MAX_PARTS):
        header = file.read(8)
        if len(header) < 8:
            return
        kind, length = header[:4], int.from_bytes(header[4:], "little")
        if kind not in (b"EXIF", b"XMP "):
            file.seek(length + length % 2, os.SEEK_CUR)
            continue
        if length > MAX_TEXT_BYTES:
            yield UnreadableError(TOO_LONG)
            return
        body = file.read(length)
        file.seek(length % 2, os.SEEK_CUR)
        if len(body) < length:
            yield UnreadableError(ENDS_EARLY)
        elif kind == b"XMP ":
            yield XMP, decode_text(body)
        else:
            yield from _of_exif(body.removeprefix(b"Exif\0\0"))


def _of_exif(data: bytes) -> Iterator[Part]:
    """The texts of an EXIF block: its first directory, and the user's comment of the one below."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        yield UnreadableError(DAMAGED)
        return
    first = struct.unpack_from(order + "I", data, 4)[0]
    below = None
    for tag, value in _directory(data, order, first):
        if tag == _EXIF_DIRECTORY and len(value) == 4:
            below = struct.unpack(order + "I", value)[0]
        elif tag in _TAGS:
            text = decode_text(value.rstrip(b"\0"))
            name, colon, rest = text.partition(":")
            if colon and name.lower() in ("prompt", "workflow"):  # so ComfyUI saves WebP
                yield name.lower(), rest
            yield _TAGS[tag], text
    if below is not None:
        for tag, value in _directory(data, order, below):
            if tag == _USER_COMMENT:
                yield USER_COMMENT, _decode_comment(value, order)


def _directory(data: bytes, order: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Tags of a TIFF directory and the bytes of their values; what lies outside the block is passed over."""
    if offset + 2 > len(data):
        return
    count = struct.unpack_from(order + "H", data, offset)[0]
    for place in range(offset + 2, offset + 2 + 12 * min(count, MAX_TAGS), 12):
        if place + 12 > len(data):
            return
        tag, kind, number = struct.unpack_from(order + "HHI", data, place)
        length = number * {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}.get(kind, 0)
        start = place + 8 if length <= 4 else struct.unpack_from(order + "I", data, place + 8)[0]
        if 0 < length <= len(data) - start:
            yield tag, data[start : start + length]


def _decode_comment(value: bytes, order: str) -> str:
    """An EXIF user comment: eight bytes that name the encoding, and the text (Exif 2.32, 4.6.5)."""
    code, text = value[:8], value[8:]
    if code != b"UNICODE\0":
        return decode_text(text if code in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)) else value).strip("\0")
    even, odd = text[::2].count(0), text[1::2].count(0)  # the upper halves of ASCII letters
    if not even and not odd:
        return decode_text(text)  # some write UTF-8 under this name
    big = even > odd or (even == odd and order == ">")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        big, text = text[:2] == b"\xfe\xff", text[2:]
    return text.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0")


def decode_text(data: bytes) -> str:
    """UTF-8 where it is that, else Latin-1, of which PNG says that its texts are: many write UTF-8 all the same."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _decode_chunk(kind: bytes, body: bytes) -> str:
    """The text of a chunk, from what follows its keyword (PNG specification, 11.3.3)."""
    if kind == b"tEXt":
        return decode_text(body)
    if kind == b"zTXt":
        return decode_text(_decompress(body[1:]))
    compressed, (_language, _, rest) = body[:1] == b"\x01", body[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    try:
        return (_decompress(text) if compressed else text).decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableError(DAMAGED) from None


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_TEXT_BYTES + 1)  # stops there, however much there is to come
    except zlib.error:
        raise UnreadableError(DAMAGED) from None
    if len(text) > MAX_TEXT_BYTES:
        raise UnreadableError(TOO_LONG)
    if not stream.eof:
        raise UnreadableError(DAMAGED)
    return text
