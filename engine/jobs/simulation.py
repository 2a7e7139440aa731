"""A picture that is only simulated: all phases at full size on torch's meta device, without weights and without a card.

The plan, the memory manager, the streaming ring and the networks are the real ones; tensors have sizes and no numbers.
Peaks are what the run held, under a ledger; times are the plan's, from a card's profile, marked as estimates, and never
slept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.events import Encoded, Event, Noticed, Phase, PhaseFinished, PhaseStarted, Simulated, StepFinished
from engine.jobs.context import Context
from engine.jobs.picture import Job
from engine.request import Resolved

if TYPE_CHECKING:
    from engine.images.save import Destination
    from engine.memory.loan import Loan


class SimulatedJob(Job):
    """The events of a picture's way through the phases, up to `Simulated`."""

    def __init__(
        self, context: Context, request: Resolved, destination: Destination, image: int, started: float
    ) -> None:
        super().__init__(context, request, destination, image, started)
        self.peaks: dict[str, int] = {}
        self.held_bytes = 0  # of the card, by the phase whose events are told

    def paint(self) -> Generator[Event, None, None]:
        """Plan, encode, denoise, decode; nothing is saved."""
        yield from self.open()
        yield from self._simulate_encode()
        yield from self._simulate_denoise()
        yield from self._simulate_decode()
        budget = self.layout.plan.budget_bytes
        yield Simulated(
            **self.stamp(),
            peak_bytes=max(self.peaks.values()),
            peak_bytes_by_phase=self.peaks,
            budget_bytes=budget,
            seconds_by_phase=self.layout.plan.new_prompt.seconds_by_phase,
            card=self.runtime.target.name,
        )

    def _simulate_encode(self) -> Generator[Event, None, None]:
        from engine.memory.measure import run_encoder

        model = self.context.source
        for part in self.encoders:
            if not part.beside_card:
                yield from self._run("encode", part.name, lambda loan: run_encoder(loan, model))
        limit = self.size.text_tokens
        yield PhaseStarted(**self.stamp(), phase="encode")
        words = len(self.request.prompt.split())  # there is no tokenizer where there are no weights
        yield Encoded(
            **self.stamp(),
            tokens=min(limit, max(2, words * 4 // 3 + 1)),
            token_limit=limit,
            cached=False,
            hint=None,
        )
        yield self._finished("encode")

    def _simulate_denoise(self) -> Generator[Event, None, None]:
        from engine.memory.measure import STEPS, run_loop
        from engine.sampling import modulation

        request, runtime, model = self.request, self.runtime, self.context.source
        size, steps = self.size, request.steps
        sigmas, steering = runtime.sigmas(request), self.steering
        if steering.notice:
            yield Noticed(**self.stamp(), message=steering.notice)
        prompts, batch = (2 if steering.negative_passes else 1), self.layout.batch
        run = min(steps, STEPS)  # the others would leave nothing more behind

        def modulate(loan: Loan) -> None:
            reader, networks = loan.component.reader, model.family.networks
            assert reader is not None
            some = sigmas[: run + 1]
            told = steering.distilled[:run] if steering.distilled is not None else None
            unread = [networks.unread(model.configs, size, loan.dtype)] * prompts
            modulation.compute(reader, loan.visit, unread, some, told, networks, loan.device, loan.dtype, self._check)

        yield from self._run(
            "denoise",
            model.family.core.name,
            lambda loan: run_loop(loan, model, size, run, prompts=prompts, batch=batch),
            before=modulate,
            passes=prompts // batch * run,
        )
        needed = [1 if weight == 1 else 2 for weight in steering.cfg or [1] * steps]
        seconds = [self.layout.pace.step_seconds(count) for count in needed]
        yield PhaseStarted(**self.stamp(), phase="denoise")
        for number in range(1, steps + 1):
            yield StepFinished(
                **self.stamp(),
                step=number,
                steps=steps,
                sigma=float(sigmas[number - 1]),
                seconds=seconds[number - 1],
                preview=None,
                estimated=True,
            )
            self.context.cancel.check_between_steps()
        yield self._finished("denoise")

    def _simulate_decode(self) -> Generator[Event, None, None]:
        from engine.memory.measure import run_decoder

        model, size, tile = self.context.source, self.size, self.layout.tile
        name = model.family.decoder.name
        yield from self._run("decode", name, lambda loan: run_decoder(loan, model, size, tile))
        yield PhaseStarted(**self.stamp(), phase="decode")
        yield self._finished("decode")

    def _run(
        self,
        phase: Phase,
        component: str,
        work: Callable[[Loan], object],
        *,
        before: Callable[[Loan], None] | None = None,
        passes: int = 1,
    ) -> Generator[Event, None, None]:
        """Run a component's part of a phase under the ledger, then tell what was loaded and how much was held.

        The events come afterwards, because the ledger must not count what the reader of the events does.
        """
        from engine.memory.ledger import counted

        self.phase = phase
        self._check()
        runtime = self.runtime
        runtime.components.component(component, self.precision)  # made outside the ledger: its networks hold no memory
        with counted("meta") as ledger, self._lend(component, passes=passes) as loan:
            if before is not None:
                for _ in loan.read():
                    pass
                before(loan)
            events = list(self._progress(loan.load()))
            work(loan)
            self._check()
            held = ledger.peak_bytes
        allowance = next(each for each in self.layout.plan.phases if each.name == phase).allowance_bytes
        self.peaks[phase] = max(self.peaks.get(phase, 0), held + allowance)
        self.held_bytes = held + allowance
        if runtime.components.device.placed_bytes:
            raise RuntimeError(f"{component} has left weights on the device")
        self.phase = phase
        yield from events

    def stamp(self) -> dict[str, Any]:
        """What every event carries; of the card's memory what the phase held, and the highest so far."""
        stamp = super().stamp()
        peak = max(self.peaks.values(), default=0)
        return {**stamp, "memory": replace(stamp["memory"], device_bytes=self.held_bytes, device_peak_bytes=peak)}

    def _finished(self, phase: Phase) -> PhaseFinished:
        seconds = self.layout.plan.new_prompt.seconds_by_phase[phase]
        return PhaseFinished(**self.stamp(), phase=phase, seconds=seconds, estimated=True)
