"""Sizes as people write them, and what is painted for them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from engine.request import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Request, RequestError, Resolved
from engine.sizes import SHAPES, check_multiples, fitted, read_size, shaped


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512x384", (512, 384)),
        (" 1080X1920 ", (1080, 1920)),
        ("640 \u00d7 480", (640, 480)),
        ("768", (768, 768)),
        ("Portrait", SHAPES["portrait"]),
        ("16:9", Fraction(16, 9)),
        ("1024:1024", Fraction(1)),
    ],
)
def test_a_size_is_pixels_a_square_a_shape_or_a_ratio(text: str, size: object) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "16:0", "1x", "x1", "1:2:3", "-64", "9" * 10, "\u0663\u0663", "portrat"])
def test_anything_else_is_one_sentence(text: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_size(text)
    assert refused.value.field == "size"
    assert ("did you mean portrait?" in str(refused.value)) is (text == "portrat")


@pytest.mark.parametrize(
    ("ratio", "own", "sides"),
    [
        (Fraction(16, 9), 1024, (1360, 768)),
        (Fraction(9, 16), 1024, (768, 1360)),
        (SHAPES["landscape"], 1024, (1248, 832)),
        (SHAPES["square"], 1024, (1024, 1024)),
        (SHAPES["portrait"], 128, (112, 160)),
    ],
)
def test_a_shape_has_the_pixels_of_the_models_own_size(ratio: Fraction, own: int, sides: tuple[int, int]) -> None:
    assert shaped(ratio, own, own, 2 * own) == sides
    Request("x", width=sides[0], height=sides[1])
    assert sides[0] * sides[1] == pytest.approx(own * own, rel=0.11)


def test_a_shape_past_the_models_bounds_is_refused() -> None:
    with pytest.raises(RequestError, match=r"size 1:100 would be 16x1280 with this model.* from 64 to 256"):
        shaped(Fraction(1, 100), 128, 128, 256)


def test_what_is_no_multiple_names_both_neighbours_and_is_painted_larger() -> None:
    assert fitted(1080, 1920) == (1088, 1920, "1080x1920")
    assert fitted(512, 384) == (512, 384, None)
    with pytest.raises(RequestError, match=r"1000x512 .* are 992x512 and 1008x512: .*--fit, which paints 1008x512 and"):
        check_multiples(1000, 512)
    check_multiples(512, 384)
    check_multiples(MIN_SIDE - 1, MAX_SIDE + 1)  # which the request itself refuses


@pytest.mark.parametrize("width", range(MIN_SIDE, MIN_SIDE + 2 * SIDE_MULTIPLE))
def test_the_middle_is_kept(width: int) -> None:
    painted, height, crop = fitted(width, 90)
    request = Resolved("x", steps=1, seed=1, width=painted, height=height, precision="bf16", crop=crop)
    left, top, right, bottom = request.picture_box
    assert (right - left, bottom - top) == (width, 90)
    assert abs(left - (painted - right)) <= 1
    assert (top, bottom) == (3, 93)


@pytest.mark.parametrize("crop", ["", "112x96", "96x80", "97x97", "97x 81", "x", 97, "97x81x1", "\u0669\u0667x81"])
def test_a_crop_is_a_little_less_than_the_size(crop: object) -> None:
    with pytest.raises(RequestError, match="crop must be width x height, each less than 16 pixels below"):
        Request("x", width=96, height=96, crop=crop)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="crop must be"):
        Request("x", crop="97x81")
