"""The course of a picture and its plot: what is foreseen, what was measured, what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from engine import Engine, Request
from engine.events import Event, MemorySample, Plan, Simulated, StepFinished
from tui.course import KEPT_SAMPLES, MAX_SAMPLES, Course
from tui.widgets.memory_plot import ASCII_MARKS, MARKS, plot


@pytest.fixture(scope="module")
def plan() -> Plan:
    with Engine.open("flux.1-dev", simulate=True, vram="12GiB") as engine:
        return engine.plan(Request("a cat", precision="bf16"))


@pytest.fixture(scope="module")
def simulated() -> list[Event]:
    with Engine.open("flux.1-dev", simulate=True, vram="12GiB") as engine:
        return list(engine.generate(Request("a cat", precision="bf16", steps=10, width=512, height=512)))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Event]]:
    with pytest.MonkeyPatch.context() as patch, Engine.open("demo", device="cpu") as engine:
        patch.setattr("engine.folders.default_output_dir", lambda: tmp_path_factory.mktemp("out"))
        yield list(engine.generate(Request("a red circle above a blue square", steps=4, seed=1)))


def course_of(events: list[Event]) -> Course:
    course = Course(simulated=any(getattr(event, "estimated", False) for event in events))
    for event in events:
        course.take(event)
    return course


def rows(course: Course, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    found = plot(course, width, height, ASCII_MARKS if ascii_only else MARKS)
    assert [len(row) for row in found] == [width] * height
    return ["".join(character for character, _ in row) for row in found]


def test_before_a_run_the_outline_of_the_plan_stands_under_its_budget(plan: Plan) -> None:
    course = Course(plan)
    assert [stretch.phase for stretch in course.stretches() if stretch.phase != "load"] == [
        "encode",
        "denoise",
        "decode",
        "save",
    ]
    assert {stretch.state for stretch in course.stretches()} == {"waiting"}
    took = sum(stretch.ended - stretch.began for stretch in course.stretches() if stretch.phase != "save")
    assert took == pytest.approx(plan.new_prompt.seconds, rel=0.01)
    assert course.foreseen_bytes == plan.peak_bytes
    assert course.peak_bytes is None
    top, *curve = rows(course, 100, 8)
    assert "denoise" in top
    assert not set("".join(curve)) & set(MARKS.fill[1:])  # nothing is filled (the lowest outline looks like a fill)


def test_a_simulated_run_takes_its_estimated_time(simulated: list[Event]) -> None:
    course = course_of(simulated)
    last = simulated[-1]
    assert isinstance(last, Simulated)
    assert course.ended
    assert course.peak_bytes == last.peak_bytes
    assert course.now == pytest.approx(sum(last.seconds_by_phase.values()))
    assert len(course.step_ends) == course.steps == 10
    denoise = next(each for each in course.stretches() if each.phase == "denoise")
    assert denoise.began < course.step_ends[0]
    assert course.step_ends[-1] == pytest.approx(denoise.ended)


def test_while_it_runs_the_past_is_measured_and_the_rest_is_foreseen(simulated: list[Event]) -> None:
    steps = [place for place, event in enumerate(simulated) if isinstance(event, StepFinished)]
    course = course_of(simulated[: steps[5]])
    states = {stretch.phase: stretch.state for stretch in course.stretches()}
    assert (states["encode"], states["denoise"], states["decode"]) == ("done", "running", "waiting")
    _, *curve = rows(course, 100, 8)
    now = int(100 * course.now / course.stretches()[-1].ended)
    assert 20 < now < 80
    assert set(curve[-1][10:now]) <= {*MARKS.fill[-2:]}
    assert set(curve[-1][now - 5 : now]) == {MARKS.fill[-1]}
    assert MARKS.fill[-1] not in curve[-1][now + 1 :]
    assert any(mark in "".join(curve) for mark in MARKS.outline[1:])


def test_without_a_card_the_curve_is_of_ram_and_the_scale_is_its_own(painted: list[Event]) -> None:
    course = course_of(painted)
    assert course.in_ram
    assert course.peak_bytes is not None
    assert course.peak_bytes < course.budget_bytes / 4
    assert rows(course, 60, 3)[0].count(MARKS.above)  # the budget lies above it
    assert "denoise"[:3] in rows(course, 90, 3)[0]


def test_over_the_budget_is_another_kind_of_cell(plan: Plan) -> None:
    course = Course(plan)
    course.sampled([MemorySample(second / 10, 2**30, plan.budget_bytes + 2**20) for second in range(10)])
    kinds = {kind for row in plot(course, 80, 8) for _, kind in row}
    assert "over" in kinds
    assert "used" not in kinds


@pytest.mark.parametrize(("width", "height"), [(8, 2), (51, 3), (90, 8), (200, 12)])
def test_ascii_has_the_same_shape(simulated: list[Event], width: int, height: int) -> None:
    course = course_of(simulated)
    assert all(row.isascii() for row in rows(course, width, height, ascii_only=True))
    for row, same in zip(plot(course, width, height), plot(course, width, height, ASCII_MARKS), strict=True):
        assert [kind for _, kind in row] == [kind for _, kind in same]


def test_nothing_known_is_a_blank() -> None:
    assert rows(Course(), 20, 3) == [" " * 20] * 3
    assert Course().is_empty


def test_the_short_form_comes_back_as_it_was(simulated: list[Event], painted: list[Event]) -> None:
    for events in (painted, simulated):
        course = course_of(events)
        text = json.dumps(course.to_dict())
        kept = Course.from_dict(json.loads(text))
        assert kept.to_dict() == course.to_dict()
        assert len(text) < 6000
    assert rows(kept, 80, 8) == rows(course, 80, 8)


def test_a_long_run_is_kept_short_and_keeps_its_peaks(plan: Plan) -> None:
    course = Course(plan)
    for second in range(3 * MAX_SAMPLES):
        course.sampled([MemorySample(second / 12, 0, 2**40 if second == 5001 else 2**30 + second)])
    assert len(course.samples) <= MAX_SAMPLES
    assert course.peak_bytes == 2**40
    kept = Course.from_dict(course.to_dict())
    assert len(kept.samples) <= KEPT_SAMPLES
    assert kept.peak_bytes == 2**40


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"stretches": [["denoise", 0]]},
        {"stretches": [["sleep", 0, 1]]},
        {"samples": [[-1, 5]]},
        {"samples": [[1.5, 5]]},
        {"samples": [["1", 5]]},
        {"samples": [[True, 5]]},
        {"steps": [10**30]},
        {"slopes": [[0, 1, 2]]},
        {"budget": "much"},
    ],
)
def test_what_is_no_course_is_refused(plan: Plan, wrong: object) -> None:
    values = Course(plan).to_dict() | wrong if isinstance(wrong, dict) and wrong else wrong
    with pytest.raises(ValueError, match="no course"):
        Course.from_dict(values)
