"""The demo model's language: scenes as prompts, prompts as scenes, and the words it knows.

`describe` writes a scene in one of many wordings, `parse` reads a wording back. A prompt may hold any other
word; the demo was never shown it, so `unknown_words` names it for a hint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from engine.demo.scenes import COLOURS, SCENERY, Scene, Thing

SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
COLOUR_WORDS = {colour: (colour, "grey") if colour == "gray" else (colour,) for colour in COLOURS}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
}
RELATION_PHRASES = {
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "next to": ("next to", "and", "beside", "near"),
}
PLACE_PHRASES = {
    "at the top": ("at the top", "near the top"),
    "at the bottom": ("at the bottom", "near the bottom"),
    "on the left": ("on the left", "at the left"),
    "on the right": ("on the right", "at the right"),
    "in the middle": ("in the middle", "in the center", "in the centre"),
}
SCENERY_PHRASES = {
    "night sky": ("in the night sky", "in a night sky", "at night"),
    "sunset": ("at sunset", "in front of a sunset", "in the sunset"),
    "meadow": ("in a meadow", "on a meadow", "in the meadow"),
    "ocean": ("by the ocean", "in front of the ocean", "at the sea", "by the sea"),
}
COLOUR_BACKGROUND_PHRASES = (
    "on a {} background",
    "on a {} backdrop",
    "against a {} background",
    "with a {} background",
)
ARTICLES = ("a", "an", "the", "one")
OPENINGS = ("there is", "a picture of", "a drawing of", "an image of", "show me", "draw", "paint", "please draw")


def _one(rng: np.random.Generator, options: tuple[str, ...], plain: float = 0.6) -> str:
    """The first wording most of the time, any of them otherwise."""
    return options[0] if rng.random() < plain else options[rng.integers(len(options))]


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The scene in words; without `rng`, in the plainest ones."""

    def choose(options: tuple[str, ...]) -> str:
        return options[0] if rng is None else _one(rng, options)

    def name(thing: Thing) -> str:
        words = [choose(SIZE_WORDS[thing.size])] if thing.size else []
        words += [choose(COLOUR_WORDS[thing.colour]), choose(SHAPE_WORDS[thing.shape])]
        article = "an" if words[0][0] in "aeiou" else "a"
        if rng is not None and rng.random() < 0.15:
            article = ("the", "one", "")[rng.integers(3)]
        return f"{article} {' '.join(words)}".strip()

    parts = [name(scene.things[0])]
    if scene.relation is not None:
        parts += [choose(RELATION_PHRASES[scene.relation]), name(scene.things[1])]
    if scene.place is not None:
        parts.append(choose(PLACE_PHRASES[scene.place]))
    if scene.background is not None:
        if scene.background in SCENERY:
            phrase = choose(SCENERY_PHRASES[scene.background])
        else:
            phrase = choose(COLOUR_BACKGROUND_PHRASES).format(choose(COLOUR_WORDS[scene.background]))
            phrase = re.sub(r"\ba (?=[aeiou])", "an ", phrase)
        if rng is not None and rng.random() < 0.12:
            phrase = ", " + phrase
        parts.append(phrase)
    prompt = " ".join(parts).replace(" , ", ", ")
    if rng is not None and rng.random() < 0.1:
        prompt = f"{OPENINGS[rng.integers(len(OPENINGS))]} {prompt}"
    if rng is not None and rng.random() < 0.1:
        prompt += "."
    return prompt


def _readings(phrases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {wording: meaning for meaning, wordings in phrases.items() for wording in wordings}


def _alternatives(phrases: dict[str, str]) -> str:
    return "|".join(sorted(map(re.escape, phrases), key=len, reverse=True))


_SIZES, _COLOURS, _SHAPES = _readings(SIZE_WORDS), _readings(COLOUR_WORDS), _readings(SHAPE_WORDS)
_RELATIONS, _PLACES = _readings(RELATION_PHRASES), _readings(PLACE_PHRASES)
_SCENERIES = _readings(SCENERY_PHRASES)
_ARTICLE = rf"(?:(?:{'|'.join(ARTICLES)}) )?"
_THING = rf"{_ARTICLE}(?:({_alternatives(_SIZES)}) )?({_alternatives(_COLOURS)}) ({_alternatives(_SHAPES)})"
_PROMPT = re.compile(
    rf"(?:(?:{'|'.join(OPENINGS)}) )?{_THING}"
    rf"(?: ({_alternatives(_RELATIONS)}) {_THING}| ({_alternatives(_PLACES)}))?"
    rf"(?: (?:({_alternatives(_SCENERIES)})"
    rf"|(?:on|against|with) {_ARTICLE}({_alternatives(_COLOURS)}) (?:background|backdrop)))?"
)


def parse(prompt: str) -> Scene | None:
    """The scene that a prompt of the grammar describes; None for any other prompt."""
    match = _PROMPT.fullmatch(" ".join(re.findall(r"[a-z]+", prompt.lower())))
    if match is None:
        return None
    size, colour, shape, relation, size2, colour2, shape2, place, scenery, background = match.groups()
    things = [Thing(_COLOURS[colour], _SHAPES[shape], _SIZES.get(size))]
    if relation is not None:
        things.append(Thing(_COLOURS[colour2], _SHAPES[shape2], _SIZES.get(size2)))
    return Scene(
        tuple(things),
        relation=_RELATIONS.get(relation),
        place=_PLACES.get(place),
        background=_SCENERIES.get(scenery) or _COLOURS.get(background),
    )


_PHRASES = (
    *(_SIZES | _COLOURS | _SHAPES | _RELATIONS | _PLACES | _SCENERIES),
    *COLOUR_BACKGROUND_PHRASES,
    *OPENINGS,
    *ARTICLES,
    ", .",
)
WORDS = tuple(sorted({word for phrase in _PHRASES for word in phrase.split() if word != "{}"}))  # all that it is shown


def unknown_words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt that the demo model was never shown, in order, each once."""
    return tuple(dict.fromkeys(word for word in re.findall(r"\w+", prompt.lower()) if word not in WORDS))
