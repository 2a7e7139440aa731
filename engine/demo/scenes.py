"""Scenes that the embedded demo model learns to paint: what stands where, and how it is drawn.

A `Scene` is what a prompt says (one or two things, a relation, a background); `place` gives it concrete
positions and radii; `render` draws it, anti-aliased, at any size. `engine.demo.grammar` turns scenes into
prompts and back. Only numpy is needed, so that a picture can be checked where there is no torch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 44),
    "orange": (246, 140, 30),
    "yellow": (251, 216, 52),
    "green": (40, 160, 72),
    "cyan": (62, 206, 216),
    "blue": (42, 84, 214),
    "purple": (128, 56, 172),
    "pink": (246, 132, 186),
    "black": (26, 26, 31),
    "white": (247, 247, 247),
    "gray": (138, 140, 146),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
RADII = {"small": 0.115, "medium": 0.16, "large": 0.215}  # half the extent, as a part of the shorter side
RELATIONS = ("above", "below", "left of", "right of", "next to")
PLACES = ("at the top", "at the bottom", "on the left", "on the right", "in the middle")
SCENERY: dict[str, tuple[str, ...]] = {  # scenic backgrounds, and the colours that would drown in them
    "night sky": ("black", "blue", "purple", "gray"),
    "sunset": ("orange", "pink", "red", "purple", "gray"),
    "meadow": ("green", "cyan", "gray", "white"),
    "ocean": ("blue", "cyan", "gray", "green", "white"),
}
BACKGROUNDS = (*COLOURS, *SCENERY)


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape; `size` is None where the prompt leaves it open (drawn medium)."""

    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt says. `relation` reads "first RELATION second"; `place` belongs to a single thing."""

    things: tuple[Thing, ...]
    relation: str | None = None
    place: str | None = None
    background: str | None = None

    @property
    def drawn_background(self) -> str:
        """The background that is drawn: the named one, else the lightest that hides no thing."""
        if self.background is not None:
            return self.background
        used = {thing.colour for thing in self.things}
        return next(colour for colour in ("white", "gray", "black") if colour not in used)


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing with its centre (x, y) and radius, in parts of the width, the height and the shorter side."""

    thing: Thing
    x: float
    y: float
    radius: float


def clashes(colour: str, background: str) -> bool:
    """Whether a thing of this colour could not be told from the background."""
    return colour in SCENERY.get(background, (background,))


HELD_OUT = {("gray", "star"), ("black", "heart"), ("cyan", "triangle"), ("orange", "square")}


def held_out(scene: Scene) -> bool:
    """Whether the transformer and the text encoders never see this: four colour-shape pairs, one in eight pairs.

    (The autoencoder sees every scene: it reads no prompts.)
    """
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    pair = len(names) == 2 and zlib.crc32(" ".join(sorted(names)).encode()) % 8 == 0
    return pair or any((thing.colour, thing.shape) in HELD_OUT for thing in scene.things)


def training_scene(rng: np.random.Generator) -> Scene:
    """A random scene that is not held out."""
    while held_out(scene := random_scene(rng)):
        pass
    return scene


def random_scene(rng: np.random.Generator, things: int | None = None) -> Scene:
    """A scene drawn evenly over the grammar; two in three have two things."""
    count = things or (2 if rng.random() < 0.66 else 1)
    background = None
    if rng.random() < 0.85:
        background = str(rng.choice(BACKGROUNDS if rng.random() < 0.5 else tuple(COLOURS)))
        if rng.random() < 0.15:
            background = str(rng.choice(tuple(SCENERY)))
    free = [colour for colour in COLOURS if background is None or not clashes(colour, background)]
    chosen: list[Thing] = []
    while len(chosen) < count:
        size = (None, "small", "large")[rng.integers(3)]
        thing = Thing(str(rng.choice(free)), str(rng.choice(SHAPES)), size)
        if all((thing.colour, thing.shape) != (other.colour, other.shape) for other in chosen):
            chosen.append(thing)
    if count == 2:
        return Scene(tuple(chosen), relation=str(rng.choice(RELATIONS)), background=background)
    place = str(rng.choice(PLACES)) if rng.random() < 0.3 else None
    return Scene(tuple(chosen), place=place, background=background)


def place(scene: Scene, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Concrete centres and radii, in the order of `scene.things`; what the prompt leaves free varies."""

    def jitter(amount: float) -> float:
        return float(rng.uniform(-amount, amount))

    radii = [RADII[thing.size or "medium"] * (1 + jitter(0.04)) for thing in scene.things]
    if len(scene.things) == 1:
        # The middle of the free range moves to the named side; across it the thing stays nearly centred.
        spread_x = spread_y = 0.19
        x = y = 0.5
        if scene.place is not None:
            spread_x = spread_y = 0.05
            x += {"on the left": -0.24, "on the right": 0.24}.get(scene.place, 0.0)
            y += {"at the top": -0.24, "at the bottom": 0.24}.get(scene.place, 0.0)
        x, y = x + jitter(spread_x), y + jitter(spread_y)
        return (Placed(scene.things[0], _inside(x, radii[0]), _inside(y, radii[0]), radii[0]),)

    relation = scene.relation
    if relation == "next to":
        relation = ("left of", "right of")[rng.integers(2)]
    sign = -1.0 if relation in ("above", "left of") else 1.0
    upright = relation in ("above", "below")
    placed = []
    for side, thing, radius in zip((sign, -sign), scene.things, radii, strict=True):
        along = 0.5 + side * 0.24 + jitter(0.02)
        across = 0.5 + jitter(0.09)
        x, y = (across, along) if upright else (along, across)
        placed.append(Placed(thing, _inside(x, radius), _inside(y, radius), radius))
    return tuple(placed)


def _inside(at: float, radius: float) -> float:
    """A centre moved so that no shape of this radius leaves the frame."""
    reach = 1.08 * radius
    return min(max(at, reach), 1 - reach)


def render(
    scene: Scene,
    placed: tuple[Placed, ...],
    width: int = 128,
    height: int = 128,
    rng: np.random.Generator | None = None,
) -> FloatArray:
    """Draw the scene: float32 RGB [height, width, 3] in 0..1; `rng` varies the scenery a little."""
    image = background(scene.drawn_background, width, height, rng)
    for item in placed:
        reach = item.radius * min(width, height)  # pixels
        rows = _span(item.y * height, reach, height)
        columns = _span(item.x * width, reach, width)
        x, y = _grid(width, height)
        u = (x[rows, columns] * width - item.x * width) / reach
        v = (y[rows, columns] * height - item.y * height) / reach
        distance = SIGNED_DISTANCE[item.thing.shape](u, v) * reach  # pixels
        coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        light = np.clip(-(u + 1.4 * v) * 0.055, -0.12, 0.12)[..., None]  # lit from above left
        colour = _rgb(COLOURS[item.thing.colour])
        body = np.where(light > 0, colour + (1 - colour) * light, colour * (1 + light))
        image[rows, columns] = image[rows, columns] * (1 - coverage) + body * coverage
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def background(name: str, width: int, height: int, rng: np.random.Generator | None = None) -> FloatArray:
    """A background alone: a soft gradient of a colour, or scenery. float32 RGB [height, width, 3]."""
    x, y = _grid(width, height)
    if name in COLOURS:
        colour = _rgb(COLOURS[name])
        shade = (0.5 - y) * 0.10 - ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 0.10
        lifted = np.where(
            shade[..., None] > 0, colour + (1 - colour) * shade[..., None], colour * (1 + shade[..., None])
        )
        return lifted.astype(np.float32)
    variation = np.zeros(3) if rng is None else rng.uniform(-1, 1, 3)
    return SCENERY_PAINTERS[name](x, y, width, height, variation).astype(np.float32)


def _grid(width: int, height: int) -> tuple[FloatArray, FloatArray]:
    """Pixel centres in parts of the width and of the height: two arrays [height, width]."""
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def _span(centre: float, reach: float, limit: int) -> slice:
    """The pixels that a shape of this reach can touch along one axis."""
    return slice(max(0, math.floor(centre - 1.15 * reach) - 1), min(limit, math.ceil(centre + 1.15 * reach) + 1))


def _rgb(colour: tuple[int, int, int]) -> FloatArray:
    return np.asarray(colour, dtype=np.float32) / 255


def _blend(y: FloatArray, *stops: tuple[float, tuple[int, int, int]]) -> FloatArray:
    """A vertical gradient through colour stops at heights 0 (top) to 1."""
    at = [stop for stop, _ in stops]
    return np.stack([np.interp(y, at, [colour[c] / 255 for _, colour in stops]) for c in range(3)], axis=-1)


def _over(image: FloatArray, coverage: FloatArray, colour: tuple[int, int, int]) -> FloatArray:
    return image * (1 - coverage[..., None]) + _rgb(colour) * coverage[..., None]


# --- scenery: each painter takes the grid, the size in pixels and three numbers in -1..1 that vary it ---------


def _night_sky(x: FloatArray, y: FloatArray, width: int, height: int, vary: FloatArray) -> FloatArray:
    image = _blend(y, (0.0, (10, 14, 44)), (0.7, (26, 32, 84)), (1.0, (48, 50, 112)))
    for cx, cy, radius in (
        (0.07, 0.08, 0.011), (0.93, 0.10, 0.013), (0.50, 0.05, 0.009), (0.28, 0.04, 0.008), (0.74, 0.05, 0.009),
        (0.05, 0.52, 0.009), (0.95, 0.48, 0.010), (0.06, 0.92, 0.010), (0.94, 0.90, 0.011), (0.50, 0.96, 0.009),
    ):  # fmt: skip
        distance = np.hypot((x - cx) * width, (y - cy) * height) / min(width, height)
        image = _over(image, 0.9 * np.exp(-((distance / radius) ** 2)), (255, 246, 214))
    return image


def _sunset(x: FloatArray, y: FloatArray, width: int, height: int, vary: FloatArray) -> FloatArray:
    image = _blend(y, (0.0, (96, 66, 128)), (0.45, (226, 128, 122)), (0.78, (255, 190, 120)), (1.0, (255, 214, 150)))
    ground = 0.90 + 0.012 * vary[0] + 0.012 * np.sin(2 * math.pi * (x + 0.25 * vary[1]))
    return _over(image, np.clip((y - ground) * height + 0.5, 0, 1), (72, 44, 72))


def _meadow(x: FloatArray, y: FloatArray, width: int, height: int, vary: FloatArray) -> FloatArray:
    image = _blend(y, (0.0, (148, 200, 240)), (0.7, (214, 236, 250)))
    far = 0.74 + 0.02 * np.sin(2 * math.pi * (x * 1.1 + 0.1 + 0.15 * vary[0]))
    near = 0.85 + 0.02 * np.sin(2 * math.pi * (x * 0.9 + 0.55 + 0.15 * vary[1]))
    image = _over(image, np.clip((y - far) * height + 0.5, 0, 1), (158, 206, 112))
    return _over(image, np.clip((y - near) * height + 0.5, 0, 1), (120, 182, 84))


def _ocean(x: FloatArray, y: FloatArray, width: int, height: int, vary: FloatArray) -> FloatArray:
    image = _blend(y, (0.0, (196, 226, 244)), (0.6, (240, 246, 244)))
    wave = 0.62 + 0.012 * np.sin(2 * math.pi * (x * 2 + 0.25 * vary[0]))
    water = _blend(y, (0.6, (60, 150, 186)), (1.0, (18, 86, 132)))
    coverage = np.clip((y - wave) * height + 0.5, 0, 1)[..., None]
    mixed: FloatArray = image * (1 - coverage) + water * coverage
    return mixed


Painter = Callable[[FloatArray, FloatArray, int, int, FloatArray], FloatArray]
SCENERY_PAINTERS: dict[str, Painter] = {
    "night sky": _night_sky,
    "sunset": _sunset,
    "meadow": _meadow,
    "ocean": _ocean,
}


# --- shapes: signed distance in units of the radius, negative inside, y downwards ------------------------------


def _circle(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.hypot(u, v) - 1.0


def _square(u: FloatArray, v: FloatArray) -> FloatArray:
    half, corner = 0.9, 0.08
    dx, dy = np.abs(u) - half + corner, np.abs(v) - half + corner
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - corner


def _polygon(u: FloatArray, v: FloatArray, points: list[tuple[float, float]]) -> FloatArray:
    """Exact signed distance to a simple polygon (edges give the distance, crossings give the sign)."""
    nearest = np.full(u.shape, np.inf, dtype=np.float32)
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = u - ax, v - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(wx - ex * along, wy - ey * along))
        if ay != by:
            inside ^= ((ay > v) != (by > v)) & (u < ax + (v - ay) * ex / ey)
    return np.where(inside, -nearest, nearest)


_TRIANGLE = [(0.0, -0.92), (1.0, 0.82), (-1.0, 0.82)]
_STAR = [
    (
        (1.08 if k % 2 == 0 else 0.50) * math.sin(k * math.pi / 5),
        0.06 - (1.08 if k % 2 == 0 else 0.50) * math.cos(k * math.pi / 5),
    )
    for k in range(10)
]
_HEART = [
    (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.6 - 0.12)
    for t in (2 * math.pi * k / 36 for k in range(36))
]


def _triangle(u: FloatArray, v: FloatArray) -> FloatArray:
    return _polygon(u, v, _TRIANGLE) - 0.03


def _star(u: FloatArray, v: FloatArray) -> FloatArray:
    return _polygon(u, v, _STAR) - 0.03


def _heart(u: FloatArray, v: FloatArray) -> FloatArray:
    return _polygon(u, v, _HEART)


SIGNED_DISTANCE: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
}
