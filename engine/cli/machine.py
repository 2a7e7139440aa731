"""What this machine is: gathered for `t2i doctor` by `inspect`, which never fails.

What cannot be found out is None. Judging it is `engine.cli.doctor`'s part.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine import folders
from engine.cli.colors import Colors, colors_of, tmux_features

PACKAGES = ("diffusers", "transformers", "accelerate", "safetensors", "textual")
TORCH_TIMEOUT, SMI_TIMEOUT = 180, 20  # seconds; a first import from a cold disk is slow
ROOT = str(Path(__file__).parents[2])  # where `engine` itself is imported from
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card. Bytes are None where nobody tells them (shared memory, no driver)."""

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    arch: str | None = None  # what its kernels are compiled for: sm_86, gfx1100


@dataclass(frozen=True, slots=True)
class Torch:
    """How torch was built, and what it can use here. `error`: why it cannot be imported."""

    version: str | None = None
    cuda: str | None = None  # version that it was built for; None: not a CUDA build
    rocm: str | None = None
    archs: tuple[str, ...] = ()  # that it has kernels for: sm_86, compute_90
    cards: tuple[Card, ...] = ()  # usable ones
    cards_error: str | None = None  # why there are none in a CUDA or ROCm build
    metal: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder that is written to. `error`: why it cannot be."""

    purpose: str
    path: str
    free_bytes: int | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Terminal:
    """What stdout can show."""

    is_terminal: bool
    term: str
    truecolor: bool
    unicode: bool
    columns: int
    rows: int
    ssh: bool
    multiplexer: str | None  # tmux or screen
    colors: Colors = "16"
    colors_from: str = ""  # what says so


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that `advice` looks at."""

    python: str
    system: str
    machine: str
    torch: Torch
    packages: dict[str, str | None]
    driver: str | None  # NVIDIA's
    driver_cards: tuple[Card, ...]  # that the driver sees
    hardware_cards: int | None  # NVIDIA devices on the bus, driver or not; None: cannot be told here
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES
    ram_total_bytes: int | None
    ram_free_bytes: int | None
    disks: tuple[Disk, ...]
    terminal: Terminal


def inspect() -> Facts:
    """What there is on this machine. Takes a few seconds: torch is imported, in a process of its own."""
    driver, cards = _known(_ask_driver, (None, ()))
    total, free = _known(_ram, (None, None))
    return Facts(
        python=platform.python_version(),
        system=_known(_system, sys.platform),
        machine=platform.machine(),
        torch=_ask_torch(),
        packages={name: _package_version(name) for name in PACKAGES},
        driver=driver,
        driver_cards=cards,
        hardware_cards=_known(_nvidia_devices, None),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        ram_total_bytes=total,
        ram_free_bytes=free,
        disks=tuple(
            _disk(purpose, folder)
            for purpose, folder in (
                ("pictures", folders.default_output_dir),
                ("the cache", folders.cache_dir),
                ("the history", folders.state_dir),
            )
        ),
        terminal=_terminal(),
    )


def _known(ask: Callable[[], T], unknown: U) -> T | U:
    """`ask()`, or `unknown` where it fails: no oddity of a machine may stop the report about it."""
    try:
        return ask()
    except Exception:
        return unknown


def _ask_torch() -> Torch:
    """Import torch in another process: a broken build may take its process down (a missing instruction, a DLL)."""
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    code = "from engine.cli.machine import probe_torch; probe_torch()"
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TORCH_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Torch(error=f"the import took longer than {TORCH_TIMEOUT} s")
    except OSError as error:
        return Torch(error=f"no process could be started to try: {error.strerror}")
    try:
        values: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
        values["archs"] = tuple(values["archs"])
        values["cards"] = tuple(Card(**card) for card in values["cards"])
        return Torch(**values)
    except (IndexError, KeyError, TypeError, ValueError):
        # What a process that broke says last is the reason: "ImportError: ...".
        said = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        return Torch(
            error=(said[-1] if said else f"importing it ended the process with {_ending(child.returncode)}")[:200]
        )


def _ending(code: int) -> str:
    """An exit code in words: -4 is SIGILL, an instruction that this processor lacks."""
    return _known(lambda: signal.Signals(-code).name, f"code {code}") if code < 0 else f"code {code}"


def probe_torch() -> None:
    """In the process of `_ask_torch`: import torch and print what it is and sees, as JSON."""
    import torch

    cards: list[Card] = []
    error = None
    if torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()  # unlike is_available, says why not
            cards = [_torch_card(index) for index in range(torch.cuda.device_count())]
        except Exception as problem:  # whatever a driver may raise
            error = str(problem).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    found = Torch(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        rocm=torch.version.hip,
        archs=tuple(_known(torch.cuda.get_arch_list, [])) if cards else (),
        cards=tuple(cards),
        cards_error=error,
        metal=_known(torch.backends.mps.is_available, False),
    )
    print(json.dumps(asdict(found)))


def _torch_card(index: int) -> Card:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = _known(lambda: torch.cuda.mem_get_info(index), (None, properties.total_memory))
    arch = getattr(properties, "gcnArchName", "") if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    return Card(properties.name, total, free, arch or None)


def _ask_driver() -> tuple[str | None, tuple[Card, ...]]:
    """The NVIDIA driver's version and its cards, from nvidia-smi, which comes with every driver."""
    if os.name == "nt":  # by its full path: a search would begin in the current folder
        program = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvidia-smi.exe")
    else:
        program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    answer = subprocess.run(
        [program, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SMI_TIMEOUT,
        check=True,
    )
    return parse_nvidia_smi(answer.stdout)


def parse_nvidia_smi(text: str) -> tuple[str | None, tuple[Card, ...]]:
    """Driver version and cards from lines of `name, total MiB, free MiB, driver`; other lines are passed over."""
    driver, cards = None, []
    for line in text.splitlines():
        columns = [column.strip() for column in line.rsplit(",", 3)]
        if len(columns) == 4:
            name, total, free, driver = columns
            cards.append(Card(name, _mebibytes(total), _mebibytes(free)))
    return driver, tuple(cards)


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdecimal() else None


def _nvidia_devices() -> int | None:
    devices = Path("/sys/bus/pci/devices")
    if not devices.is_dir():
        return None
    return sum(
        (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
        for device in devices.iterdir()
    )


def _system() -> str:
    if platform.system() == "Linux":
        name = _known(lambda: platform.freedesktop_os_release()["PRETTY_NAME"], "Linux")
        return f"{name}, kernel {platform.release()}"
    return platform.platform()


def _ram() -> tuple[int | None, int | None]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _package_version(name: str) -> str | None:
    from importlib.metadata import version

    return _known(lambda: version(name), None)


def _disk(purpose: str, folder: Callable[[], Path]) -> Disk:
    path = _known(folder, None)
    if path is None:
        return Disk(purpose, "?", None, "its place cannot be told")
    there = next((parent for parent in (path, *path.parents) if _known(parent.exists, False)), None)
    if there is None:
        return Disk(purpose, str(path), None, "its disk is missing")
    error = None
    if not there.is_dir():
        error = f"{there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        error = "no permission"
    return Disk(purpose, str(path), _known(lambda: shutil.disk_usage(there).free, None), error)


def _terminal() -> Terminal:
    environment = os.environ
    columns, rows = shutil.get_terminal_size()
    stdout = sys.stdout
    colors, colors_from = colors_of(environment, sys.platform, tmux_features(environment))
    return Terminal(
        is_terminal=_known(stdout.isatty, False),
        term=environment.get("TERM", ""),
        truecolor=colors == "truecolor",
        unicode=(getattr(stdout, "encoding", None) or "").lower().replace("-", "") == "utf8",
        columns=columns,
        rows=rows,
        ssh=bool(environment.get("SSH_CONNECTION") or environment.get("SSH_TTY")),
        multiplexer="tmux" if environment.get("TMUX") else "screen" if environment.get("STY") else None,
        colors=colors,
        colors_from=colors_from,
    )
