"""The benchmark of quantization: what it measures with must be right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.families.flux1.cuts import inputs
from tests.bench.quantization import FACTOR, OUTLIERS, SAME_PSNR, inject_outliers, psnr, relative_error, ssim, velocity
from tests.tiny import tiny_pipeline


@pytest.mark.parametrize("guided", [False, True], ids=["schnell", "dev"])
def test_a_transformer_with_outliers_computes_what_it_did(guided):
    transformer = tiny_pipeline(guided).transformer
    config = dict(transformer.config)
    plain = {name: tensor.double() for name, tensor in transformer.state_dict().items()}
    changed, channels = inject_outliers(plain, config, seed=0)
    assert relative_error([velocity(config, changed)], [velocity(config, plain)]) < 1e-7  # positions are in fp32
    assert channels.keys() == {each.name for each in inputs(config) if each.tables or each.values}
    name, chosen = "transformer_blocks.0.attn.to_out.0", channels["transformer_blocks.0.attn.to_out.0"]
    grown = changed["transformer_blocks.0.attn.to_v.bias"] / plain["transformer_blocks.0.attn.to_v.bias"]
    assert len(chosen) == OUTLIERS
    assert torch.allclose(grown[chosen], torch.full((OUTLIERS,), FACTOR, dtype=torch.float64))
    shrunk = plain[f"{name}.weight"][:, chosen] / changed[f"{name}.weight"][:, chosen]
    assert torch.allclose(shrunk, torch.full_like(shrunk, FACTOR))


def test_likeness_of_pictures():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    brighter = np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8)
    assert psnr(image, image) == SAME_PSNR
    assert ssim(image, image) == pytest.approx(1)
    flat = np.full((32, 32, 3), 100, np.uint8)
    assert psnr(flat + 10, flat) == pytest.approx(20 * np.log10(25.5))
    assert ssim(flat + 10, flat) == pytest.approx((2 * 110 * 100 + 6.5025) / (110**2 + 100**2 + 6.5025))
    assert ssim(image, 255 - image) < 0 < ssim(brighter, image) < 1
