"""The precisions: what they are called, and what is asked of them."""

from __future__ import annotations

import pickle

import pytest

from engine.precision import BF16, FP8, FP32, INT8, Precision
from engine.request import Request
from engine.weights.conversions import FORMS


def test_a_precision_is_called_as_caches_and_their_files_call_it() -> None:
    assert [str(each) for each in (FP32, BF16, *FORMS)] == ["fp32", "bf16", "fp8", "int8", "int8+csb", "int8+csb+ssc"]
    assert [each for each in (FP32, BF16, *FORMS) if each.is_8_bits] == [*FORMS]
    assert [each for each in (FP32, BF16, *FORMS) if each.is_int8] == [*FORMS[1:]]
    assert pickle.loads(pickle.dumps(FORMS[-1])) == FORMS[-1]
    assert len({*FORMS, Precision("int8", "csb")}) == len(FORMS)


@pytest.mark.parametrize(
    ("precision", "salience", "form"),
    [
        ("bf16", None, BF16),
        ("int8", None, INT8),
        ("int8", "off", INT8),
        ("int8", "csb+ssc", Precision("int8", "csb+ssc")),
        ("fp8", "csb", FP8),
    ],
)
def test_a_request_says_how_weights_are_stored(precision: str, salience: str | None, form: Precision) -> None:
    assert Request("a cat", precision=precision, salience=salience).form == form


@pytest.mark.parametrize(("kind", "salience"), [("fp4", ""), ("None", ""), ("auto", ""), ("fp8", "csb"), ("int8", "x")])
def test_what_is_no_precision_is_none(kind: str, salience: str) -> None:
    with pytest.raises(ValueError, match="is no precision"):
        Precision(kind, salience)
    with pytest.raises(ValueError, match="None is no precision"):
        assert Request("a cat").form
