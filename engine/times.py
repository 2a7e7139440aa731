"""Where the steps of a rectified flow lie, in plain numbers; `engine.sampling.flow` has them as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

MAX_SHIFT = 20.0  # in the exponent; FLUX.1 has 1.15


@dataclass(frozen=True, slots=True)
class FlowTimes:
    """`shift` moves steps towards noise, by a constant or, `dynamic`, by the number of image tokens."""

    dynamic: bool = False
    shift: float = 1.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read diffusers' scheduler_config.json. Raises ValueError for variants that FLUX.1 does not use."""
        variants = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal")
        unsupported = [name for name in (*variants, "stochastic_sampling") if config.get(name)]
        if config.get("time_shift_type", "exponential") != "exponential":
            unsupported.append("time_shift_type")
        if unsupported:
            raise ValueError(f"the scheduler asks for {', '.join(unsupported)}, which FLUX.1 does not use")
        times = cls(
            dynamic=bool(config.get("use_dynamic_shifting", False)),
            shift=float(config.get("shift", 1.0)),
            base_shift=float(config.get("base_shift", 0.5)),
            max_shift=float(config.get("max_shift", 1.15)),
            base_tokens=int(config.get("base_image_seq_len", 256)),
            max_tokens=int(config.get("max_image_seq_len", 4096)),
        )
        largest = max(abs(times.base_shift), abs(times.max_shift))
        if not times.shift > 0 or largest > MAX_SHIFT or (times.dynamic and times.base_tokens >= times.max_tokens):
            raise ValueError("its shifts cannot be used")
        return times

    def factor(self, steps: int, image_tokens: int) -> float:
        """What even times are shifted by; by the tokens alone here, families may look at the number of steps."""
        if not self.dynamic:
            return self.shift
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + slope * (image_tokens - self.base_tokens))

    def numbers(self, steps: int, image_tokens: int) -> list[float]:
        """The flow times of `steps` steps, from 1 down to 0, to about seven digits."""
        factor = self.factor(steps, image_tokens)
        even = (1 - step / steps for step in range(steps))
        return [*(factor / (factor + (1 / time - 1)) for time in even), 0.0]


DEFAULT_TIMES = FlowTimes()
