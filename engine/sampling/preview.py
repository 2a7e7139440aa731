"""Latents to a small picture without the VAE: a linear map from latent channels to RGB.

The map is fitted by least squares on the model's own decodings, so that it fits any model. The demo model ships
with its own; for another, every finished picture adds its pixels to the fit, kept in the cache folder under the
model's hash: from the second picture on there is a preview.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.events import Preview
from engine.files import write_whole
from engine.untrusted import parse_json, read_file

MAX_SIDE = 64  # cells; a terminal shows no more
RIDGE = 1e-3
MAX_FILE_BYTES = 2**20


@dataclass(slots=True)
class PreviewMap:
    """The normal equations of the fit: `gram` [C + 1, C + 1] and `moment` [C + 1, 3], float64; `pictures` seen."""

    gram: Tensor
    moment: Tensor
    pictures: int = 0
    _solution: Tensor | None = None  # of the equations as they are; solved for the first frame, not for every step

    @classmethod
    def empty(cls, channels: int) -> PreviewMap:
        size = channels + 1
        return cls(torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, 3, dtype=torch.float64))

    def add(self, latents: Tensor, pixels: Tensor) -> None:
        """Learn from a decoding: latents [1, C, h, w] and uint8 pixels [k h, k w, 3]."""
        scale = pixels.shape[0] // latents.shape[2]
        small = F.avg_pool2d(pixels.permute(2, 0, 1)[None].float() / 255, scale).double()  # [1, 3, h, w]
        x = latents.double().cpu().flatten(2)[0].T  # [h * w, C]
        x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        self.gram += x.T @ x / len(x)
        self.moment += x.T @ small.flatten(2)[0].T / len(x)
        self.pictures += 1
        self._solution = None

    def matrix(self) -> Tensor:
        """The least-squares map [C + 1, 3] from channels (and 1) to RGB in 0..1."""
        if self._solution is None:
            ridge = RIDGE * max(1, self.pictures) * torch.eye(len(self.gram), dtype=torch.float64)
            self._solution = torch.linalg.solve(self.gram + ridge, self.moment).float()
        return self._solution

    def frame(self, latents: Tensor) -> Preview | None:
        """The preview of predicted clean latents [1, C, h, w] on the CPU; None before the first picture was seen."""
        if self.pictures == 0:
            return None
        rows, columns = latents.shape[-2:]
        if max(rows, columns) > MAX_SIDE:
            factor = MAX_SIDE / max(rows, columns)
            size = (max(1, round(rows * factor)), max(1, round(columns * factor)))
            latents = F.interpolate(latents, size=size, mode="area")
        matrix = self.matrix()
        rgb = torch.einsum("chw,ck->hwk", latents[0], matrix[:-1]) + matrix[-1]
        picture = (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
        return Preview(picture.shape[1], picture.shape[0], picture.numpy().tobytes())

    def save(self, path: Path, provenance: str) -> None:
        """Write the fit as JSON, whole or not at all."""
        values = {
            "provenance": provenance,
            "pictures": self.pictures,
            "gram": self.gram.tolist(),
            "moment": self.moment.tolist(),
        }
        write_whole(path, json.dumps(values).encode())

    @classmethod
    def read(cls, path: Path, channels: int) -> PreviewMap:
        """The fit in a file, or an empty one where there is none that fits."""
        try:
            values = parse_json(read_file(path, MAX_FILE_BYTES))
            gram = torch.tensor(values["gram"], dtype=torch.float64)
            moment = torch.tensor(values["moment"], dtype=torch.float64)
            fits = gram.shape == (channels + 1, channels + 1) and moment.shape == (channels + 1, 3)
            if fits and bool(gram.isfinite().all() and moment.isfinite().all()):
                return cls(gram, moment, max(0, int(values["pictures"])))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, RuntimeError):
            pass
        return cls.empty(channels)
