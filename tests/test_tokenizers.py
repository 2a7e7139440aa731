"""Tokenizers that are not FLUX.1's are refused. FLUX.1's own are not here: small ones with other fingerprints are."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from engine.families.flux1 import tokenizers
from engine.families.flux1.tokenizers import check_clip, check_t5, vocabulary_size
from engine.request import RequestError

CLIP = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
MERGES = [("a", "b</w>")]
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0), ("a", -4.0)]
SENTINELS = [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
DEMO = Path(__file__).parent.parent / "engine" / "demo" / "weights"


def lines(*texts: str) -> str:
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small vocabularies above are FLUX.1's."""
    for name, value in {
        "CLIP_ENTRIES": len(CLIP),
        "CLIP_VOCABULARY": lines(*CLIP),
        "CLIP_MERGE_RULES": lines("a b</w>"),
        "CLIP_SENTENCES": {"AB  a": [5, 4, 2, 6]},
        "T5_PIECES": len(PIECES),
        "T5_ENTRIES": range(9, 12),
        "T5_VOCABULARY": lines(*(piece for piece, _ in PIECES)),
        "T5_SENTENCEPIECE": hashlib.sha256(b"pieces").hexdigest(),
        "T5_SENTENCES": {"ab  b": [3, 4, 5, 4, 1]},
    }.items():
        monkeypatch.setattr(tokenizers, name, value)


def clip_json() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(vocab=CLIP, merges=MERGES, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", 6), ("<|startoftext|>", 5), False, False)
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    return value


def t5_json() -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram([*PIECES, *SENTINELS], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    value: dict[str, Any] = json.loads(tokenizer.to_str())
    return value


def write(folder: Path, value: object, name: str = "tokenizer.json") -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, "utf-8")
    return folder


def write_clip_files(folder: Path, vocabulary: object = CLIP, merges: str = "#version: 0.2\na b</w>\n") -> Path:
    return write(write(folder, vocabulary, "vocab.json"), merges, "merges.txt")


def refusal(check: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(RequestError) as refused:
        check(folder)
    assert refused.value.field == "model"
    assert repr(str(folder)) in str(refused.value)
    assert "t2i models pull tokenizers" in str(refused.value)
    return str(refused.value)


def test_flux_own_tokenizers_pass_in_every_layout(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    check_clip(write_clip_files(folders[0]))
    check_clip(write(folders[1], clip_json()))
    check_t5(write(folders[2], t5_json()))
    check_t5(write(folders[3], "pieces", "spiece.model"))


def test_old_ways_of_writing_a_tokenizer_pass(tmp_path: Path) -> None:
    value = clip_json()
    value["model"]["merges"] = ["a b</w>"]
    value["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 6,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    value["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    check_clip(write(tmp_path, value))


def test_more_sentinels_are_no_fault(tmp_path: Path) -> None:
    value = t5_json()
    value["model"]["vocab"] += [["<extra_id_2>", 0.0], ["<extra_id_3>", 0.0]]
    check_t5(write(tmp_path, value))
    value["model"]["vocab"].append(["<extra_id_4>", 0.0])
    assert "has 12 entries" in refusal(check_t5, write(tmp_path, value))


def changed(value: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    change(value)
    return value


def swap(vocabulary: dict[str, int]) -> dict[str, int]:
    return {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value["model"]["vocab"].update(c=7), "another model's: it has 8 entries, FLUX.1's has 7"),
        (lambda value: value["model"].update(vocab=swap(CLIP)), "but not the same ones"),
        (lambda value: value["model"].update(merges=[["b", "b</w>"]]), "but not the same ones"),
        (lambda value: value["model"].update(merges=None), "vocabulary that cannot be read"),
        (lambda value: value["model"]["vocab"].update(a=9), "vocabulary that cannot be read"),
        (lambda value: value["model"]["vocab"].update(a=True), "vocabulary that cannot be read"),
        (lambda value: value["model"]["vocab"].update(a="0"), "vocabulary that cannot be read"),
        (lambda value: value["model"].update(type="WordPiece"), "a WordPiece tokenizer, FLUX.1's is BPE"),
        (lambda value: value.update(model=[]), "without a model in it"),
        (lambda value: value.update(normalizer=None), "reads 'AB  a' as [5, "),
        (lambda value: value.update(post_processor=None), "reads 'AB  a' as [4, 2], FLUX.1's as [5, 4, 2, 6]"),
        (lambda value: value.update(pre_tokenizer={"type": "nonsense"}), "cannot be read ("),
    ],
)
def test_another_clip_tokenizer_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    message = refusal(check_clip, write(tmp_path, changed(clip_json(), change)))
    assert said in message
    assert "the CLIP tokenizer in " in message


def precompiled(value: dict[str, Any]) -> None:
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 40).decode()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value["model"]["vocab"].pop(), "another model's: it has 8 entries"),
        (lambda value: value["model"]["vocab"].__setitem__(4, ["c", -2.0]), "but not FLUX.1's"),
        (lambda value: value["model"]["vocab"].__setitem__(4, "b"), "vocabulary that cannot be read"),
        (lambda value: value["model"]["vocab"].__setitem__(4, ["b", "x"]), "cannot be read ("),
        (lambda value: value["model"].update(vocab=CLIP), "vocabulary that cannot be read"),
        (lambda value: value["model"].update(type="BPE"), "a BPE tokenizer, FLUX.1's is Unigram"),
        (lambda value: value["model"]["vocab"].__setitem__(3, ["▁a", -99.0]), "reads 'ab  b' as [5, 6, 4, 5, 4, 1]"),
        (lambda value: value.update(post_processor=None), "reads 'ab  b' as [3, 4, 5, 4], FLUX.1's as [3, 4, 5, 4, 1]"),
        (precompiled, "cannot be read ("),  # of which the library panics
    ],
)
def test_another_t5_tokenizer_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    message = refusal(check_t5, write(tmp_path, changed(t5_json(), change)))
    assert said in message
    assert "the T5 tokenizer in " in message


@pytest.mark.parametrize(
    ("vocabulary", "merges", "said"),
    [
        ({**CLIP, "c": 7}, "a b</w>", "it has 8 entries, FLUX.1's has 7"),
        (swap(CLIP), "a b</w>", "but not the same ones"),
        (CLIP, "", "but not the same ones"),
        (CLIP, "a b</w>\nb a</w>", "but not the same ones"),
        ([*CLIP], "a b</w>", "vocabulary that cannot be read"),
        ("{", "a b</w>", "vocab.json is not valid JSON"),
        ("[" * 100_000, "a b</w>", "vocab.json is nested without end"),
    ],
)
def test_another_clip_vocabulary_is_refused(tmp_path: Path, vocabulary: object, merges: str, said: str) -> None:
    assert said in refusal(check_clip, write_clip_files(tmp_path, vocabulary, merges))


def test_another_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    said = refusal(check_t5, write(tmp_path, "other pieces", "spiece.model"))
    assert "its spiece.model is not the one that FLUX.1 has" in said


@pytest.mark.parametrize("check", [check_clip, check_t5])
def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path, check: Callable[[Path], None]) -> None:
    assert "is not there: neither tokenizer.json nor" in refusal(check, tmp_path)
    assert "is not there: neither tokenizer.json nor" in refusal(check, tmp_path / "nowhere")
    file = tmp_path / "tokenizer.json"
    for data, said in ((b"", "not valid JSON"), (b"\xff", "not UTF-8"), (b"[]", "without a model in it")):
        file.write_bytes(data)
        assert said in refusal(check, tmp_path)
    with file.open("wb") as stream:
        stream.truncate(33 * 2**20)
    assert "larger than 8 MiB" in refusal(check, tmp_path)


def test_the_size_of_a_vocabulary_is_its_highest_id_and_one(tmp_path: Path) -> None:
    value = t5_json()
    value["added_tokens"] = [{"id": 20, "content": "<more>"}]
    assert vocabulary_size(write(tmp_path, value)) == 21
    assert vocabulary_size(write(tmp_path, clip_json())) == 7
    (tmp_path / "tokenizer.json").unlink()
    assert vocabulary_size(write_clip_files(tmp_path, {**CLIP, "far": 99})) == 100
    (tmp_path / "vocab.json").unlink()
    assert vocabulary_size(write(tmp_path, "pieces", "spiece.model")) == 9
    for part in ("tokenizer", "tokenizer_2"):
        words = json.loads((DEMO / part / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        assert vocabulary_size(DEMO / part) == len(words)


@pytest.mark.parametrize(
    "value",
    [{}, {"model": {"vocab": 5}}, {"model": {"vocab": {"a": "0"}}}, {"model": {"vocab": {}}, "added_tokens": 5}],
)
def test_a_vocabulary_without_a_size_is_refused(tmp_path: Path, value: object) -> None:
    assert "vocabulary that cannot be read" in refusal(vocabulary_size, write(tmp_path, value))


def test_what_is_not_flux_is_refused_by_its_real_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert "it has 7 entries, FLUX.1's has 49408" in refusal(check_clip, write_clip_files(tmp_path))
    assert "it has 9 entries, FLUX.1's has 32100" in refusal(check_t5, write(tmp_path, t5_json()))
    many = {f"token {number}": number for number in range(49408)}
    (tmp_path / "tokenizer.json").unlink()
    assert "but not the same ones" in refusal(check_clip, write_clip_files(tmp_path, many))
