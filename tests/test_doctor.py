"""`t2i doctor`: machines that nobody here owns as tables of facts, and this machine for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cli import machine
from engine.cli.doctor import advice, report, verdict
from engine.cli.machine import Card, Disk, Facts, Terminal, Torch, inspect, parse_nvidia_smi

ROOT = Path(__file__).parent.parent
GIB = 2**30
RTX_3060 = Card("NVIDIA GeForce RTX 3060", 12 * GIB, 11 * GIB)
CPU_BUILD = Torch("2.13.0+cpu")
CUDA_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CUDA_BUILD = Torch("2.13.0+cu130", cuda="13.0", archs=CUDA_ARCHS, cards=(replace(RTX_3060, arch="sm_86"),))
LAPTOP = Facts(
    python="3.12.1",
    system="Debian GNU/Linux 12",
    machine="x86_64",
    torch=CPU_BUILD,
    packages=dict.fromkeys(machine.PACKAGES, "1.0"),
    driver=None,
    driver_cards=(),
    hardware_cards=0,
    visible_devices=None,
    ram_total_bytes=16 * GIB,
    ram_free_bytes=8 * GIB,
    disks=(Disk("pictures", "/home/me/Pictures", 100 * GIB),),
    terminal=Terminal(True, "xterm-256color", True, True, 120, 40, False, None, "truecolor", "COLORTERM"),
)
WORKSTATION = replace(LAPTOP, torch=CUDA_BUILD, driver="580.95.05", driver_cards=(RTX_3060,), hardware_cards=1)


def unusable(cuda: str, error: str | None = None) -> Torch:
    """A CUDA build that sees no card."""
    return Torch("2.13.0", cuda=cuda, cards_error=error)


def with_card(arch: str, archs: tuple[str, ...] = CUDA_ARCHS) -> dict[str, Any]:
    """A working driver, and a card of an architecture that torch may have no kernels for."""
    card = replace(RTX_3060, arch=arch)
    return {"torch": replace(CUDA_BUILD, cards=(card,), archs=archs)}


@pytest.mark.parametrize("facts", [LAPTOP, WORKSTATION], ids=["laptop", "workstation"])
def test_a_machine_in_order_gets_no_advice(facts: Facts) -> None:
    assert advice(facts) == []
    assert verdict(facts).startswith("ready")


@pytest.mark.parametrize(
    ("changes", "sentence", "judgement"),
    [
        ({"torch": CPU_BUILD}, "RTX 3060 is present but this torch is a CPU build", "ready, on the CPU: "),
        (
            {"torch": unusable("13.0"), "driver": "550.54.14"},
            "driver 550.54.14 is too old for torch's CUDA 13.0 build, which needs 580 or newer",
            "ready, on the CPU: ",
        ),
        ({"torch": unusable("12.8"), "driver": "470.1"}, "needs 525 or newer", "ready, on the CPU: "),
        ({"torch": unusable("14.2"), "driver": "570.1"}, "needs 580 or newer", "ready, on the CPU: "),
        (
            {"torch": unusable("12.8"), "driver": "550.54.14", "visible_devices": ""},
            "CUDA_VISIBLE_DEVICES is '', which hides NVIDIA GeForce RTX 3060",
            "ready, on the CPU: ",
        ),
        (
            {"torch": unusable("13.0", "CUDA unknown error")},
            "torch cannot use it (CUDA unknown error); restart",
            "ready, on the CPU: ",
        ),
        (
            {"torch": unusable("13.0"), "driver": None, "driver_cards": ()},
            "An NVIDIA card is present but its driver does not answer",
            "ready, on the CPU: ",
        ),
        (with_card("sm_61"), "(sm_61) is not among the cards that this torch was built for", "ready, on the CPU: "),
        (
            {"torch": Torch(error="No module named 'torch'")},
            "torch cannot be imported (No module named 'torch')",
            "a problem: torch cannot be imported",
        ),
        (
            {"packages": {"textual": "8.2"}},
            "diffusers, transformers, accelerate, safetensors not found",
            "a problem: diffusers",
        ),
        ({"ram_free_bytes": GIB}, "Only 1.0 GiB of RAM are free", "ready: "),
        ({"disks": (Disk("pictures", "/full", 2**20),)}, "Only 0.0 GiB are free for pictures in /full", "ready: "),
        ({"disks": (Disk("the cache", "/ro", GIB * 9, "no permission"),)}, "(no permission)", "ready: "),
        ({"terminal": Terminal(True, "xterm", False, False, 80, 24, True, None)}, "UTF-8 locale", "ready: "),
        ({"terminal": Terminal(True, "xterm", False, True, 79, 24, True, "tmux")}, "79x24", "ready: "),
    ],
)
def test_one_thing_wrong_gives_one_sentence(changes: dict[str, Any], sentence: str, judgement: str) -> None:
    facts = replace(WORKSTATION, **changes)
    (only,) = advice(facts)
    assert sentence in only
    assert only.endswith(".")
    assert verdict(facts).startswith(judgement)


@pytest.mark.parametrize(
    "changes",
    [
        with_card("sm_86"),
        with_card("sm_89"),  # runs sm_86's kernels
        with_card("sm_121"),
        with_card("sm_130"),  # translates compute_120 when it first runs
        with_card("sm_90", ("sm_90a",)),
        with_card("gfx1100"),
        with_card("sm_61", ()),
        {"driver": "525.1", "torch": replace(CUDA_BUILD, cuda="12.8")},
        {"visible_devices": "0"},
        {"hardware_cards": None, "ram_free_bytes": None, "ram_total_bytes": None},
        {"terminal": Terminal(False, "", False, False, 20, 5, False, None)},
        {"torch": Torch("2.13.0", rocm="6.4", cards=(Card("Radeon", arch="gfx1100"),)), "driver_cards": ()},
        {"torch": replace(CPU_BUILD, metal=True), "driver_cards": (), "hardware_cards": None},
    ],
)
def test_what_works_is_not_complained_about(changes: dict[str, Any]) -> None:
    assert advice(replace(WORKSTATION, **changes)) == []


def test_the_report_ends_with_the_verdict_and_shows_no_control_characters_as_such() -> None:
    lines = report(WORKSTATION)
    assert lines[-1] == "ready: pictures are made on NVIDIA GeForce RTX 3060 (CUDA 13.0)."
    assert "card      NVIDIA GeForce RTX 3060 (sm_86), 12.0 GiB VRAM, 11.0 GiB free" in lines
    assert "driver    NVIDIA 580.95.05" in lines
    assert "terminal  xterm-256color, truecolor (COLORTERM), UTF-8, 120x40" in lines


def test_nvidia_smi_is_read_line_by_line() -> None:
    text = "NVIDIA GeForce RTX 3060, 12288, 11264, 550.54.14\nNVIDIA GB10, [N/A], [N/A], 550.54.14\nnonsense\n\n"
    assert parse_nvidia_smi(text) == ("550.54.14", (RTX_3060, Card("NVIDIA GB10")))
    assert parse_nvidia_smi("") == (None, ())


def test_this_machine_can_be_inspected() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tui", "doctor"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines()[-1].startswith("ready")
    printed = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True)
    facts = json.loads(printed.stdout)
    assert facts["event"] == "doctor"
    assert facts["torch"]["error"] is None
    assert facts["verdict"] == shown.stdout.splitlines()[-1]
    assert facts["ram_total_bytes"] > facts["ram_free_bytes"] > 0


def test_a_torch_that_breaks_its_process_is_a_fact_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, code in (
        ("crash", "import os; os._exit(3) if os.name == 'nt' else os.kill(os.getpid(), 9)"),
        ("broken", "raise ImportError('no such \\x1b[31mDLL')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "torch.py").write_text(code)
    monkeypatch.setattr(machine, "ROOT", os.pathsep.join([str(tmp_path / "crash"), machine.ROOT]))
    assert "ended the process with " in (inspect().torch.error or "")
    monkeypatch.setattr(machine, "ROOT", os.pathsep.join([str(tmp_path / "broken"), machine.ROOT]))
    facts = inspect()
    assert facts.torch.error == "ImportError: no such \x1b[31mDLL"
    assert verdict(facts).startswith("a problem: torch cannot be imported")
    from engine.cli.commands import main

    assert main(["doctor"]) == 1
    assert "no such \\x1b[31mDLL" in capfd.readouterr().out


def test_nothing_odd_about_a_machine_stops_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*_: object, **__: object) -> None:
        raise OSError("odd")

    for name in ("psutil.virtual_memory", "shutil.disk_usage", "shutil.which", "platform.freedesktop_os_release"):
        monkeypatch.setattr(name, odd)
    monkeypatch.setattr("engine.folders.state_dir", odd)
    monkeypatch.setattr(machine, "TORCH_TIMEOUT", 0.001)
    monkeypatch.setenv("TEXTTOIMAGETOOL_OUTPUT_DIR", "x" * 5000)
    facts = inspect()
    assert facts.ram_total_bytes is None
    assert facts.torch.error == "the import took longer than 0.001 s"
    assert report(facts)[-1].startswith("a problem: ")
