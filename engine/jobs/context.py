"""What a job is given of the engine that runs it: the open model and what it takes, and what needs torch."""

from __future__ import annotations

import bisect
import re
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from engine.cancel import CancelFlag
from engine.events import TokenCount
from engine.jobs.runtime import Runtime, Settings
from engine.request import (
    AUTO,
    DEFAULT_CFG,
    MAX_GUIDANCE,
    MAX_STEPS,
    MIN_CFG,
    MIN_SIDE,
    SALIENCES,
    SCHEDULES,
    SIDE_MULTIPLE,
    Option,
    Request,
    RequestError,
    Resolved,
)
from engine.weights import calibrations
from engine.weights.model import Model, model_hash

if TYPE_CHECKING:
    from engine.memory.layout import Layout


class Context:
    """An open model, from the first look at it to the runtime that its jobs share."""

    def __init__(self, source: Model, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self.cancel = CancelFlag()
        self._runtime: Runtime | None = None

    @property
    def name(self) -> str:
        """The model's."""
        return self.source.name

    @property
    def is_loaded(self) -> bool:
        """Whether torch is imported and the device was looked at."""
        return self._runtime is not None

    def runtime(self) -> Runtime:
        """What needs torch; the first call imports it. Raises `RequestError` for a device that is not here."""
        if self._runtime is None:
            self._runtime = Runtime.open(self.source, self.model_hash, self.settings)
        return self._runtime

    def close(self) -> None:
        """Give all memory back."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None

    @property
    def options(self) -> tuple[Option, ...]:
        """What this model lets a request choose, besides prompt, seed and count."""
        defaults, top = self.source.defaults, self.source.max_side
        options = [
            Option("steps", defaults.steps, 1, MAX_STEPS, 1),
            Option("width", defaults.width, MIN_SIDE, top, SIDE_MULTIPLE),
            Option("height", defaults.height, MIN_SIDE, top, SIDE_MULTIPLE),
        ]
        if defaults.guidance is not None:
            options.append(Option("guidance", defaults.guidance, 0, MAX_GUIDANCE, 0.5))
        options += [
            Option("cfg", defaults.cfg, MIN_CFG, MAX_GUIDANCE, 0.5, first=DEFAULT_CFG),
            Option("negative_prompt", None),
            Option("guidance_schedule", next(iter(SCHEDULES)), choices=tuple(SCHEDULES)),
            Option("cfg_zero", False, choices=(False, True)),
            Option("apg", False, choices=(False, True)),
            Option("precision", AUTO, choices=(AUTO, *self.source.precisions)),
        ]
        if self.is_calibrated:
            options.append(Option("salience", SALIENCES[-1], choices=SALIENCES))
        if self.source.distills:
            options.append(Option("distill", False, choices=(False, True)))
        return tuple(options)

    @property
    def is_calibrated(self) -> bool:
        """Whether there are balancing factors for this model."""
        return self.source.has_weights and calibrations.file_of(self.model_hash).is_file()

    @cached_property
    def model_hash(self) -> str:
        """What the open model's pixels depend on (see `engine.weights.model.model_hash`); empty without weights."""
        return model_hash(self.source) if self.source.has_weights else ""

    @cached_property
    def _distilled_hash(self) -> str:
        return model_hash(self.source, distilled=True)

    def hash_for(self, request: Request) -> str:
        """What this request's pixels depend on."""
        return self._distilled_hash if request.distill and self.source.has_weights else self.model_hash

    def resolve(self, request: Request) -> Resolved:
        """The request with every choice filled in, but for a precision of auto, which needs a plan: see `planned`.

        Raises `RequestError` for what this model cannot do.
        """
        defaults = self.source.defaults
        for name in ("width", "height"):
            side = getattr(request, name)
            if side is not None and side > self.source.max_side:
                raise RequestError(
                    name,
                    f"{name} {side} is too large for {self.name}: it was made for {self.source.sample_size} "
                    f"and goes up to {self.source.max_side}.",
                )
        if request.guidance is not None and defaults.guidance is None:
            raise RequestError(
                "guidance", f"{self.name} takes no guidance (it is not guidance-distilled); leave it out."
            )
        kind, _ = request.schedule
        guided = (
            request.is_true_cfg or self.source.defaults.cfg is not None or self.source.defaults.guidance is not None
        )
        if kind != "constant" and not guided:
            raise RequestError(
                "guidance_schedule",
                f"{self.name} takes no guidance, so that a schedule has nothing to vary: add --negative-prompt or "
                "--cfg, or leave the schedule out.",
            )
        if request.distill and not self.source.distills:
            raise RequestError(
                "distill",
                f"there is no smaller text encoder that fits {self.name}: get it with t2i models pull distillt5, or "
                "name its folder with t2i models add, or leave --distill out.",
            )
        resolved = replace(request, precision=request.precision or AUTO).resolved(defaults)
        if resolved.precision not in (AUTO, *self.source.precisions):
            raise RequestError(
                "precision",
                f"{self.name} cannot be painted in {resolved.precision}: take "
                f"{', '.join((AUTO, *self.source.precisions[:-1]))} or {self.source.precisions[-1]}.",
            )
        if resolved.precision != "int8":
            if resolved.salience not in (None, "off"):
                raise RequestError("salience", "salience is about int8: add --precision int8, or leave --salience out.")
            return replace(resolved, salience=None)
        if resolved.salience is None:
            return replace(resolved, salience=SALIENCES[-1] if self.is_calibrated else SALIENCES[0])
        only_sizes = self.settings.simulate or not self.source.has_weights  # which are the same
        if resolved.salience != "off" and not (self.is_calibrated or only_sizes):
            raise calibrations.missing(self.name)
        return resolved

    def planned(self, request: Resolved) -> tuple[Resolved, Layout]:
        """A resolved request, its precision chosen where that is auto, and its layout. Raises as `plan` does."""
        from engine.memory.choice import choose, levels

        runtime = self.runtime()
        if request.precision != AUTO:
            return request, runtime.plan(request)
        candidates = [
            [self.resolve(replace(request, precision=precision)) for precision in level]
            for level in levels(self.source, on_card=runtime.target.is_card)
        ]
        return choose(candidates, runtime.plan)

    def count_tokens(self, prompt: str) -> TokenCount | None:
        """How much of the text encoders' limit a prompt takes; None for a model whose tokenizers are not here."""
        if not self.source.tokenizers:
            return None
        tokenize = self.runtime().tokenize
        tokens = tokenize(prompt)
        if tokens.count <= tokens.limit:
            return TokenCount(tokens.count, tokens.limit)
        ends = [match.end() for match in re.finditer(r"\S+", prompt)]
        read = bisect.bisect_right(ends, tokens.limit, key=lambda end: tokenize(prompt[:end]).count)
        return TokenCount(tokens.count, tokens.limit, prompt[ends[read - 1] if read else 0 :].strip())

    def require_weights(self) -> None:
        """Raises `RequestError` where this model can be planned and simulated, not run."""
        if not (self.source.has_weights or self.settings.simulate):
            raise RequestError(
                "model",
                f"the weights of {self.name} are not here: get them with t2i models pull {self.name}, give their "
                "folder or file with --model, or see how it would run with --simulate.",
            )
