"""Does a picture show what its prompt says? A judge of the demo's pictures: deterministic, numpy alone, any size.

Every pixel goes to the background that is expected there or to the nearest of the named colours, in OKLab (Ottosson,
"A perceptual color space for image processing", 2020). The largest patches of a thing's colour are the thing. Its
shape is the template of `engine.demo.scenes` with the best overlap (intersection over union) after fitting centre and
radius; size and place are read from that fit. Whatever is neither background nor a thing, nor its blurred edge, is
stray.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.demo.scenes import COLOURS, RADII, SCENERY, SHAPES, SIGNED_DISTANCE, FloatArray, Scene, background, clashes

BoolArray = NDArray[np.bool_]

FOREIGN = 0.11  # OKLab distance beyond which a pixel has none of the known colours (the closest two are 0.148 apart)
SHADINGS = (-0.10, 0.0, 0.10)  # shadow, plain and light, as `scenes.render` shades things and backgrounds
BACKGROUND_SHARE = 0.90  # least part of the pixels outside the things that must be the background
BACKGROUND_DRIFT = 0.05  # OKLab distance that half of them must keep: a night sky is no black, light gray no white
LEAST_THING, MOST_THING = 0.010, 0.35  # areas, in parts of the shorter side squared; true things have 0.023 to 0.16
STRAY_AREA = 0.006  # part of the picture; specks that cover less in all are forgiven (true renders have none)
# Least overlap with the named shape's template. True renders have 0.94 and more. An outline that is off by 5 % of
# the radius on average loses 0.05 * perimeter / area, which is more for a star than for a circle.
SHAPE_IOU = {"circle": 0.89, "square": 0.88, "triangle": 0.83, "star": 0.80, "heart": 0.85}
HOPELESS = 0.15  # a template whose overlap is that much worse before its fit is refined cannot win
SEPARATION = 0.2  # least distance of two related centres, in parts of the height or width
SIDE, MIDDLE = 0.4, 0.15  # "on the left" is x < 0.4, "in the middle" within 0.5 +- 0.15
ROW_SHIFT, ROW_SHIFTS = 0.0125, 3  # scenery may move up and down by three times this part of the height


@dataclass(frozen=True, slots=True)
class Found:
    """Where a thing is: centre in parts of the width and height, radius in parts of the shorter side.

    `shape` is the template that fits best, with the overlap `iou`.
    """

    x: float
    y: float
    radius: float
    shape: str
    iou: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is right in a picture. `found` follows `scene.things`; None is a thing that is not there in its colour.

    Of sizes and places, only what the prompt names can be wrong. Where a thing is missing, its colour, shape, size and
    place all are.
    """

    background: bool
    colours: bool
    shapes: bool
    sizes: bool
    places: bool
    clean: bool  # nothing stray
    found: tuple[Found | None, ...]

    @property
    def strict(self) -> bool:
        return all(getattr(self, field.name) for field in fields(self) if field.name != "found")

    @property
    def places_and_colours(self) -> bool:
        return self.places and self.colours


def check(image: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Judge `image`, sRGB uint8 [H, W, 3], against `scene`; about 5 ms for 128 x 128 pixels.

    Where the prompt names no background, any plain colour passes that hides none of the things.
    """
    lab = _oklab(image)
    palette = _palette_distances(lab)
    name = scene.drawn_background
    reading = _read(lab, palette, name, scene)
    if not reading.background_right:
        # The rest is judged on the background that is there, so that one fault counts once.
        name = _actual_background(lab, palette)
        if name != scene.drawn_background and not any(clashes(thing.colour, name) for thing in scene.things):
            reading = _read(lab, palette, name, scene)
    accepted = name == scene.drawn_background or (scene.background is None and name in COLOURS)
    # Nobody says which of two patches of one colour is which thing: the order that suits the prompt better counts.
    verdicts = [_verdict(scene, found, reading, accepted) for found in _orders(scene, reading.found)]
    return max(
        verdicts, key=lambda verdict: (verdict.shapes + verdict.sizes + verdict.places, _overlaps(verdict, scene))
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """A picture taken apart, given its background."""

    background_right: bool
    clean: bool
    found: tuple[Found | None, ...]


def _read(lab: FloatArray, palette: FloatArray, name: str, scene: Scene) -> _Reading:
    """Find the background, the things and what is stray. `lab` [H, W, 3], `palette` distances [11, H, W]."""
    height, width = lab.shape[:2]
    side = min(height, width)
    edge = max(2, round(0.022 * side))  # pixels around a thing where its colour mixes with what is behind

    ground = _background_distances(lab, name)
    if name in COLOURS:
        ground = np.minimum(ground, palette[_index(name)])
    others = [k for k, colour in enumerate(COLOURS) if colour != name]
    rivals = palette[others]
    is_ground = (ground <= rivals.min(0)) & (ground < FOREIGN)
    nearest = np.where(is_ground, -1, np.asarray(others)[rivals.argmin(0)])

    # Among named colours alone: a blurred edge of red on white is pink, but half of it belongs to either.
    named = sorted({_index(thing.colour) for thing in scene.things})
    claims = np.concatenate([ground[None], palette[named]]).argmin(0)
    masks: list[BoolArray | None] = [None] * len(scene.things)
    for claim, colour in enumerate(named, start=1):
        owners = [k for k, thing in enumerate(scene.things) if _index(thing.colour) == colour]
        body = (nearest == colour) & (palette[colour] < FOREIGN)
        patches = _patches(body, claims == claim, len(owners), side, edge)
        for owner, patch in zip(owners, patches, strict=False):
            masks[owner] = patch

    covered = np.zeros((height, width), dtype=bool)
    for mask in masks:
        if mask is not None:
            covered |= mask
    outside = ~_dilated(covered, edge)
    background_right = bool(
        outside.any()
        and is_ground[outside].mean() >= BACKGROUND_SHARE
        and np.median(ground[outside]) <= BACKGROUND_DRIFT
    )
    foreign = _opened(outside & ~is_ground)
    clean = bool(foreign.mean() <= STRAY_AREA)
    found = tuple(None if mask is None else _fit(mask) for mask in masks)
    return _Reading(background_right, clean, found)


def _verdict(scene: Scene, found: tuple[Found | None, ...], reading: _Reading, accepted: bool) -> Verdict:
    seen = [(thing, item) for thing, item in zip(scene.things, found, strict=True) if item is not None]
    complete = len(seen) == len(scene.things)
    shaped = all(item.shape == thing.shape and item.iou >= SHAPE_IOU[thing.shape] for thing, item in seen)
    return Verdict(
        background=accepted and reading.background_right,
        colours=complete,
        shapes=complete and shaped,
        sizes=complete and all(thing.size in (None, _size(item.radius)) for thing, item in seen),
        places=complete and _placed_right(scene, [item for _, item in seen]),
        clean=reading.clean,
        found=found,
    )


def _orders(scene: Scene, found: tuple[Found | None, ...]) -> list[tuple[Found | None, ...]]:
    """The ways to tell which patch is which thing: more than one where things share a colour."""
    colours = [thing.colour for thing in scene.things]
    orders = itertools.permutations(range(len(found)))
    return [tuple(found[k] for k in order) for order in orders if [colours[k] for k in order] == colours]


def _overlaps(verdict: Verdict, scene: Scene) -> float:
    """The overlap summed over the things that have their named shape."""
    pairs = zip(verdict.found, scene.things, strict=True)
    return sum(item.iou for item, thing in pairs if item is not None and item.shape == thing.shape)


def _size(radius: float) -> str:
    """The nearest size word: radii are told apart by their ratio."""
    return min(RADII, key=lambda size: abs(float(np.log(radius / RADII[size]))))


def _placed_right(scene: Scene, found: list[Found]) -> bool:
    first = found[0]
    if scene.relation is not None:
        dx, dy = found[1].x - first.x, found[1].y - first.y
        along = dy if scene.relation in ("above", "below") else dx
        across = dx if scene.relation in ("above", "below") else dy
        if scene.relation == "next to":
            along = abs(along)
        elif scene.relation in ("below", "right of"):
            along = -along
        return along >= SEPARATION and along > abs(across)
    match scene.place:
        case "on the left":
            return first.x < SIDE
        case "on the right":
            return first.x > 1 - SIDE
        case "at the top":
            return first.y < SIDE
        case "at the bottom":
            return first.y > 1 - SIDE
        case "in the middle":
            return abs(first.x - 0.5) <= MIDDLE and abs(first.y - 0.5) <= MIDDLE
    return True


# --- colours -------------------------------------------------------------------------------------------------------

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    dtype=np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    dtype=np.float32,
)
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _oklab(image: NDArray[np.uint8]) -> FloatArray:
    """sRGB uint8 [..., 3] to OKLab: lightness 0..1, then green to red and blue to yellow, about -0.3..0.3."""
    lab: FloatArray = np.cbrt(_LINEAR[image] @ _TO_CONES.T) @ _TO_LAB.T
    return lab


def _index(colour: str) -> int:
    return list(COLOURS).index(colour)


@functools.cache
def _palette() -> FloatArray:
    """Every colour in every shading, in OKLab [11 * len(SHADINGS), 3]."""
    rgb = np.asarray(list(COLOURS.values()), dtype=np.float32)[:, None] / 255
    light = np.asarray(SHADINGS, dtype=np.float32)[None, :, None]
    shaded = np.where(light > 0, rgb + (1 - rgb) * light, rgb * (1 + light))
    return _oklab(np.rint(shaded.reshape(-1, 3) * 255).astype(np.uint8))


def _palette_distances(lab: FloatArray) -> FloatArray:
    """How far each pixel is from each colour, whatever its shading: OKLab distances [11, H, W]."""
    height, width = lab.shape[:2]
    pixels, palette = lab.reshape(-1, 3), _palette()
    # |p - q|^2 = |p|^2 - 2 p.q + |q|^2, where the first term is the same for every shading q.
    nearest = np.full((len(COLOURS), len(pixels)), np.inf, dtype=np.float32)
    for shade in range(len(SHADINGS)):
        colours = palette[shade :: len(SHADINGS)]
        np.minimum(nearest, (-2 * colours) @ pixels.T + (colours**2).sum(1)[:, None], out=nearest)
    nearest += (pixels**2).sum(1)
    distances: FloatArray = np.sqrt(np.maximum(nearest, 0, out=nearest), out=nearest)
    return distances.reshape(len(COLOURS), height, width)


@functools.lru_cache(maxsize=32)
def _expected_background(name: str, width: int, height: int) -> FloatArray:
    """The background in OKLab [K, H, W, 3]: as it is drawn, and for scenery also moved up and down a little."""
    lab = _oklab(np.rint(background(name, width, height) * 255).astype(np.uint8))
    if name in COLOURS:
        return lab[None]
    shifts = [round(k * ROW_SHIFT * height) for k in range(-ROW_SHIFTS, ROW_SHIFTS + 1)]
    rows = np.arange(height)
    return np.stack([lab[np.clip(rows + shift, 0, height - 1)] for shift in shifts])


def _background_distances(lab: FloatArray, name: str) -> FloatArray:
    """How far each pixel is from the background: OKLab distances [H, W].

    In scenery the colours between two neighbouring rows count too: the blurred edge of a hill is neither hill nor sky.
    """
    height, width = lab.shape[:2]
    expected = _expected_background(name, width, height)
    nearest = ((lab - expected[0]) ** 2).sum(-1)
    for start, end in itertools.pairwise(expected):
        step = end - start
        along = ((lab - start) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-9)
        offset = lab - start - step * np.clip(along, 0, 1)[..., None]
        nearest = np.minimum(nearest, (offset**2).sum(-1))
    distances: FloatArray = np.sqrt(nearest)
    return distances


def _actual_background(lab: FloatArray, palette: FloatArray) -> str:
    """The background that most of the picture shows: the commonest colour, or a scenery that covers more."""
    nearest = np.where(palette.min(0) < FOREIGN, palette.argmin(0), len(COLOURS))
    counts = np.bincount(nearest.ravel(), minlength=len(COLOURS) + 1)[:-1]
    covered = dict(zip(COLOURS, counts, strict=True))
    for name in SCENERY:
        covered[name] = np.count_nonzero(_background_distances(lab, name) < FOREIGN / 2)
    return max(covered, key=lambda name: covered[name])


# --- patches -------------------------------------------------------------------------------------------------------


def _patches(body: BoolArray, claimed: BoolArray, count: int, side: int, edge: int) -> list[BoolArray]:
    """The `count` largest patches [H, W] of `body`, largest first, grown to their true edges within `claimed`."""
    patches = []
    for core in itertools.islice(_components(_eroded(body)), 2 * count):
        patch = core
        for _ in range(edge + 2):  # erosion shortens the tip of a star by more than a pixel
            patch = _dilated(patch) & claimed
        if LEAST_THING * side**2 <= patch.sum() <= MOST_THING * side**2:
            patches.append(patch)
    return patches[:count]


def _components(mask: BoolArray) -> Iterator[BoolArray]:
    """The connected parts of a mask, largest first: runs along rows, joined where runs of neighbouring rows touch."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    flat = padded.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts, stops = edges[::2], edges[1::2]
    parents = list(range(len(starts)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    first = np.searchsorted(stops, starts + width + 2, side="right")  # runs of the next row that touch this one
    last = np.searchsorted(starts, stops + width + 2, side="left")
    for run, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for below in range(low, high):
            parents[root(below)] = root(run)
    roots = np.asarray([root(run) for run in range(len(starts))], dtype=np.int64)
    areas = np.bincount(roots, weights=stops - starts, minlength=1)
    for part in np.argsort(-areas, kind="stable"):
        if areas[part] == 0:
            return
        changes = np.zeros(flat.size + 1, dtype=np.int8)
        changes[starts[roots == part]] = 1
        changes[stops[roots == part]] = -1
        yield np.cumsum(changes[:-1], dtype=np.int8).reshape(padded.shape)[:, 1:-1].astype(bool)


def _dilated(mask: BoolArray, pixels: int = 1) -> BoolArray:
    """The mask grown by a square of 2 * pixels + 1."""
    for _ in range(pixels):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        mask = grown.copy()
        mask[:, 1:] |= grown[:, :-1]
        mask[:, :-1] |= grown[:, 1:]
    return mask


def _eroded(mask: BoolArray) -> BoolArray:
    """The mask without its outermost pixels; the rim of the picture counts as inside."""
    return ~_dilated(~mask)


def _opened(mask: BoolArray) -> BoolArray:
    """The mask without lines of one or two pixels."""
    return _dilated(_eroded(mask)) & mask


# --- shapes --------------------------------------------------------------------------------------------------------

_REACH, _CELLS = 1.25, 125  # templates span -1.25..1.25 radii, in cells of a hundredth


@dataclass(frozen=True, slots=True)
class _Template:
    inside: BoolArray  # [rows, columns] over the span, index = radii * 100 + 125
    area: float  # in squared radii
    u: float  # centroid, in radii
    v: float


@functools.cache
def _template(shape: str) -> _Template:
    axis = np.linspace(-_REACH, _REACH, 2 * _CELLS + 1, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    inside = SIGNED_DISTANCE[shape](u, v) < 0
    cell = _REACH / _CELLS
    return _Template(inside, float(inside.sum()) * cell**2, float(u[inside].mean()), float(v[inside].mean()))


def _fit(mask: BoolArray) -> Found:
    """The best template for a patch [H, W], and where it lies."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = round(0.2 * max(len(rows), len(columns))) + 2  # room for a template that reaches beyond the patch
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    window = mask[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
    y, x = np.nonzero(window)
    area, x_mean, y_mean = len(x), float(x.mean()) + 0.5, float(y.mean()) + 0.5

    starts = []
    for shape in SHAPES:  # a template with the area and the centroid of the patch is nearly right
        template = _template(shape)
        radius = float(np.sqrt(area / template.area))  # pixels
        start = (x_mean - template.u * radius, y_mean - template.v * radius, radius)
        starts.append((_overlap(window, template, *start), shape, start))
    starts.sort(reverse=True)
    best = Found(0.0, 0.0, 0.0, SHAPES[0], -1.0)
    for overlap, shape, start in starts:
        if overlap > best.iou - HOPELESS:
            overlap, (cx, cy, radius) = _climb(window, _template(shape), start, overlap)
            if overlap > best.iou:
                best = Found((left + cx) / width, (top + cy) / height, radius / min(width, height), shape, overlap)
    return best


_MOVES = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))  # of centre and radius


def _climb(
    window: BoolArray, template: _Template, fit: tuple[float, float, float], overlap: float
) -> tuple[float, tuple[float, float, float]]:
    """Improve a fit (x, y, radius, in pixels) with ever smaller steps: the best overlap, and the fit that has it."""
    for step in (0.06 * fit[2], 0.03 * fit[2], 0.015 * fit[2]):
        for _ in range(6):
            before = overlap
            for dx, dy, dr in _MOVES:
                moved = (fit[0] + dx * step, fit[1] + dy * step, fit[2] + dr * step)
                value = _overlap(window, template, *moved)
                if value > overlap:
                    fit, overlap = moved, value
            if overlap == before:
                break
    return overlap, fit


def _overlap(window: BoolArray, template: _Template, x: float, y: float, radius: float) -> float:
    """Intersection over union of a patch and a template placed at (x, y) with this radius, all in pixels."""
    height, width = window.shape
    scale = _CELLS / (_REACH * radius)
    rows = _cells((np.arange(height) + (0.5 - y)) * scale)
    columns = _cells((np.arange(width) + (0.5 - x)) * scale)
    placed = template.inside.take(rows, axis=0).take(columns, axis=1)
    either = np.count_nonzero(placed | window)
    return float(np.count_nonzero(placed & window) / max(1, int(either)))


def _cells(offsets: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Template indices of offsets from the centre, in cells; the rim, outside every shape, stands for all beyond."""
    cells: NDArray[np.intp] = np.minimum(np.maximum(offsets + (_CELLS + 0.5), 0), 2 * _CELLS).astype(np.intp)
    return cells
