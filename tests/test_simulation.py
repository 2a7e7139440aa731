"""A simulated card: what a run held is what its plan said, whatever came before it."""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

import pytest

from engine import Engine, Request, RequestError
from engine.events import Event, Failed, Planned, Simulated
from engine.memory.measure import STEPS
from engine.precision import PRECISIONS
from engine.request import SALIENCES

ABOVE = 20  # events, more than any of these runs has before its last


def drawn(rng: random.Random, engine: Engine) -> Request:
    """Any request that the demo takes, as small ones so that they are quick."""
    values: dict[str, Any] = {
        "steps": rng.randint(1, STEPS + 1),
        "width": rng.choice((64, 128, 256)),
        "height": rng.choice((64, 128)),
        "precision": rng.choice(PRECISIONS),
        "guidance": rng.choice((None, 1.0, 4.0)),
        "distill": rng.random() < 0.3,
    }
    if rng.random() < 0.3:
        values |= {"negative_prompt": "blue", "cfg": rng.choice((1.0, 4.0)), "apg": rng.random() < 0.5}
    if values["precision"] == "int8":
        values["salience"] = rng.choice(SALIENCES)
    return engine.resolve(Request("a red circle", seed=1, **values))


def run(engine: Engine, request: Request, rng: random.Random) -> str:
    """One job, often given up on its way by either means; checks all that it says of memory. Returns how it ended."""
    give_up, by_flag = rng.choice((ABOVE, ABOVE, rng.randrange(8))), rng.random() < 0.5
    allowed, last = 0, "nothing"
    with closing(engine.generate(request)) as events:
        for number, event in enumerate(events):
            last = event.name
            if isinstance(event, Planned):
                allowed = event.plan.peak_bytes
                assert allowed <= event.plan.budget_bytes
                phases = {phase.name: phase.peak_bytes for phase in event.plan.phases}
            if allowed:
                assert held(event) <= allowed, f"{event.name} of {request}"
            if isinstance(event, Simulated):
                assert event.peak_bytes <= allowed, request
                assert all(peak <= phases[name] for name, peak in event.peak_bytes_by_phase.items()), request  # type: ignore[index]
            if isinstance(event, Failed):
                assert "needs at least" in event.message, "only what cannot work is refused"
            if number == give_up and by_flag:
                engine.cancel()
            elif number == give_up:
                break
    return last


def held(event: Event) -> int:
    return max(event.memory.device_bytes or 0, event.memory.device_peak_bytes or 0)


def smallest_vram(request: Request) -> str:
    """The smallest budget that works, as the refusal names it."""
    with Engine.open("demo", vram="1MiB", simulate=True) as engine, pytest.raises(RequestError) as refused:
        engine.plan(request)
    return str(refused.value).split("--vram ")[1].split("iB")[0] + "iB"


@pytest.mark.parametrize("budget", ["roomy", "tight", "too small for some"])
def test_no_simulated_run_holds_more_than_its_plan_whatever_came_before(budget: str) -> None:
    vram = {
        "roomy": "2GiB",
        "tight": smallest_vram(Request("x", seed=1, width=256, height=128, cfg=4.0, precision="fp32")),
        "too small for some": smallest_vram(Request("x", seed=1, width=128, height=128, precision="bf16")),
    }[budget]
    rng, endings = random.Random(budget), set()
    with Engine.open("demo", vram=vram, simulate=True) as engine:
        for _ in range(16):
            endings.add(run(engine, drawn(rng, engine), rng))
    assert {"simulated", "cancelled"} <= endings
    assert ("failed" in endings) == (budget == "too small for some")


def test_a_precision_that_comes_back_holds_what_it_held_at_full_size() -> None:
    with Engine.open("flux.1-schnell", vram="8GiB", simulate=True) as engine:
        peaks = []
        for precision in ("bf16", "int8", "bf16", "int8"):
            request = Request("a lighthouse", steps=1, seed=1, width=256, height=256, precision=precision)
            *_, last = engine.generate(request)
            assert isinstance(last, Simulated)
            assert last.peak_bytes <= engine.plan(request).peak_bytes <= 8 * 2**30
            peaks.append(last.peak_bytes)
    assert peaks[:2] == peaks[2:]


def test_a_request_that_is_refused_leaves_nothing_behind() -> None:
    small = Request("a red circle", steps=1, seed=1, width=64, height=64, precision="bf16")
    with Engine.open("demo", vram=smallest_vram(small), simulate=True) as engine:
        *_, first = engine.generate(small)
        with pytest.raises(RequestError):
            engine.plan(Request("x", seed=1, width=256, height=256, cfg=4.0, precision="fp32"))
        *_, second = engine.generate(small)
    assert isinstance(first, Simulated)
    assert isinstance(second, Simulated)
    assert first.peak_bytes_by_phase == second.peak_bytes_by_phase
