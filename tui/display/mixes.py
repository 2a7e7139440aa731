"""The pairs of colours that pictures have where there are 256: `python -m tui.display.mixes` writes `mixes.bin`.

For each of 32 x 32 x 32 colours two numbers of the palette, the darker first; drawn like a chessboard they look, from a
little further away, like the colour. One number twice where a mix gains too little to be worth its pattern.
"""

from __future__ import annotations

import zlib
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from tui.display.palette import FIRST, LEVELS_OF_MIXES, MIXES, PALETTE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Chosen by eye, on areas of gray, a sky, skin and pictures of the demo model, as half-blocks of 48x24 and 96x48 cells.
NEAR = 12  # colours that a mix is chosen from
UNSEEN = 0.007  # an error in OKLab that no mix is made for
PATTERN = 0.07  # what the distance of the two colours from their mean counts beside the error of the mean
HUES = 2  # how much more a difference of hue is seen in it than one of lightness
NEUTRAL = 0.02  # the chroma below which a colour is a gray: patterns are seen best in those


def main() -> None:
    """Write the table."""
    MIXES.write_bytes(zlib.compress(mixes().tobytes(), 9))


def mixes(every: int = 1) -> NDArray[np.uint8]:
    """The pairs [N, 2] of each colour of the grid, or of `every` so many."""
    import numpy as np

    steps = np.linspace(0, 255, LEVELS_OF_MIXES)
    wanted = oklab_of(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)[::every])
    lights = light_of(np.array(PALETTE, np.float64))
    known = oklab_of_light(lights)
    pairs = np.array(list(combinations_with_replacement(range(NEAR), 2)))  # nearest first
    found = [_chosen(some, known, lights, pairs) for some in np.array_split(wanted, len(wanted) // 1024 + 1)]
    return (np.concatenate(found) + FIRST).astype(np.uint8)


def _chosen(wanted: Floats, known: Floats, lights: Floats, pairs: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    distances = ((wanted[:, None] - known) ** 2).sum(-1)  # [N, 240]
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEAR]
    mixed = nearest[:, pairs]  # [N, pairs, 2]
    error = np.sqrt(((oklab_of_light(lights[mixed].mean(2)) - wanted[:, None]) ** 2).sum(-1))
    half = (known[mixed[..., 0]] - known[mixed[..., 1]]) / 2 * np.array([1, HUES, HUES])
    # The small second part decides where an error is not seen.
    cost = np.maximum(0, error - UNSEEN) ** 2 + 1e-6 * error + PATTERN * (half**2).sum(-1)
    best = np.argmin(np.round(cost, 12), axis=1)
    chosen = mixed[np.arange(len(wanted)), best]
    chosen = np.take_along_axis(chosen, np.argsort(known[chosen][..., 0], axis=1, kind="stable"), 1)
    gray = np.hypot(wanted[:, 1], wanted[:, 2]) < NEUTRAL
    chosen[gray] = nearest[gray, :1]
    return np.asarray(chosen)


def light_of(rgb: Floats) -> Floats:
    """Linear light (0 to 1) of sRGB (0 to 255)."""
    import numpy as np

    x = rgb / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def oklab_of_light(light: Floats) -> Floats:
    """Linear light in OKLab."""
    import numpy as np

    cones = np.cbrt(light @ np.array([
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]))  # fmt: skip
    return np.asarray(cones @ np.array([
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ]))  # fmt: skip


def oklab_of(rgb: Floats) -> Floats:
    """Colours of sRGB (0 to 255) in OKLab."""
    return oklab_of_light(light_of(rgb))


if __name__ == "__main__":
    main()
