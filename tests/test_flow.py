"""Schedules, packing and noise against diffusers' own, and against values worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.utils.torch_utils import randn_tensor

from engine.families.flux1.latents import image_position_ids, noise, pack, unpack
from engine.sampling import flow
from engine.times import FlowTimes

SCHNELL = {"shift": 1.0, "use_dynamic_shifting": False}
DEV = {"shift": 3.0, "use_dynamic_shifting": True}


def test_schnell_takes_even_steps() -> None:
    assert flow.sigmas(FlowTimes.from_config(SCHNELL), 4, 4096).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_dev_at_1024_has_the_published_schedule() -> None:
    expected = [1, 0.9836, 0.9660, 0.9471, 0.9266, 0.9045, 0.8805, 0.8543, 0.8257, 0.7942, 0.7595]
    expected += [0.7210, 0.6780, 0.6297, 0.5751, 0.5128, 0.4412, 0.3579, 0.2598, 0.1425, 0]
    sigmas = flow.sigmas(FlowTimes.from_config(DEV), 20, 4096)
    assert sigmas.numpy() == pytest.approx(np.array(expected), abs=6e-5)


@pytest.mark.parametrize("config", [SCHNELL, DEV, {"shift": 3.0}], ids=["schnell", "dev", "static 3"])
@pytest.mark.parametrize("tokens", [16, 64, 1024, 3072, 4096])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 28, 1000])
def test_sigmas_are_those_of_diffusers(config: dict[str, float], tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens))
    ours = flow.sigmas(FlowTimes.from_config(scheduler.config), steps, tokens)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=2e-7)


def test_a_schedule_that_flux_does_not_use_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        FlowTimes.from_config({"use_karras_sigmas": True})


def test_times_may_follow_from_the_number_of_steps() -> None:
    class Hasty(FlowTimes):
        def factor(self, steps: int, image_tokens: int) -> float:
            return float(steps * image_tokens)

    assert flow.sigmas(Hasty(), 2, 3).tolist() == pytest.approx([1, 6 / 7, 0])  # 6 / (6 + (1 / 0.5 - 1))
    assert Hasty().numbers(2, 3) == pytest.approx([1, 6 / 7, 0])
    assert flow.sigmas(Hasty(), 4, 3)[2] == pytest.approx(12 / 13)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (192, 96), (80, 112)])
def test_packing_and_ids_are_those_of_diffusers(width: int, height: int) -> None:
    latents = torch.randn(2, 4, height // 8, width // 8)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 4, height // 8, width // 8))
    assert torch.equal(unpack(packed, width, height), latents)
    ids = FluxPipeline._prepare_latent_image_ids(2, height // 16, width // 16, "cpu", torch.float32)
    assert torch.equal(image_position_ids(width, height), ids)


def test_a_seed_gives_the_noise_that_diffusers_draws() -> None:
    expected = randn_tensor((1, 16, 8, 12), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(unpack(noise(7, 16, 96, 64), 96, 64), expected)


def test_euler_steps_in_float32_reach_the_data_of_a_straight_flow() -> None:
    data, noise = torch.randn(1, 8, 4), torch.randn(1, 8, 4)
    sigmas = flow.sigmas(FlowTimes(shift=3.0), 5, 64)
    x = noise
    for sigma, sigma_next in pairwise(sigmas):
        velocity = noise - data
        torch.testing.assert_close(flow.predicted_clean(x, velocity, sigma), data, atol=1e-5, rtol=0)
        x = flow.euler_step(x, velocity, sigma, sigma_next)
    torch.testing.assert_close(x, data, atol=1e-5, rtol=0)
