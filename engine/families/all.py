"""The families that there are."""

from __future__ import annotations

from collections.abc import Sequence

from engine.families.facts import Part, Published, Tokenizer
from engine.families.family import Family
from engine.families.flux1 import FLUX1
from engine.families.sources import Source

FAMILIES: list[Family] = [FLUX1]


def parts(families: Sequence[Family] = FAMILIES) -> dict[str, Part]:
    """Every part of the families by name; of a name that several have, the first."""
    return {part.name: part for family in reversed(families) for part in reversed(family.parts)}


def tokenizers() -> list[Tokenizer]:
    """Every tokenizer of every family; those of several families may have one name."""
    return [tokenizer for family in FAMILIES for tokenizer in family.tokenizers]


def family_of_pipeline(name: str) -> Family | None:
    """The family that a class in a folder's model_index.json belongs to."""
    return next((family for family in FAMILIES if name in family.pipelines), None)


def published() -> dict[str, tuple[Family, Published]]:
    """Every published model by name."""
    return {each.name: (family, each) for family in FAMILIES for each in family.published}


def family_of_source(name: str) -> Family:
    """The family of what is to be had by this name."""
    return next(family for family in FAMILIES if any(source.name == name for source in family.sources))


def sources() -> dict[str, Source]:
    """Everything that is to be had, by name."""
    return {source.name: source for family in FAMILIES for source in family.sources}
