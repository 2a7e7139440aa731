"""How the next picture would run: asked of the engine whenever something is changed, which answers while it is idle."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from engine.events import Plan, TokenCount
from engine.process import Foresee, Foreseen
from engine.request import Request

KEPT = 256  # answers


class Forecast:
    """What is set now, and what is known about it. Numbers and words of a prompt are two questions in one."""

    def __init__(self) -> None:
        self.refusal = ""  # why what is set now cannot be painted, in a sentence
        self.plan: Plan | None = None  # the last that there was
        self.tokens: TokenCount | None = None  # of the prompt
        self.is_stale = True  # the engine has not answered yet about what is set now
        self._wanted: Request | None = None
        self._number = 0
        self._asked: dict[int, Request] = {}
        self._plans: OrderedDict[Request, tuple[Plan | None, str]] = OrderedDict()
        self._tokens: OrderedDict[str, TokenCount | None] = OrderedDict()

    def want(self, request: Request | None) -> None:
        """This is set now; None where nothing can be asked."""
        self._wanted = request
        self._look_up()

    def refuse(self, sentence: str) -> None:
        """What is set now is no request."""
        self._wanted, self.refusal, self.is_stale = None, sentence, False

    def forget(self) -> None:
        """Another engine, model or budget: nothing is known any more."""
        self._asked.clear()
        self._plans.clear()
        self._tokens.clear()
        self.plan = self.tokens = None
        self._look_up()

    def question(self) -> Foresee | None:
        """What to ask the engine; None where that is known, or asked already."""
        request = self._wanted
        if request is None or not self.is_stale or request in self._asked.values():
            return None
        self._number += 1
        self._asked[self._number] = request
        return Foresee(self._number, request)

    def answered(self, answer: Foreseen) -> None:
        """Take an answer over; earlier questions get none any more."""
        request = self._asked.get(answer.number)
        self._asked = {number: asked for number, asked in self._asked.items() if number > answer.number}
        if request is not None:
            self._plans[_settings(request)] = answer.plan, answer.refusal
            self._tokens[request.prompt] = answer.tokens
            while len(self._plans) > KEPT:
                self._plans.popitem(last=False)
            while len(self._tokens) > KEPT:
                self._tokens.popitem(last=False)
            self._look_up()

    def _look_up(self) -> None:
        request, self.refusal = self._wanted, ""
        if request is None:
            self.is_stale = True
            return
        known = self._plans.get(_settings(request))
        if known is not None:
            plan, self.refusal = known
            self.plan = plan or self.plan
        if request.prompt in self._tokens:
            self.tokens = self._tokens[request.prompt]
        self.is_stale = known is None or request.prompt not in self._tokens


def _settings(request: Request) -> Request:
    """What a plan depends on: all but the words and the seed."""
    negative = None if request.negative_prompt is None else ""
    return replace(request, prompt="any", seed=None, template=None, count=1, negative_prompt=negative)
