"""Decoding in tiles: the whole decoder's picture in less memory, at any size, and nothing left behind."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from engine import Engine, ImageSaved, Request
from engine.cancel import CancelledError
from engine.demo.scenes import Scene, Thing, place, render
from engine.families.facts import Size
from engine.families.flux1.latents import noise, pack, unpack
from engine.families.flux1.networks import NETWORKS
from engine.families.flux1.parts import VAE_SCALE
from engine.images.save import plan_output
from engine.library.catalog import DEMO_FOLDER
from engine.sampling.decode import MAX_BANDS, TILES, _latent_rows, decode, parked_bytes, smaller_tiles
from tests.peaks import peak_of
from tests.tiny import flux_size

PROMPTS = (
    "a red circle above a blue square",
    "a large yellow star on a night sky",
    "a green heart next to a pink triangle at a sunset",
    "an orange circle below a white heart on the ocean",
)
SIZES = ((256, 256), (256, 192), (256, 192), (256, 256))
FLUX_1 = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

Pixels = NDArray[np.uint8]


def nothing() -> None:
    """No request to stop."""


def picture(vae: Any, tokens: Tensor, width: int, height: int, tile: int = 0, **options: Any) -> Pixels:
    pixels: Pixels = decode(NETWORKS, vae, tokens, flux_size(width, height), nothing, tile=tile, **options).numpy()
    return pixels


def differences(first: Pixels, second: Pixels) -> NDArray[np.int64]:
    return np.abs(first.astype(np.int64) - second.astype(np.int64))


def steps_at(pixels: Pixels, lines: list[int]) -> float:
    """The mean difference between the rows of pixels that touch at these lines, in levels of 255."""
    return float(np.mean([differences(pixels[line], pixels[line - 1]).mean() for line in lines]))


def borders(width: int, height: int, tile: int) -> list[int]:
    """The rows of pixels at which bands begin, but for the first."""
    return [int(row) * VAE_SCALE for row in np.cumsum(_latent_rows(flux_size(width, height), tile))[:-1]]


class Pair(NamedTuple):
    whole: Pixels
    tiled: Pixels
    borders: list[int]


@pytest.fixture(scope="module")
def demo_vae() -> Any:
    return AutoencoderKL.from_pretrained(DEMO_FOLDER / "vae", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def flux_vae() -> Any:
    """FLUX.1's decoder with few channels and random weights, attention included, whose pictures have contrast."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**{**FLUX_1, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8}).eval()
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
        vae.decoder.conv_out.weight.mul_(1.5)
    return vae


@pytest.fixture(scope="module")
def painted() -> list[tuple[Tensor, int, int]]:
    """Finished tokens of the demo model's own pictures, with their width and height."""
    found = []

    def keep(networks: Any, vae: Any, tokens: Tensor, size: Size, *_: Any, **options: Any) -> Tensor:
        if not tokens.is_meta:  # else it is the engine that plans
            found.append((tokens.float().cpu().clone(), size.width, size.height))
        return decode(networks, vae, tokens, size, nothing, **options)

    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        Engine.open("demo", device="cpu") as engine,
    ):
        patch.setattr("engine.sampling.decode.decode", keep)
        for prompt, (width, height) in zip(PROMPTS, SIZES, strict=True):
            request = Request(prompt, seed=3, steps=8, width=width, height=height)
            *_, last = engine.generate(request, plan_output(Path(folder), 1))
            assert isinstance(last, ImageSaved), last
    return found


def random_tokens(vae: Any, width: int, height: int) -> Tensor:
    return noise(1, int(vae.config.latent_channels), width, height)


@pytest.fixture(scope="module", params=[128, 96, 64], ids="tile {}".format)
def pairs(request: pytest.FixtureRequest, demo_vae: Any, painted: list[tuple[Tensor, int, int]]) -> list[Pair]:
    """The painted pictures, decoded whole and in tiles."""
    tile: int = request.param
    return [
        Pair(
            picture(demo_vae, tokens, width, height),
            picture(demo_vae, tokens, width, height, tile),
            borders(width, height, tile),
        )
        for tokens, width, height in painted
    ]


def test_tiles_cannot_be_told_from_the_whole_picture(pairs: list[Pair]) -> None:
    for whole, tiled, _ in pairs:
        assert whole.std() > 20
        assert differences(tiled, whole).max() <= 1


def test_no_step_is_seen_where_tiles_meet(pairs: list[Pair]) -> None:
    for whole, tiled, lines in pairs:
        assert len(lines) >= 2
        elsewhere = sorted(set(range(1, len(whole))) - set(lines))
        in_whole, in_tiled = (steps_at(pixels, lines) / steps_at(pixels, elsewhere) for pixels in (whole, tiled))
        assert in_tiled <= 1.5 * max(1.0, in_whole)  # things have borders too
        assert in_tiled == pytest.approx(in_whole, abs=0.02)


def test_a_drawn_scene_is_decoded_alike(demo_vae: Any) -> None:
    scene = Scene((Thing("green", "heart"), Thing("pink", "star")), "next to", background="meadow")
    drawn = render(scene, place(scene, np.random.default_rng(1)), 256, 256)
    with torch.no_grad():
        latents = demo_vae.encode(torch.from_numpy(drawn).permute(2, 0, 1)[None] * 2 - 1).latent_dist.mode()
    config = demo_vae.config
    tokens = pack((latents - config.shift_factor) * config.scaling_factor)
    whole, tiled = (picture(demo_vae, tokens, 256, 256, side) for side in (0, 64))
    assert differences(whole, np.round(drawn * 255).astype(np.uint8)).mean() < 8
    assert differences(tiled, whole).max() <= 1


def test_attention_sees_the_whole_picture(flux_vae: Any) -> None:
    whole, tiled = (picture(flux_vae, random_tokens(flux_vae, 256, 128), 256, 128, side) for side in (0, 64))
    assert whole.std() > 20
    assert differences(tiled, whole).max() <= 1


@pytest.mark.parametrize("name", ["demo_vae", "flux_vae"])
def test_bf16_tiles_are_as_near_to_fp32_as_the_bf16_whole(
    name: str, request: pytest.FixtureRequest, painted: list[tuple[Tensor, int, int]]
) -> None:
    vae = request.getfixturevalue(name)
    tokens = random_tokens(vae, 96, 96)
    if name == "demo_vae":
        tokens = pack(unpack(*painted[0])[:, :, 10:22, 10:22])
    rounded = copy.deepcopy(vae).bfloat16()
    exact = picture(vae, tokens, 96, 96)
    whole, tiled = (picture(rounded, tokens, 96, 96, side) for side in (0, 64))
    assert exact.std() > 20
    assert differences(tiled, whole).mean() <= 2
    assert np.percentile(differences(tiled, whole), 99.9) <= 8
    assert differences(tiled, exact).mean() <= 1.2 * differences(whole, exact).mean()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (80, 112), (208, 64), (64, 272), (144, 176)])
def test_any_size_is_decoded_in_tiles(width: int, height: int, flux_vae: Any) -> None:
    tokens = random_tokens(flux_vae, width, height)
    whole, tiled = (picture(flux_vae, tokens, width, height, side) for side in (0, 48))
    assert tiled.shape == (height, width, 3)
    assert len(_latent_rows(flux_size(width, height), 48)) > 1
    assert differences(tiled, whole).max() <= 1


@pytest.mark.parametrize("tile", [112, 1024])
def test_a_tile_as_large_as_the_picture_is_the_whole_picture_bit_for_bit(tile: int, flux_vae: Any) -> None:
    tokens = random_tokens(flux_vae, 80, 112)
    assert np.array_equal(picture(flux_vae, tokens, 80, 112, tile), picture(flux_vae, tokens, 80, 112))


def test_bands_are_even_and_not_too_many() -> None:
    for width, height in ((64, 64), (1024, 1024), (2048, 768), (1008, 2048), (2048, 64)):
        for tile in (0, *TILES):
            rows = _latent_rows(flux_size(width, height), tile)
            assert sum(rows) == height // VAE_SCALE
            assert max(rows) - min(rows) <= 1
            assert min(rows) >= 1
            assert len(rows) <= MAX_BANDS


def test_smaller_tiles_are_ever_more_bands() -> None:
    assert smaller_tiles(0, flux_size(1024, 1024)) == [768, 512, 384, 256]
    assert smaller_tiles(512, flux_size(1024, 1024)) == [384, 256]
    assert smaller_tiles(256, flux_size(1024, 1024)) == []
    for width, height in ((64, 64), (256, 192), (2048, 768), (2048, 2048)):
        counts = [
            len(_latent_rows(flux_size(width, height), tile))
            for tile in (0, *smaller_tiles(0, flux_size(width, height)))
        ]
        assert counts == sorted(set(counts))
        assert len(counts) > 1 or width == 64


@pytest.mark.parametrize("tile", [0, 64])
def test_pixels_that_are_not_finite_are_no_picture(tile: int, flux_vae: Any) -> None:
    bias = flux_vae.decoder.up_blocks[2].resnets[1].conv2.bias
    before = bias.detach().clone()
    bias.data[0] = float("nan")
    try:
        with pytest.raises(ValueError, match="not finite"):
            picture(flux_vae, random_tokens(flux_vae, 128, 128), 128, 128, tile)
    finally:
        bias.data.copy_(before)


def stop_at(call: int) -> Callable[[], None]:
    """A check that asks to stop when it is called for this time, from 1."""
    left = iter(range(call - 1, -1, -1))

    def check() -> None:
        if next(left) == 0:
            raise CancelledError

    return check


def test_cancelling_stops_before_the_next_tile_and_leaves_the_decoder_as_it_was(flux_vae: Any) -> None:
    tokens = random_tokens(flux_vae, 128, 128)
    before = picture(flux_vae, tokens, 128, 128)
    tiles, calls = len(_latent_rows(flux_size(128, 128), 64)), 0
    convolved: list[int] = []

    def count() -> None:
        nonlocal calls
        calls += 1

    decode(NETWORKS, flux_vae, tokens, flux_size(128, 128), count, tile=64)
    convolutions = sum(1 + 6 for _ in range(3)) + 1  # of each level an upsampler and three blocks of two, and the last
    assert calls >= tiles * convolutions
    hook = flux_vae.decoder.conv_out.register_forward_hook(lambda *_: convolved.append(1))
    try:
        with pytest.raises(CancelledError):
            decode(NETWORKS, flux_vae, tokens, flux_size(128, 128), stop_at(calls), tile=64)
    finally:
        hook.remove()
    assert len(convolved) == tiles - 1, "the last tile must not have been decoded"
    assert not any(module._forward_pre_hooks for module in flux_vae.modules())
    assert np.array_equal(picture(flux_vae, tokens, 128, 128), before)


def test_on_the_meta_device_only_shapes_are_computed() -> None:
    size, meta = flux_size(128, 192), torch.device("meta")
    with torch.device("meta"):
        vae = AutoencoderKL(**FLUX_1).eval()
        tokens = torch.empty(size.shape)
    for tile in (0, 64):
        pixels = decode(NETWORKS, vae, tokens, size, nothing, tile=tile, device=meta, dtype=torch.float32)
        assert pixels.is_meta
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (192, 128, 3)


def test_tiles_of_flux_1_fit_small_cards() -> None:
    size = flux_size(2048, 2048)
    with torch.device("meta"):
        vae = AutoencoderKL(**FLUX_1).bfloat16().eval()
        tokens = torch.empty(size.shape)
    peaks = [
        peak_of("meta", vae.parameters(), partial(decode, NETWORKS, vae, tokens, size, nothing, tile=tile))
        for tile in (0, 1024, 512)
    ]
    assert peaks[0] > 6.4e9
    assert peaks[1] < 1.3e9
    assert peaks[2] < 0.4e9


def test_on_the_cpu_tiles_take_what_is_parked_and_one_tile(flux_vae: Any) -> None:
    tokens, size = random_tokens(flux_vae, 256, 256), flux_size(256, 256)
    whole, tiled = (
        peak_of("cpu", flux_vae.parameters(), partial(decode, NETWORKS, flux_vae, tokens, size, nothing, tile=tile))
        for tile in (0, 64)
    )
    parked = parked_bytes(flux_vae, size, torch.float32)
    assert parked < tiled < 0.75 * whole
    assert tiled < 1.5 * parked
