"""The demo's scenes, their wordings, and the checker that judges pictures of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.demo import grammar
from engine.demo.checker import check
from engine.demo.grammar import describe, parse, unknown_words
from engine.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RADII,
    RELATIONS,
    SCENERY,
    SHAPES,
    SIGNED_DISTANCE,
    FloatArray,
    Placed,
    Scene,
    Thing,
    clashes,
    held_out,
    place,
    random_scene,
    render,
    training_scene,
)

Image = NDArray[np.uint8]
SIZES = ((128, 128), (64, 64), (256, 256), (192, 128), (128, 192))  # width, height
ATTRIBUTES = ("background", "colours", "shapes", "sizes", "places", "clean")


def to_image(picture: NDArray[np.floating[Any]]) -> Image:
    image: Image = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return image


def random_scenes(seed: int, count: int) -> Iterator[tuple[Scene, tuple[Placed, ...], np.random.Generator]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = random_scene(rng)
        yield scene, place(scene, rng), rng


# --- the grammar ---------------------------------------------------------------------------------------------------


def test_every_wording_of_a_scene_reads_back_as_that_scene():
    rng = np.random.default_rng(1)
    for _ in range(3000):
        scene = random_scene(rng)
        prompt = describe(scene, rng)
        assert parse(prompt) == scene, prompt
        assert parse(prompt.upper()) == scene, prompt
        assert parse(describe(scene)) == scene


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_phrase_for_a_relation_is_read(relation: str):
    for phrase in grammar.RELATION_PHRASES[relation]:
        scene = parse(f"a large red circle {phrase} a tiny orange box on a white background")
        assert scene == Scene(
            (Thing("red", "circle", "large"), Thing("orange", "square", "small")), relation, None, "white"
        )


@pytest.mark.parametrize("where", PLACES)
def test_every_phrase_for_a_place_is_read_with_every_background(where: str):
    phrases = [(name, phrase) for name, phrases in grammar.SCENERY_PHRASES.items() for phrase in phrases]
    phrases += [("gray", phrase.format("grey")) for phrase in grammar.COLOUR_BACKGROUND_PHRASES]
    for phrase, (background, backdrop) in itertools.product(grammar.PLACE_PHRASES[where], phrases):
        assert parse(f"a red star {phrase} {backdrop}") == Scene((Thing("red", "star"),), None, where, background)


def test_other_prompts_are_no_scene():
    for prompt in ("", "a dog", "a red circle above", "red", "a circle", "a red circle above a blue square at the top"):
        assert parse(prompt) is None, prompt


def test_words_the_demo_was_never_shown_are_named_once_and_in_order():
    assert unknown_words("A Red dragon, near a blue DRAGON and a castle!") == ("dragon", "castle")
    assert unknown_words("") == ()
    rng = np.random.default_rng(2)
    for _ in range(1000):
        assert unknown_words(describe(random_scene(rng), rng)) == ()


# --- the scenes ----------------------------------------------------------------------------------------------------


def test_scenes_reach_the_whole_grammar_and_name_no_thing_that_would_drown():
    scenes = [scene for scene, _, _ in random_scenes(3, 3000)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.size for thing in things} == {None, "small", "large"}
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    assert {scene.place for scene in scenes} == {None, *PLACES}
    assert {scene.background for scene in scenes} == {None, *BACKGROUNDS}
    assert not any(clashes(thing.colour, scene.drawn_background) for scene in scenes for thing in scene.things)


def test_training_never_shows_what_is_held_out():
    rng = np.random.default_rng(4)
    assert not any(held_out(training_scene(rng)) for _ in range(1000))
    assert 0.1 < np.mean([held_out(random_scene(rng)) for _ in range(1000)]) < 0.4


def outline(shape: str) -> FloatArray:
    """Points [N, 2] on and inside a shape's outline, in radii: enough of them to know how far it reaches."""
    axis = np.linspace(-1.25, 1.25, 501, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    inside = SIGNED_DISTANCE[shape](u, v) <= 0
    points: FloatArray = np.stack([u[inside], v[inside]], axis=1)
    return points


def test_no_thing_leaves_the_frame():
    reach = {shape: np.abs(outline(shape)).max(0) for shape in SHAPES}
    for scene, placed, _ in random_scenes(5, 10_000):
        for item in placed:
            u, v = reach[item.thing.shape] * item.radius  # parts of the shorter side, so at most those of the longer
            assert u <= item.x <= 1 - u, (scene, item)
            assert v <= item.y <= 1 - v, (scene, item)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_things_never_share_a_pixel(width: int, height: int):
    side = min(width, height)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for scene, placed, _ in random_scenes(6, 1500):
        if len(placed) == 1:
            continue
        first, second = placed
        apart = math.hypot((first.x - second.x) * width, (first.y - second.y) * height)
        if apart > 1.09 * (first.radius + second.radius) * side + 2:  # the widest shape reaches 1.09 radii
            continue
        distances = [
            SIGNED_DISTANCE[item.thing.shape](
                ((x - item.x * width) / (item.radius * side)).astype(np.float32),
                ((y - item.y * height) / (item.radius * side)).astype(np.float32),
            )
            * (item.radius * side)
            for item in placed
        ]
        assert np.maximum(*distances).min() >= 0.5, scene  # `render` covers pixels up to half a pixel outside


def test_a_picture_is_the_same_every_time():
    scene = parse("a large red circle above a small blue square in a meadow")
    assert scene is not None
    first, second = (render(scene, place(scene, rng), rng=rng) for rng in (np.random.default_rng(7) for _ in range(2)))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1


# --- the checker on pictures that are right ------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), list(zip(SIZES, (200, 60, 10, 20, 20), strict=True)))
def test_the_checker_passes_true_renders(size: tuple[int, int], count: int):
    for scene, placed, rng in random_scenes(8, count):
        verdict = check(to_image(render(scene, placed, *size, rng)), scene)
        assert verdict.strict, (scene, verdict)


@pytest.mark.parametrize("scenery", SCENERY)
def test_things_are_seen_everywhere_on_scenery(scenery: str):
    rng = np.random.default_rng(9)
    for colour, where in itertools.product(COLOURS, PLACES):
        if not clashes(colour, scenery):
            scene = Scene((Thing(colour, SHAPES[rng.integers(len(SHAPES))]),), place=where, background=scenery)
            verdict = check(to_image(render(scene, place(scene, rng), rng=rng)), scene)
            assert verdict.strict, (scene, verdict)


def test_the_checker_measures_centres_and_radii():
    for scene, placed, rng in random_scenes(10, 30):
        verdict = check(to_image(render(scene, placed, 192, 128, rng)), scene)
        for item, found in zip(placed, verdict.found, strict=True):
            assert found is not None
            assert abs(found.x - item.x) * 192 < 1.0
            assert abs(found.y - item.y) * 128 < 1.0
            assert abs(found.radius / item.radius - 1) < 0.05


def halved(picture: FloatArray) -> FloatArray:
    """Down to half the size by averages, and back up by linear interpolation."""
    height, width = picture.shape[:2]
    small: FloatArray = picture.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    for axis in (0, 1):
        before = np.roll(small, 1, axis)
        after = np.roll(small, -1, axis)
        pairs = np.stack([0.75 * small + 0.25 * before, 0.75 * small + 0.25 * after], axis=axis + 1)
        small = pairs.reshape(*[2 * n if k == axis else n for k, n in enumerate(small.shape)])
    return small


def smoothed(picture: FloatArray, sigma: float = 1.2) -> FloatArray:
    """Gaussian blur, sigma in pixels."""
    at = np.arange(-4, 5)
    weights = np.exp(-((at / sigma) ** 2) / 2)
    for axis in (0, 1):
        picture = sum(
            (w * np.roll(picture, int(k), axis) for k, w in zip(at, weights / weights.sum(), strict=True)),
            start=np.zeros_like(picture),
        )
    return picture


@pytest.mark.parametrize("softened", [halved, smoothed])
def test_the_checker_forgives_blur_and_noise_like_an_autoencoders(softened: Callable[[FloatArray], FloatArray]):
    verdicts = []
    for scene, placed, rng in random_scenes(11, 80):
        picture = softened(render(scene, placed, 128, 128, rng))
        noise = rng.normal(0, 3 / 255, picture.shape)
        verdicts.append(check(to_image(picture + noise), scene).strict)
    assert np.mean(verdicts) >= 0.99


# --- the checker on pictures that are wrong ------------------------------------------------------------------------


def other(rng: np.random.Generator, options: tuple[str, ...], *avoided: str | None) -> str:
    return str(rng.choice([option for option in options if option not in avoided]))


def with_thing(scene: Scene, index: int, thing: Thing) -> Scene:
    things = list(scene.things)
    things[index] = thing
    return replace(scene, things=tuple(things))


def spoiled(kind: str, scene: Scene, rng: np.random.Generator) -> tuple[Scene, tuple[Placed, ...]] | None:
    """What to draw instead of `scene`, with one thing wrong; None where this cannot be wrong in it."""
    drawn = replace(scene, background=scene.drawn_background)
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    match kind:
        case "colours":
            hidden = [colour for colour in COLOURS if clashes(colour, scene.drawn_background)]
            drawn = with_thing(drawn, index, replace(thing, colour=other(rng, tuple(COLOURS), thing.colour, *hidden)))
        case "shapes":
            drawn = with_thing(drawn, index, replace(thing, shape=other(rng, SHAPES, thing.shape)))
        case "sizes" if thing.size is not None:
            drawn = with_thing(drawn, index, replace(thing, size=other(rng, tuple(RADII), thing.size)))
        case "places" if scene.relation == "next to":
            drawn = replace(drawn, relation=other(rng, ("above", "below")))
        case "places" if scene.relation is not None:
            drawn = replace(drawn, relation=other(rng, RELATIONS[:4], scene.relation))
        case "places" if scene.place is not None:
            drawn = replace(drawn, place=other(rng, PLACES, scene.place))
        case "background":
            # A prompt that names none is content with any colour, but not with scenery.
            options = BACKGROUNDS if scene.background is not None else tuple(SCENERY)
            hiding = [name for name in options if any(clashes(item.colour, name) for item in scene.things)]
            if set(options) <= {scene.drawn_background, *hiding}:
                return None
            drawn = replace(drawn, background=other(rng, options, scene.drawn_background, *hiding))
        case "clean":
            placed = place(drawn, rng)
            added = stray(scene, placed, rng)
            return None if added is None else (drawn, (*placed, added))
        case "missing":
            placed = place(drawn, rng)
            return drawn, placed[:index] + placed[index + 1 :]
        case "empty":
            return drawn, ()
        case _:
            return None
    return drawn, place(drawn, rng)


def stray(scene: Scene, placed: tuple[Placed, ...], rng: np.random.Generator) -> Placed | None:
    """One thing too many, small, in any colour that can be seen, clear of the others."""
    hidden = [colour for colour in COLOURS if clashes(colour, scene.drawn_background)]
    thing = Thing(other(rng, tuple(COLOURS), *hidden), str(rng.choice(SHAPES)), "small")
    for _ in range(100):
        x, y = rng.uniform(0.13, 0.87, 2)
        if all(math.hypot(x - item.x, y - item.y) > 1.1 * (item.radius + RADII["small"]) for item in placed):
            return Placed(thing, float(x), float(y), RADII["small"])
    return None


KINDS = ("colours", "shapes", "sizes", "places", "background", "clean", "missing", "empty")


@pytest.mark.parametrize("kind", KINDS)
def test_the_checker_fails_mismatched_renders(kind: str):
    rng = np.random.default_rng([12, KINDS.index(kind)])
    judged = 0
    while judged < 25:
        scene = random_scene(rng)
        mismatch = spoiled(kind, scene, rng)
        if mismatch is not None:
            verdict = check(to_image(render(*mismatch, 128, 128, rng)), scene)
            assert not verdict.strict, (scene, mismatch)
            if kind in ATTRIBUTES:
                assert not getattr(verdict, kind), (scene, mismatch)
            if kind in ("shapes", "sizes", "places", "background"):  # one fault counts once
                wrong = [name for name in ATTRIBUTES if not getattr(verdict, name)]
                assert wrong == [kind], (scene, verdict)
            judged += 1


def test_a_prompt_without_background_is_content_with_any_colour_that_hides_nothing():
    scene = Scene((Thing("red", "heart"),))
    placed = place(scene, np.random.default_rng(13))
    for background in COLOURS:
        if background != "red":
            assert check(to_image(render(replace(scene, background=background), placed)), scene).strict
    assert not check(to_image(render(replace(scene, background="meadow"), placed)), scene).background


def test_two_things_of_one_colour_are_told_apart():
    circle, star = Thing("pink", "circle"), Thing("pink", "star")
    rng = np.random.default_rng(14)
    for relation, opposite in (("above", "below"), ("left of", "right of")):
        scene = Scene((circle, star), relation=relation, background="black")
        image = to_image(render(scene, place(scene, rng)))
        assert check(image, scene).strict
        verdict = check(image, replace(scene, relation=opposite))
        assert verdict.shapes
        assert not verdict.places


@pytest.mark.parametrize("shape", SHAPES)
def test_broken_shapes_fail(shape: str):
    scene = Scene((Thing("red", shape),), background="white")
    (item,) = place(scene, np.random.default_rng(15))
    x, y = np.meshgrid(np.arange(128) + 0.5, np.arange(128) + 0.5)
    u = ((x - item.x * 128) / (item.radius * 128)).astype(np.float32)
    v = ((y - item.y * 128) / (item.radius * 128)).astype(np.float32)
    radius = item.radius * 128
    # Half way to a disc, bitten into, squeezed to two thirds of the height.
    round_one = 0.5 * SIGNED_DISTANCE[shape](u, v) + 0.5 * (np.hypot(u, v) - 0.85)
    bitten = np.maximum(SIGNED_DISTANCE[shape](u, v), 0.6 - np.hypot(u - 0.7, v - 0.3))
    squeezed = SIGNED_DISTANCE[shape](u, v * 1.5)
    for name, distance in (("round", round_one), ("bitten", bitten), ("squeezed", squeezed)):
        if (shape, name) == ("circle", "round"):
            continue
        coverage = np.clip(0.5 - distance * radius, 0, 1)[..., None]
        colour = np.asarray(COLOURS["red"], dtype=np.float32) / 255
        verdict = check(to_image(coverage * colour + (1 - coverage) * np.float32(0.97)), scene)
        assert verdict.colours
        assert not verdict.shapes, (name, verdict)


def test_noise_and_flat_colour_are_no_scene():
    scene = parse("a red circle next to a blue star on a white background")
    assert scene is not None
    rng = np.random.default_rng(16)
    for image in (rng.integers(0, 256, (128, 128, 3), dtype=np.uint8), np.full((64, 96, 3), 200, dtype=np.uint8)):
        verdict = check(image, scene)
        assert not verdict.colours
        assert not verdict.strict
