"""Schedules of guidance: their values, and what all of them keep."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from engine.sampling import flow
from engine.sampling.guidance import KINDS, mean, weights
from engine.times import FlowTimes

UNIFORM = [1, 0.75, 0.5, 0.25, 0]


def dev(steps: int) -> list[float]:
    """FLUX.1 [dev]'s flow times at 1024x1024."""
    config = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    config |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
    sigmas: list[float] = flow.sigmas(FlowTimes.from_config(config), steps, 4096).tolist()
    return sigmas


def falling(steps: int, seed: int) -> list[float]:
    numbers = random.Random(seed)
    inner = sorted((numbers.random() for _ in range(steps - 1)), reverse=True)
    return [1.0, *inner, 0.0]


class TestValues:
    def test_tv_on_uniform_times_and_on_devs(self):
        assert weights("tv", 3.5, UNIFORM) == pytest.approx([1.217, 4.261, 7.304, 1.217], abs=1e-3)
        assert weights("tv", 3.5, dev(4)) == pytest.approx([1.348, 4.719, 8.090, 1.348], abs=1e-3)

    @pytest.mark.parametrize(
        ("steps", "end", "peak", "anchored", "inside", "count"),
        [
            (8, 1.2227, 7.336, 7.711, 4.29, 4),
            (20, 1.1581, 6.949, 7.181, 5.05, 9),
            (28, 1.1466, 6.880, 7.090, 4.82, 13),
            (50, 1.1342, 6.805, 6.993, 4.80, 24),
        ],
    )
    def test_reference_values_on_devs_times(self, steps, end, peak, anchored, inside, count):
        tv = weights("tv", 3.5, dev(steps))
        assert (tv[0], tv[-1], max(tv)) == pytest.approx((end, end, peak), abs=1e-3)
        assert max(weights("tv-anchored", 3.5, dev(steps))) == pytest.approx(anchored, abs=1e-3)
        interval = weights("interval", 3.5, dev(steps))
        assert max(interval) == pytest.approx(inside, abs=6e-3)
        assert sum(weight != 1 for weight in interval) == count

    @pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 20, 28, 50])
    def test_tv_is_the_authors_program(self, steps):
        """Written out as they have it: linspace up, linspace down, then one factor."""
        low, high, half = 1.0, 6.0, steps // 2

        def linspace(first: float, last: float, count: int, *, endpoint: bool = True) -> list[float]:
            parts = max(1, count - 1 if endpoint else count)
            return [first + (last - first) * index / parts for index in range(count)]

        if steps == 1:
            raw = [3.5]
        elif steps % 2:
            raw = linspace(low, high, half + 1) + linspace(high, low, half + 1)[1:]
        else:
            raw = linspace(low, high, half, endpoint=False) + linspace(high, low, half)
        sigmas = dev(steps)
        total = math.fsum(w * (a - b) for w, (a, b) in zip(raw, itertools.pairwise(sigmas), strict=True))
        assert weights("tv", 3.5, sigmas) == pytest.approx([w * 3.5 / total for w in raw], abs=1e-9)

    def test_rising_schedules_rise_and_beta_is_symmetric(self):
        sigmas = [1 - step / 10 for step in range(11)]
        for kind in ("linear", "cosine"):
            found = weights(kind, 3.0, sigmas)
            assert found == sorted(found)
        assert weights("linear", 3.0, sigmas) == pytest.approx([0.6 * (step + 0.5) for step in range(10)])
        assert weights("cosine", 3.0, sigmas)[5] == pytest.approx(3 * (1 - math.cos(math.pi * 0.55)))
        beta = weights("beta", 3.0, sigmas)
        assert beta == pytest.approx(beta[::-1])
        assert max(beta) == pytest.approx(4.5, abs=0.1)


class TestWhatAllKeep:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 20, 28, 50])
    @pytest.mark.parametrize("scale", [1.0, 1.5, 3.5, 30.0])
    def test_the_mean_over_flow_time_is_the_scale(self, kind, steps, scale):
        for sigmas in (dev(steps), *(falling(steps, seed) for seed in range(5))):
            found = weights(kind, scale, sigmas)
            assert len(found) == steps
            assert mean(found, sigmas) == pytest.approx(scale, rel=1e-9)
            assert min(found) >= 0
            assert all(map(math.isfinite, found))

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_step_has_the_scale(self, kind):
        assert weights(kind, 3.5, [1, 0]) == [3.5]

    @pytest.mark.parametrize("kind", ["constant", "interval", "tv", "tv-anchored"])
    def test_a_scale_of_one_is_one_everywhere(self, kind):
        assert weights(kind, 1.0, dev(9)) == pytest.approx([1] * 9)

    @pytest.mark.parametrize("steps", [3, 4, 5, 8, 20, 28, 50])
    def test_anchored_ends_are_exactly_one(self, steps):
        for sigmas in (dev(steps), falling(steps, 1)):
            found = weights("tv-anchored", 5.0, sigmas)
            assert found[0] == found[-1] == 1
            assert max(found) > 5

    def test_an_interval_with_no_step_inside_or_none_outside_is_constant(self):
        assert weights("interval", 3.5, UNIFORM, low=0.55, high=0.6) == [3.5] * 4
        assert weights("interval", 3.5, UNIFORM, low=0, high=1.1) == [3.5] * 4
        found = weights("interval", 3.5, UNIFORM, low=0.4, high=0.8)
        assert found == [1, pytest.approx(6), pytest.approx(6), 1]


class TestBadInput:
    @pytest.mark.parametrize("scale", [0.99, 0, -1, math.nan, math.inf])
    def test_scales(self, scale):
        with pytest.raises(ValueError, match="at least 1"):
            weights("tv", scale, UNIFORM)

    @pytest.mark.parametrize("sigmas", [[], [1], [0, 1], [1, 1, 0], [1, math.nan, 0]])
    def test_times_that_do_not_fall(self, sigmas):
        with pytest.raises(ValueError, match="fall"):
            weights("tv", 3.5, sigmas)

    def test_kinds_and_options(self):
        with pytest.raises(ValueError, match="'zigzag'"):
            weights("zigzag", 3.5, UNIFORM)
        with pytest.raises(TypeError):
            weights("tv", 3.5, UNIFORM, low=0.1)
