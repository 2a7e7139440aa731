"""The plan as text: it says whether the picture fits and why, in every width, and marks in words what does not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from engine.cli.plan_text import part_of, plan_lines, plan_summary, verdict
from engine.events import PhasePlan, Plan, Turnaround

ROOT = Path(__file__).parent.parent
GIB, MIB = 2**30, 2**20


def phase(name: Any, resident: float, activations: float, *, streamed: float = 0, loaded: float = 0) -> PhasePlan:
    """A phase with an allowance of 600 MiB; everything else in GiB."""
    parts = int(resident * GIB), int(activations * GIB), 600 * MIB
    return PhasePlan(name, parts[0], int(streamed * GIB), int(loaded * GIB), parts[1], parts[2], sum(parts))


def plan_of(budget_gib: float = 12, **changes: Any) -> Plan:
    """FLUX.1 on a simulated card: a peak of 9.1 GiB, in denoise."""
    phases = (
        phase("encode", 4.6, 0.3, loaded=4.6),
        phase("denoise", 7.9, 0.6, streamed=2.4, loaded=7.9),
        phase("decode", 0.16, 2.1, loaded=0.16),
    )
    plan = Plan(
        model="flux.1-schnell",
        size="1024x1024",
        steps=4,
        precision="fp8",
        target="RTX 3060 (simulated)",
        budget_bytes=int(budget_gib * GIB),
        peak_bytes=max(phase.peak_bytes for phase in phases),
        ram_budget_bytes=14 * GIB,
        host_bytes=int(7.2 * GIB),
        pinned_bytes=int(2.4 * GIB),
        phases=phases,
        text_encoder="T5, 4.8 billion parameters, fp8, streamed",
        tile=0,
        same_prompt=Turnaround(int(8.1 * GIB), 0, {"load": 0.9, "denoise": 15.6, "decode": 2.3}),
        new_prompt=Turnaround(
            int(12.7 * GIB), int(4.6 * GIB), {"load": 3.1, "encode": 0.6, "denoise": 15.6, "decode": 2.3}
        ),
        notes=("The desktop keeps 400 MiB of the card for itself.",),
    )
    return replace(plan, **changes)


PLANS = {
    "fits": plan_of(),
    "one phase over": plan_of(8),
    "all phases over": plan_of(2),
    "no budget": plan_of(0, ram_budget_bytes=0),
    "tiny": plan_of(phases=tuple(PhasePlan(name, 3, 0, 3, 1, 0, 4) for name in ("encode", "denoise", "decode"))),
    "huge": plan_of(900, phases=tuple(phase(name, 800, 99.9, streamed=700) for name in ("encode", "denoise"))),
    "nothing at all": plan_of(phases=(), notes=(), text_encoder="", model=""),
    "wide and hostile": plan_of(
        model="\u65e5\u672c\u306e\u30e2\u30c7\u30eb" * 9,
        text_encoder="[/b] \x1b[2J \u202e" + "x" * 300,
        notes=("\U0001f468\u200d\U0001f680 " * 60, "two\nlines"),
    ),
}


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [-5, 0, 1, 2, 9, 20, 28, 42, 60, 75, 80, 95, 120, 300])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_no_line_is_wider_than_asked_for_or_more_than_text(plan: Plan, width: int, ascii_only: bool) -> None:
    for line in plan_lines(plan, width, ascii_only):
        assert cell_len(line) <= max(0, width)
        assert line == line.rstrip()
        assert all(character.isprintable() or character == "\u200d" for character in line)


@pytest.mark.parametrize("name", ["fits", "one phase over", "all phases over", "no budget", "tiny", "huge"])
def test_the_ascii_form_is_ascii_and_as_long(name: str) -> None:
    lines = plan_lines(PLANS[name], 75, True)
    assert "\n".join(lines).isascii()
    assert [len(line) for line in lines] == [len(line) for line in plan_lines(PLANS[name], 75, False)]


def test_the_plan_reads_like_this() -> None:
    assert plan_lines(plan_of(), 75, True) == [
        "flux.1-schnell 1024x1024, 4 steps, fp8, on RTX 3060 (simulated)",
        "It fits: peak 9.1 GiB in denoise, 2.9 GiB under the budget of 12.0 GiB.",
        "",
        "                                                       streamed   loaded",
        "phase    weights  + activations  + allowance   = peak    a step     once",
        "encode   4.6 GiB        307 MiB      600 MiB  5.5 GiB         -  4.6 GiB",
        "denoise  7.9 GiB        614 MiB      600 MiB  9.1 GiB   2.4 GiB  7.9 GiB",
        "decode   164 MiB        2.1 GiB      600 MiB  2.8 GiB         -  164 MiB",
        "",
        "encode   #####################==+++..............................|  5.5 GiB",
        "denoise  #####################################===++..............|  9.1 GiB",
        "decode   #==========++...........................................|  2.8 GiB",
        "         # weights  = activations  + allowance  . free  | budget 12.0 GiB",
        "",
        "RAM           7.2 of 14.0 GiB, 2.4 GiB of it pinned",
        "text encoder  T5, 4.8 billion parameters, fp8, streamed",
        "time          load 3.1 s, encode 0.60 s, denoise 4 x 3.9 s, decode 2.3 s",
        "next picture  same prompt ~18.8 s, 8.1 GiB to the card, nothing from disk",
        "              new prompt ~21.6 s, 12.7 GiB to the card, 4.6 GiB from disk",
        "note          The desktop keeps 400 MiB of the card for itself.",
    ]


def test_it_fits_a_window_in_a_terminal_of_80x24() -> None:
    assert len(plan_lines(plan_of(8, notes=("A note " * 12,)), 75, False)) <= 22


def test_what_does_not_fit_is_said_in_words() -> None:
    lines = plan_lines(plan_of(8, host_bytes=15 * GIB), 75, True)
    text = "\n".join(lines)
    assert "It does not fit: denoise needs 9.1 GiB, 1.1 GiB over the budget of 8.0 GiB," in text
    assert "it needs 15.0 GiB of RAM, over the budget of 14.0 GiB there." in text
    bars = {line.split()[0]: line for line in lines if "|" in line and line[0] != " "}
    assert bars["denoise"].endswith("9.1 GiB, OVER by 1.1 GiB")
    assert bars["denoise"].partition("|")[2].strip("=+ ").startswith("9.1 GiB")  # what is beyond stands behind the mark
    assert "OVER" not in bars["encode"] + bars["decode"]
    assert len({line.index("|") for line in bars.values()}) == 1  # the budget is at one place
    assert "RAM           15.0 of 14.0 GiB, OVER by 1.0 GiB" in text


def test_narrow_terminals_get_columns_and_then_sentences() -> None:
    columns = plan_lines(plan_of(), 50, True)
    assert "phase             encode  denoise   decode" in columns
    assert "= peak           5.5 GiB  9.1 GiB  2.8 GiB" in columns
    sentences = " ".join(plan_lines(plan_of(8), 30, True))
    assert "denoise: weights 7.9 GiB + activations 614 MiB + allowance 600 MiB = peak 9.1 GiB, " in sentences
    assert "denoise 9.1 GiB, OVER by 1.1 GiB" in sentences


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (plan_of(), "It fits: peak 9.1 GiB in denoise, 2.9 GiB under the budget of 12.0 GiB."),
        (plan_of(5), "It does not fit: encode and denoise need up to 9.1 GiB, over the budget of 5.0 GiB."),
        (plan_of(2), "It does not fit: encode, denoise and decode need up to 9.1 GiB, over the budget of 2.0 GiB."),
        (plan_of(0), "The peak is 9.1 GiB in denoise; there is no budget."),
        (
            plan_of(host_bytes=15 * GIB),
            "It fits: peak 9.1 GiB in denoise, 2.9 GiB under the budget of 12.0 GiB. "
            "But it needs 15.0 GiB of RAM, over the budget of 14.0 GiB there.",
        ),
    ],
)
def test_the_verdict_is_a_sentence(plan: Plan, sentence: str) -> None:
    assert verdict(plan) == sentence


def test_the_short_form_is_a_few_words() -> None:
    assert plan_summary(plan_of()) == "peak 9.1 of 12.0 GiB, 2.4 GiB streamed a step"
    whole = plan_of(phases=(phase("denoise", 7.9, 0.6),))
    assert plan_summary(whole) == "peak 9.1 of 12.0 GiB, nothing streamed a step"
    chosen = plan_of(precision_reason="fp8: bf16 would stream 5.8 GiB a step")
    assert plan_summary(chosen) == "fp8, peak 9.1 of 12.0 GiB, 2.4 GiB streamed a step"
    assert "precision     fp8: bf16 would stream 5.8 GiB a step" in plan_lines(chosen, 75, True)
    assert plan_summary(plan_of(8)) == "peak 9.1 of 8.0 GiB, over the budget, 2.4 GiB streamed a step"


def test_two_sizes_share_a_unit_or_have_one_each() -> None:
    assert part_of(9 * GIB, 12 * GIB) == "9.0 of 12.0 GiB"
    assert part_of(433 * MIB, 12 * GIB) == "433 MiB of 12.0 GiB"
    assert part_of(433 * MIB, 0) == "433 MiB"


def test_on_the_cpu_nothing_is_moved_to_a_card() -> None:
    text = "\n".join(plan_lines(plan_of(target="cpu", tile=512), 75, False))
    assert "to the card" not in text
    assert "new prompt ~21.6 s, 4.6 GiB from disk" in text
    assert "512x512 pixels at a time" in text


def test_it_needs_no_library() -> None:
    code = "import sys, engine.cli.plan_text; print(*sorted({'rich', 'torch', 'numpy', 'textual'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
