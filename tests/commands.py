"""`t2i` run as a person runs it: in a process of its own, with folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def isolated_environment(base: Path) -> dict[str, str]:
    """Folders of their own below `base`, and no setting of the developer's terminal."""
    kinds = ("STATE", "CACHE", "CONFIG", "OUTPUT")
    mine = {f"TEXTTOIMAGETOOL_{kind}_DIR": str(base / kind.lower()) for kind in kinds}
    return {**os.environ, "PYTHONPATH": str(ROOT), **mine}


def t2i(*arguments: str, env: Mapping[str, str], stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "tui", *arguments], env=env, input=stdin, capture_output=True)
    return subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode().replace("\r\n", "\n"),
        done.stderr.decode().replace("\r\n", "\n"),
    )


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
