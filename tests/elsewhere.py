"""Pictures as other programs leave them, and what is read from them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from engine.images.metadata import Said, read_settings
from engine.request import Request, RequestError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def picture(folder: Path, **texts: Any) -> Path:
    """A PNG with these texts as they are written: bytes, text as UTF-8, anything else as JSON."""
    data = SIGNATURE + chunk(b"IHDR", b"\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0")
    for name, text in texts.items():
        body = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
        data += chunk(b"tEXt", name.replace("__", ":").encode() + b"\0" + body)
    path = folder / "picture.png"
    path.write_bytes(data + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    return path


def said(folder: Path, **texts: Any) -> Said:
    return read_settings(picture(folder, **texts))


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(RequestError) as refused:
        read_settings(path, changes)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400
    return str(refused.value)


def values(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.to_dict().items() if value not in (None, False) and name != "count"}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


SIMPLE: dict[str, Any] = {
    "1": node("CheckpointLoaderSimple", ckpt_name="flux1-dev-fp8.safetensors"),
    "2": node("CLIPTextEncode", text="a cat", clip=["1", 1]),
    "3": node("CLIPTextEncode", text="dogs", clip=["1", 1]),
    "4": node("EmptyLatentImage", width=512, height=768, batch_size=1),
    "5": node(
        "KSampler",
        seed=7,
        steps=20,
        cfg=1,
        sampler_name="euler",
        scheduler="simple",
        denoise=1,
        model=["1", 0],
        positive=["2", 0],
        negative=["3", 0],
        latent_image=["4", 0],
    ),
    "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
    "7": node("SaveImage", images=["6", 0]),
}
