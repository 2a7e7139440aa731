"""`t2i doctor`: whether pictures can be made on this machine, on what, and what to do if not.

`advice` and `verdict` look at `Facts` and at nothing else, so that every machine we do not own can still be tested.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from engine.cli.console import write
from engine.cli.machine import Card, Facts, Terminal, Torch, inspect
from engine.text import printable

GIB = 2**30
REQUIRED_PACKAGES = ("diffusers", "transformers", "accelerate", "safetensors")
# The oldest driver for each CUDA major version: NVIDIA, "CUDA Compatibility", minor version compatibility.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
SELECTOR = "the install section of README and the selector on https://pytorch.org/get-started/locally"
LITTLE_DISK, LITTLE_RAM = GIB, 2 * GIB  # bytes


def run(*, as_json: bool = False) -> int:
    """Print the report; the exit code is 1 only where torch cannot be imported."""
    facts = inspect()
    if as_json:
        judged = {"advice": advice(facts), "verdict": verdict(facts)}
        write(json.dumps({"event": "doctor", **asdict(facts), **judged}))
    else:
        write("\n".join(map(printable, report(facts))))
    return 0 if facts.torch.error is None else 1


def report(facts: Facts) -> list[str]:
    """The facts as lines for a person, then the advice, last the verdict."""
    cards = facts.torch.cards or facts.driver_cards
    rows = [
        ("Python", f"{facts.python} on {facts.system} ({facts.machine})"),
        ("torch", _torch_line(facts.torch)),
        *(("card", _card_line(card)) for card in cards or (Card("none found"),)),
        ("driver", f"NVIDIA {facts.driver}" if facts.driver else "no NVIDIA driver found"),
        ("memory", f"{_gib(facts.ram_total_bytes)} RAM, {_gib(facts.ram_free_bytes)} free"),
        *(("disk", f"{_gib(disk.free_bytes)} free for {disk.purpose} in {disk.path}") for disk in facts.disks),
        ("packages", ", ".join(f"{name} {number or 'not installed'}" for name, number in facts.packages.items())),
        ("terminal", _terminal_line(facts.terminal)),
    ]
    notes = [f"- {sentence}" for sentence in advice(facts)]
    return [*(f"{name:<10}{text}" for name, text in rows), "", *notes, verdict(facts)]


def advice(facts: Facts) -> list[str]:
    """One sentence for each thing that could be better: what is wrong and what to do."""
    sentences = [*_package_advice(facts), *_card_advice(facts)]
    if facts.ram_free_bytes is not None and facts.ram_free_bytes < LITTLE_RAM:
        sentences.append(
            f"Only {_gib(facts.ram_free_bytes)} of RAM are free; close other programs before a large model."
        )
    for disk in facts.disks:
        if disk.error is not None:
            sentences.append(f"The folder for {disk.purpose}, {disk.path}, cannot be written to ({disk.error}).")
        elif disk.free_bytes is not None and disk.free_bytes < LITTLE_DISK:
            sentences.append(
                f"Only {_gib(disk.free_bytes)} are free for {disk.purpose} in {disk.path}; make room there."
            )
    return [*sentences, *_terminal_advice(facts.terminal)]


def verdict(facts: Facts) -> str:
    """`ready: ...`, `ready, on the CPU: ...` or `a problem: ...`, in one line."""
    torch = facts.torch
    if torch.error is not None:
        return "a problem: torch cannot be imported, so no picture can be made; do what is said above."
    missing = [name for name in REQUIRED_PACKAGES if facts.packages.get(name) is None]
    if missing:
        return f"a problem: {', '.join(missing)} not installed; do what is said above."
    working = [card for card in torch.cards if _has_kernels(torch, card)]
    if working:
        build = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.rocm}"
        return f"ready: pictures are made on {working[0].name} ({build})."
    if facts.hardware_cards or facts.driver_cards:
        return "ready, on the CPU: pictures can be made, and much faster once the card is in use, as said above."
    return "ready, on the CPU: the demo model is made for it; large models need a graphics card."


def _package_advice(facts: Facts) -> list[str]:
    sentences = []
    if facts.torch.error is not None:
        sentences.append(f"torch cannot be imported ({facts.torch.error}); install it again: see {SELECTOR}.")
    missing = [name for name in REQUIRED_PACKAGES if facts.packages.get(name) is None]
    if missing:
        sentences.append(f"{', '.join(missing)} not found; run pip install . in the project's folder.")
    return sentences


def _card_advice(facts: Facts) -> list[str]:
    """One sentence where the driver and torch's build do not go together, else one for each card without kernels."""
    torch, cards = facts.torch, facts.driver_cards
    name = cards[0].name if cards else "An NVIDIA card"
    if torch.error is not None or torch.rocm is not None:
        return _kernel_advice(torch)
    if not cards:
        if facts.hardware_cards and not torch.cards:
            return [
                "An NVIDIA card is present but its driver does not answer; install the driver from"
                " nvidia.com/drivers and restart, or let the container have the card."
            ]
        return _kernel_advice(torch)
    if torch.cuda is None:
        return [f"{name} is present but this torch is a CPU build; install a CUDA build: see {SELECTOR}."]
    if torch.cards:
        return _kernel_advice(torch)
    needed = _oldest_driver(torch.cuda)
    if needed is not None and facts.driver is not None and _major(facts.driver) < needed:
        return [
            f"The NVIDIA driver {facts.driver} is too old for torch's CUDA {torch.cuda} build, which needs {needed} or"
            f" newer; update it from nvidia.com/drivers, or install a torch for an older CUDA: see {SELECTOR}."
        ]
    if facts.visible_devices is not None:
        return [f"CUDA_VISIBLE_DEVICES is {facts.visible_devices!r}, which hides {name} from torch; unset it."]
    reason = f" ({torch.cards_error})" if torch.cards_error else ""
    return [f"{name} is present but torch cannot use it{reason}; restart the machine, then update the driver."]


def _kernel_advice(torch: Torch) -> list[str]:
    return [
        f"{card.name} ({card.arch}) is not among the cards that this torch was built for; install a build that"
        f" has it: see {SELECTOR}."
        for card in torch.cards
        if not _has_kernels(torch, card)
    ]


def _has_kernels(torch: Torch, card: Card) -> bool:
    """NVIDIA's rule: sm_XY runs on cards of the same X and an equal or higher Y, compute_XY on that and all newer."""
    here = _capability(card.arch)
    if here is None or not torch.archs:
        return True  # nothing to judge by (ROCm, an unknown name)
    for arch in torch.archs:
        built = _capability(arch)
        if built is not None and built <= here and (arch.startswith("compute_") or built[0] == here[0]):
            return True
    return False


def _capability(arch: str | None) -> tuple[int, int] | None:
    """sm_86 is (8, 6); letters behind it (sm_90a) do not count."""
    digits = (arch or "").partition("_")[2].rstrip("af")
    if not (arch or "").startswith(("sm_", "compute_")) or not digits.isdecimal() or len(digits) < 2:
        return None
    return int(digits[:-1]), int(digits[-1])


def _terminal_advice(terminal: Terminal) -> list[str]:
    if not terminal.is_terminal:
        return []
    sentences = []
    if not terminal.unicode:
        sentences.append("The terminal is not set to UTF-8; set LANG to a UTF-8 locale such as C.UTF-8.")
    if terminal.columns < 80 or terminal.rows < 24:
        sentences.append(f"The terminal has {terminal.columns}x{terminal.rows} characters; 80x24 show everything.")
    return sentences


def _oldest_driver(cuda: str) -> int | None:
    major = _major(cuda)
    return OLDEST_DRIVER.get(major, OLDEST_DRIVER[13] if major > 13 else None)


def _major(version: str) -> int:
    digits = version.partition(".")[0]
    return int(digits) if digits.isdecimal() else 0


def _torch_line(torch: Torch) -> str:
    if torch.error is not None:
        return f"cannot be imported: {torch.error}"
    build = f"CUDA {torch.cuda}" if torch.cuda else f"ROCm {torch.rocm}" if torch.rocm else "CPU"
    return f"{torch.version}, a {build} build" + (", Metal (MPS) available" if torch.metal else "")


def _card_line(card: Card) -> str:
    memory = f", {_gib(card.total_bytes)} VRAM, {_gib(card.free_bytes)} free" if card.total_bytes else ""
    return f"{card.name}{f' ({card.arch})' if card.arch else ''}{memory}"


COLORS_IN_WORDS = {"truecolor": "truecolor", "256": "256 colours", "16": "16 colours", "none": "no colours"}


def _terminal_line(terminal: Terminal) -> str:
    if not terminal.is_terminal:
        return "none: the output goes to a file or a program"
    parts = [
        terminal.term or "no TERM",
        COLORS_IN_WORDS[terminal.colors] + (f" ({terminal.colors_from})" if terminal.colors_from else ""),
        "UTF-8" if terminal.unicode else "not UTF-8",
        f"{terminal.columns}x{terminal.rows}",
        *(["over SSH"] if terminal.ssh else []),
        *([f"in {terminal.multiplexer}"] if terminal.multiplexer else []),
    ]
    return ", ".join(parts)


def _gib(count: int | None) -> str:
    return "an unknown amount" if count is None else f"{count / GIB:.1f} GiB"
