"""What is known of the next picture while it is changed: answers that come late, or about something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import Engine, Request
from engine.events import Plan, TokenCount
from engine.process import Foreseen
from tests.apps import run, running, screen_text, until
from tui.forecast import KEPT, Forecast

REQUEST = Request("a red circle", steps=4)
TOKENS = TokenCount(5, 32)


@pytest.fixture(scope="module")
def plan() -> Plan:
    with Engine.open("demo", device="cpu") as engine:
        return engine.plan(Request("a cat"))


def asked(forecast: Forecast, request: Request) -> int:
    forecast.want(request)
    question = forecast.question()
    assert question is not None
    assert forecast.question() is None  # it is on its way
    return question.number


def test_an_answer_is_about_what_was_asked(plan: Plan) -> None:
    forecast, other = Forecast(), replace(plan, steps=8)
    first = asked(forecast, REQUEST)
    second = asked(forecast, replace(REQUEST, steps=8))
    forecast.answered(Foreseen(first, plan, TOKENS))
    assert (forecast.plan, forecast.is_stale) == (None, True)  # of what is set no more
    forecast.answered(Foreseen(second, other, TOKENS))
    assert (forecast.plan, forecast.is_stale) == (other, False)
    forecast.want(REQUEST)
    assert (forecast.plan, forecast.is_stale) == (plan, False)  # it was answered, too


def test_words_and_choices_are_known_apart(plan: Plan) -> None:
    forecast = Forecast()
    forecast.answered(Foreseen(asked(forecast, REQUEST), plan, TOKENS))
    forecast.want(replace(REQUEST, prompt="a blue square", seed=7))
    assert (forecast.plan, forecast.is_stale) == (plan, True)  # its tokens are not known
    forecast.answered(Foreseen(asked(forecast, replace(REQUEST, prompt="b", steps=9)), None, TOKENS, "too much."))
    assert (forecast.refusal, forecast.plan) == ("too much.", plan)  # the last plan stays, beside the refusal
    forecast.want(REQUEST)
    assert (forecast.refusal, forecast.is_stale) == ("", False)


def test_an_encoding_is_kept_after_its_picture_was_made(plan: Plan) -> None:
    forecast = Forecast()
    forecast.answered(Foreseen(asked(forecast, REQUEST), plan, TOKENS))
    forecast.painted(REQUEST.prompt)
    assert forecast.is_stale
    forecast.answered(Foreseen(asked(forecast, REQUEST), plan, TOKENS, is_encoded=True))
    assert forecast.is_encoded


def test_another_engine_knows_nothing_yet(plan: Plan) -> None:
    forecast = Forecast()
    late = asked(forecast, REQUEST)
    forecast.forget()
    forecast.answered(Foreseen(late, plan, TOKENS))
    assert (forecast.plan, forecast.tokens, forecast.is_stale) == (None, None, True)
    assert asked(forecast, REQUEST) > late


def test_what_cannot_be_asked_is_said_at_once() -> None:
    forecast = Forecast()
    forecast.refuse("the prompt is too long.")
    assert (forecast.refusal, forecast.is_stale, forecast.question()) == ("the prompt is too long.", False, None)


def test_answers_are_forgotten_in_the_end(plan: Plan) -> None:
    forecast = Forecast()
    for number in range(KEPT + 10):
        request = replace(REQUEST, steps=1 + number)
        forecast.answered(Foreseen(asked(forecast, request), plan, TOKENS))
    forecast.want(REQUEST)
    assert forecast.is_stale


def test_the_line_follows_what_is_typed_and_chosen() -> None:
    async def test() -> None:
        async with running(ram="12GiB") as (app, pilot):
            await until(pilot, lambda: "fits, peak" in screen_text(app))
            app.main.prompt.put("a red circle above a blue square")
            await until(pilot, lambda: " of 32 tokens" in screen_text(app))
            app.main.prompt.put("word " * 40)
            await until(pilot, lambda: "tokens, cut off: word" in screen_text(app))
            app.main.prompt.put("a star")
            app.session.parameters.chosen["width"] = 2048  # which the demo model does not paint
            app.main.parameters_changed()
            await until(pilot, lambda: "width 2048 is too large for demo" in screen_text(app))
            app.session.parameters.reset("size")
            app.main.parameters_changed()
            await pilot.press("enter")
            await until(pilot, lambda: "encode kept" in screen_text(app) and app.session.results)

    run(test())
