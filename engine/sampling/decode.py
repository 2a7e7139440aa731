"""Latents to pixels: the whole picture at once, or in tiles that fit a small card.

The decoder's GroupNorms normalise by mean and variance over the whole picture. Tiles that use their own differ in
colour, and figures taken from samples or from a reduced picture do not bring the colours back. So the tiles pass the
decoder together: each passes a convolution, is measured, and is parked on the host until all have been measured; then
the next GroupNorm knows the whole picture. What comes out is the whole decoder's picture, but for rounding, at hardly
more arithmetic: one row of each neighbour. What it costs is copying, and memory of the host.

A tile is a band of rows: it has two neighbours, not eight, and is copied in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cancel import cancellable
from engine.families.facts import Size
from engine.families.networks import Networks
from engine.request import RequestError

TILES = (1024, 768, 512, 384, 256, 192, 128, 96, 64)  # pixels a side, largest first
MAX_BANDS = 16  # more save nothing: what is computed whole, before the first upsampling, then takes the most


@torch.no_grad()
def decode(
    networks: Networks,
    vae: Any,
    tokens: Tensor,
    size: Size,
    check: Callable[[], None],
    *,
    tile: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Finished image tokens [1, L, C] to uint8 RGB [height, width, 3] on the CPU; a tensor on meta stays there.

    `tile`: pixels a side of a square; bands of its area pass the decoder one by one. 0, or a square as large as the
    picture: whole. `device` and `dtype` are the VAE's, unless given. Raises ValueError where the pixels are not finite
    (a broken model must not pass for a picture).
    """
    latents = networks.to_decoder(tokens, vae, size).to(device or vae.device, dtype or vae.dtype)
    rows = _latent_rows(size, tile)
    with cancellable(vae, check):
        if len(rows) == 1:
            return _pixels(vae.decode(latents, return_dict=False)[0])
        return _in_bands(vae, latents, rows, check)


def smaller_tiles(tile: int, size: Size) -> list[int]:
    """The sizes below `tile` (0: whole) that cut this picture into ever more bands, largest first."""
    sizes, bands = [], len(_latent_rows(size, tile))
    for side in TILES:
        if (tile == 0 or side < tile) and len(_latent_rows(size, side)) > bands:
            sizes.append(side)
            bands = len(_latent_rows(size, side))
    return sizes


def parked_bytes(vae: Any, size: Size, dtype: torch.dtype) -> int:
    """Memory of the host that decoding in tiles takes, whatever their size; on the CPU that is the device's own."""
    area = (size.width // size.scale) * (size.height // size.scale)
    most = 0
    for index, block in enumerate(vae.decoder.up_blocks):
        for resnet in block.resnets if index else ():
            most = max(most, area * (resnet.conv1.in_channels + resnet.conv1.out_channels))
        for upsampler in block.upsamplers or ():
            most = max(most, area * (upsampler.conv.in_channels + 4 * upsampler.conv.out_channels))
            area *= 4
    return most * dtype.itemsize


def _latent_rows(size: Size, tile: int) -> list[int]:
    """The rows of latents in each band, as even as can be."""
    rows = size.height // size.scale
    most = max(tile**2 // (size.width * size.scale), -(-rows // MAX_BANDS)) if tile else rows
    count = -(-rows // most)
    return [rows * (band + 1) // count - rows * band // count for band in range(count)]


def _pixels(values: Tensor) -> Tensor:
    """The decoder's [1, 3, h, w], -1 to 1, as uint8 [h, w, 3] on the CPU."""
    if not values.is_meta and not torch.isfinite(values).all():
        raise RequestError(
            "model",
            "the decoded picture holds values that are not finite: weights are damaged, or do not fit; look "
            "at them with t2i models check, or try another --precision.",
        )
    values = (values[0].float() / 2 + 0.5).clamp(0, 1)
    levels = (values * 255).round().to(torch.uint8).permute(1, 2, 0)
    return levels if levels.is_meta else levels.cpu()


def _in_bands(vae: Any, latents: Tensor, rows: list[int], check: Callable[[], None]) -> Tensor:
    """The picture, uint8 [height, width, 3], decoded in bands of so many latent rows from the first upsampling on."""
    decoder = vae.decoder
    x = _Bands(_before_upsampling(vae, latents).split(rows, dim=2), check)
    for index, block in enumerate(decoder.up_blocks):
        for resnet in block.resnets if index else ():
            x = _resnet(resnet, x, check)
        for upsampler in block.upsamplers or ():
            x = _Bands(x.through(upsampler), check)
    last = x.through(x.frozen(decoder.conv_norm_out), decoder.conv_act, decoder.conv_out)
    return torch.cat([_pixels(band) for band in last])


def _before_upsampling(vae: Any, latents: Tensor) -> Tensor:
    """Latents [1, c, h, w] to features [1, C, h, w], whole: the maps are small, and attention looks at all of them."""
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    middle = vae.decoder.mid_block
    x: Tensor = middle.resnets[0](vae.decoder.conv_in(latents), None)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            x = _attention(attention, x)
        x = resnet(x, None)
    for resnet in vae.decoder.up_blocks[0].resnets:
        x = resnet(x, None)
    return x


def _attention(attention: Any, x: Tensor) -> Tensor:
    """diffusers' Attention of every place [1, C, h, w] with every other, which here lets go of what it used."""
    tokens = attention.group_norm(x.flatten(2)).transpose(1, 2).contiguous()  # [1, h w, C]
    query, key, value = (
        project(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)  # [1, heads, h w, C / heads]
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    del tokens
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    del query, key, value
    attended = attention.to_out[0](mixed).transpose(1, 2).reshape(x.shape)
    result: Tensor = (attended + x) / attention.rescale_output_factor
    return result


def _resnet(resnet: Any, x: _Bands, check: Callable[[], None]) -> _Bands:
    """diffusers' ResnetBlock2D without a time embedding; x gives way to the result band by band."""
    h = _Bands(x.through(x.frozen(resnet.norm1), resnet.nonlinearity, resnet.conv1), check)
    norm2 = h.frozen(resnet.norm2)
    shortcut = resnet.conv_shortcut or torch.nn.Identity()
    for index in range(len(h)):
        band = h.convolved(index, norm2, resnet.nonlinearity, resnet.conv2)
        x.replace(index, (band + shortcut(x.fetch(index))) / resnet.output_scale_factor)
        del band  # before the next one is made
    return x


class _Bands:
    """A feature map [1, C, h, w] in bands of rows, parked on the host, and the moments of their channels."""

    def __init__(self, bands: Iterable[Tensor], check: Callable[[], None]) -> None:
        self._check = check
        self._parked: list[Tensor] = []
        self._moments: list[Tensor] = []  # for each band mean and variance, float32 [2, C]
        for band in bands:
            self._device = band.device
            self._moments.append(_moments(band))
            self._parked.append(_park(band))
            del band  # before the next one is made

    def __len__(self) -> int:
        return len(self._parked)

    def fetch(self, index: int) -> Tensor:
        """A band, on the device."""
        return _fetch(self._parked[index], self._device)

    def replace(self, index: int, band: Tensor) -> None:
        """Put this band in an old one's place."""
        self._moments[index] = _moments(band)
        self._parked[index] = _park(band)

    def through(self, *modules: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Every band as it leaves the modules, one after the other."""
        return (self.convolved(index, *modules) for index in range(len(self)))

    def convolved(self, index: int, *modules: Callable[[Tensor], Tensor]) -> Tensor:
        """A band as it leaves the modules, of which the last is a 3x3 convolution: it sees the neighbours' next rows.

        An upsampler's convolution comes after it has doubled the rows.
        """
        self._check()
        above = self._parked[index - 1][:, :, -1:] if index > 0 else None
        below = self._parked[index + 1][:, :, :1] if index + 1 < len(self) else None
        parts = [part for part in (above, self._parked[index], below) if part is not None]
        x = torch.cat([_fetch(part, self._device) for part in parts], dim=2)
        rows = x.shape[2]
        for module in modules:
            x = module(x)
        scale = x.shape[2] // rows
        return x[:, :, scale * (above is not None) : x.shape[2] - scale * (below is not None)]

    def frozen(self, norm: Any) -> Callable[[Tensor], Tensor]:
        """A GroupNorm that normalises by this whole map as it is now, whatever part of it is given."""
        mean, variance = torch.stack(self._moments, dim=1).unflatten(2, (norm.num_groups, -1))  # [bands, groups, c]
        bands, _, channels = mean.shape
        rows = torch.tensor([float(band.shape[2]) for band in self._parked], device=mean.device)
        share = (rows / rows.sum() / channels).view(bands, 1, 1)
        mean_of_all = (mean * share).sum(dim=(0, 2), keepdim=True)
        variance_of_all = ((variance + (mean - mean_of_all) ** 2) * share).sum(dim=(0, 2))
        mean_of_all = mean_of_all.flatten().repeat_interleave(channels)
        variance_of_all = variance_of_all.repeat_interleave(channels)

        def normalise(x: Tensor) -> Tensor:
            weight, bias = norm.weight.float(), norm.bias.float()
            return F.batch_norm(x, mean_of_all, variance_of_all, weight, bias, eps=norm.eps)

        return normalise


def _moments(band: Tensor) -> Tensor:
    """Mean and variance of each channel, float32 [2, C]."""
    if band.is_meta:
        return band.new_empty((2, band.shape[1]), dtype=torch.float32)
    halves = [torch.var_mean(half.float(), dim=(1, 2), correction=0) for half in band[0].chunk(2)]
    variance, mean = (torch.cat(values) for values in zip(*halves, strict=True))
    return torch.stack([mean, variance])


def _park(band: Tensor) -> Tensor:
    """To the host. On meta a tensor of this shape that takes no memory: it stands for the host's."""
    return band.new_empty(()).expand(band.shape) if band.is_meta else band.cpu()


def _fetch(band: Tensor, device: torch.device) -> Tensor:
    return band.contiguous() if band.is_meta else band.to(device)
