"""Are these tokenizers FLUX.1's? Another vocabulary would paint something else than the prompt, without any error.

The fingerprints are those of the files that FLUX.1 comes with: CLIP's vocabulary and merges are the ones of OpenAI's
`bpe_simple_vocab_16e6.txt.gz`, and T5's pieces those of the `spiece.model` that T5, T5 v1.1 and Flan-T5 share. What is
read here is untrusted; transformers is imported where a tokenizer is loaded, torch never.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.folders import shown_path
from engine.request import RequestError
from engine.untrusted import MalformedError, parse_json, read_file, read_object

CLIP_ENTRIES, CLIP_MERGES = 49408, 48894
# sha256 over one token a line, in the order of the ids, and over one rule a line
CLIP_VOCABULARY = "e30e57b6f1e47616982ef898d8922be24e535b4fa3d0110477b3a6f02ebbae7d"
CLIP_MERGE_RULES = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
T5_PIECES = 32000  # the sentinels <extra_id_0> to <extra_id_99> follow, which FLUX.1 never sees
T5_ENTRIES = range(32100, 32128 + 1)  # 32100 in FLUX.1's; the embedding has 32128 rows
T5_VOCABULARY = "6b359e3ae4db87602c27d08117d3cb79d09bc85c8a44deb6d48b24c3c7a4f937"  # over one piece a line
T5_SENTENCEPIECE = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"  # of spiece.model, 791656 bytes
MAX_BYTES = 8 * 2**20  # T5's tokenizer.json has 2.4 MB
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
SENTINELS = 100  # <extra_id_0> and so on, after the pieces of spiece.model
KINDS = {"tokenizer": "CLIP", "tokenizer_2": "T5"}
PADDING = {"tokenizer": "<|endoftext|>", "tokenizer_2": "<pad>"}  # where a folder names none
FILES = {
    "tokenizer": "neither tokenizer.json nor vocab.json with merges.txt",
    "tokenizer_2": "neither tokenizer.json nor spiece.model",
}
# The patterns by which CLIP's and T5's tokenizers split text. Another one could take for ever over a prompt.
_CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PATTERNS = (r"\s+", " {2,}", _CLIP_PATTERN, r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP_PATTERN)

# Normalizing, splitting and the tokens around a text can differ over the same vocabulary; these sentences tell.
CLIP_SENTENCES = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "Hello, I'm at  35mm f/1.8": [49406, 3306, 267, 328, 880, 536, 274, 276, 2848, 325, 270, 272, 269, 279, 49407],
}
T5_SENTENCES = {
    "translate English to German: The house is wonderful.": [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1],
    "studies have shown that  owning a dog": [2116, 43, 2008, 24, 293, 53, 3, 9, 1782, 1],
    "Turing decides on SQLite": [7538, 53, 2204, 7, 30, 12558, 155, 15, 1],  # by the pieces' scores
}


def check_clip(folder: Path) -> None:
    """Raises `RequestError` if this folder's tokenizer is not CLIP-L's (tokenizer.json, or vocab.json, merges.txt)."""
    kind = "CLIP"
    written = None
    if (folder / "tokenizer.json").is_file():
        written = _tokenizer_json(kind, folder)
        model = _model(kind, folder, written, "BPE")
        vocabulary, rules = model.get("vocab"), model.get("merges")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary, rules = _clip_files(kind, folder)
    else:
        raise _wrong(kind, folder, f"is not there: {FILES['tokenizer']}")

    tokens = _by_id(vocabulary)
    if tokens is None or not isinstance(rules, list):
        raise _wrong(kind, folder, "has a vocabulary that cannot be read")
    if len(tokens) != CLIP_ENTRIES:
        raise _wrong(kind, folder, f"is another model's: it has {len(tokens)} entries, FLUX.1's has {CLIP_ENTRIES}")
    merges = [" ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for rule in rules]
    if _fingerprint(tokens) != CLIP_VOCABULARY or _fingerprint(merges) != CLIP_MERGE_RULES:
        raise _wrong(kind, folder, f"is another model's: it has FLUX.1's {CLIP_ENTRIES} entries, but not the same ones")
    if written:
        _check_sentences(kind, folder, written, CLIP_SENTENCES)


def check_t5(folder: Path) -> None:
    """Raises `RequestError` if this folder's tokenizer is not T5's (tokenizer.json, or spiece.model)."""
    kind = "T5"
    if (folder / "tokenizer.json").is_file():
        written = _tokenizer_json(kind, folder)
        entries = _model(kind, folder, written, "Unigram").get("vocab")
        if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
            raise _wrong(kind, folder, "has a vocabulary that cannot be read")
        if len(entries) not in T5_ENTRIES:
            raise _wrong(kind, folder, f"is another model's: it has {len(entries)} entries, FLUX.1's has 32100")
        if _fingerprint(str(piece) for piece, _ in entries[:T5_PIECES]) != T5_VOCABULARY:
            raise _wrong(kind, folder, f"is another model's: it has {len(entries)} entries, but not FLUX.1's")
        _check_sentences(kind, folder, written, T5_SENTENCES)
    elif (folder / "spiece.model").is_file():
        if hashlib.sha256(_read_bytes(kind, folder, "spiece.model")).hexdigest() != T5_SENTENCEPIECE:
            raise _wrong(kind, folder, "is another model's: its spiece.model is not the one that FLUX.1 has")
    else:
        raise _wrong(kind, folder, f"is not there: {FILES['tokenizer_2']}")


def vocabulary_size(folder: Path) -> int:
    """One more than the highest id that a folder's tokenizer can give. Raises `RequestError`."""
    kind = "model's"
    ids: list[Any] = [-1]
    if (folder / "tokenizer.json").is_file():
        value = _json(kind, folder, "tokenizer.json", _read(kind, folder, "tokenizer.json"))
        try:
            vocabulary = value["model"]["vocab"]
            ids += vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
            ids += [token["id"] for token in value.get("added_tokens") or ()]
        except (KeyError, TypeError, AttributeError):
            raise _wrong(kind, folder, "has a vocabulary that cannot be read") from None
    elif (folder / "vocab.json").is_file():
        vocabulary = _json(kind, folder, "vocab.json", _read(kind, folder, "vocab.json"))
        ids += vocabulary.values() if isinstance(vocabulary, dict) else [None]
    else:
        check_t5(folder)
        return T5_ENTRIES.start
    if not all(type(number) is int for number in ids):
        raise _wrong(kind, folder, "has a vocabulary that cannot be read")
    return int(max(ids)) + 1


def load(part: str, folder: Path) -> Any:
    """The tokenizer in a folder as transformers has it, from its vocabulary files alone: nothing else that the folder
    says of classes, of other files or of code is read.

    `part` is "tokenizer" (CLIP's) or "tokenizer_2" (T5's). From tokenizer.json; else CLIP's from vocab.json and
    merges.txt, T5's from spiece.model. Raises `RequestError` where it cannot be read.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # quiet: no fork warnings
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast, T5Tokenizer

    kind = KINDS[part]
    if (folder / "tokenizer.json").is_file():
        tokenizer = _parsed(kind, folder, _tokenizer_json(kind, folder))
        special = _special_tokens(kind, folder, tokenizer.token_to_id)
        special.setdefault("pad_token", PADDING[part])
        with _library(kind, folder):
            return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    if part == "tokenizer" and (folder / "merges.txt").is_file():
        vocabulary, rules = _clip_files(kind, folder)
        special = _special_tokens(kind, folder, vocabulary.get)
        with _library(kind, folder):
            return CLIPTokenizer(vocab=vocabulary, merges=[tuple(rule.split(" ")) for rule in rules], **special)
    if part == "tokenizer_2" and (folder / "spiece.model").is_file():
        check_t5(folder)  # only T5's own file is read here
        pieces, normalization = sentencepiece_model(_read_bytes(kind, folder, "spiece.model"))
        pieces += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(SENTINELS))]
        with _library(kind, folder):
            return T5Tokenizer(vocab=pieces, _spm_precompiled_charsmap=normalization or None)
    raise _wrong(kind, folder, "is not there: " + FILES[part])


def sentencepiece_model(data: bytes) -> tuple[list[tuple[str, float]], bytes]:
    """The pieces of a SentencePiece model with their scores, and the table by which it normalizes text.

    ModelProto in sentencepiece_model.proto: pieces = 1 (piece = 1, score = 2), normalizer_spec = 3
    (precompiled_charsmap = 2). Raises `ValueError` for what is none.
    """
    pieces: list[tuple[str, float]] = []
    normalization = b""
    try:
        for number, value in _fields(data):
            if number == 1:
                fields = dict(_fields(value))
                (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
                pieces.append((fields[1].decode("utf-8"), score))
            elif number == 3:
                normalization = dict(_fields(value)).get(2, b"")
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error):
        raise ValueError("it is no SentencePiece model") from None
    return pieces, normalization


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """A protobuf message's fields by number: whole numbers, and all else as bytes. Raises `IndexError`, `KeyError`."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        count = varint() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
        if at + count > len(data):
            raise IndexError
        yield tag >> 3, data[at : at + count]
        at += count


def _special_tokens(kind: str, folder: Path, number_of: Callable[[str], int | None]) -> dict[str, Any]:
    """The tokens with a meaning that a folder names, as transformers takes them: texts of its vocabulary alone."""
    from tokenizers import AddedToken

    config, older = (
        read_object(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    described = config.get("added_tokens_decoder")
    entries = [each for each in described.values() if isinstance(each, dict)] if isinstance(described, dict) else []
    found: dict[str, Any] = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        said = config.get(role) if entries else older.get(role) or config.get(role)
        if said is None:
            continue
        text = said.get("content") if isinstance(said, dict) else said
        if not isinstance(text, str) or number_of(text) is None:
            raise _wrong(kind, folder, f"names a {role} that is none of its tokens: {_short(text)}")
        entry = next((each for each in entries if each.get("content") == text), said)
        if isinstance(entry, dict):
            flags = {flag: entry[flag] for flag in TOKEN_FLAGS if type(entry.get(flag)) is bool}
            found[role] = AddedToken(text, special=True, **flags)
        else:
            found[role] = text
    return found


def _tokenizer_json(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """A tokenizer.json, and what it says; its "model" is an object. Raises `RequestError`."""
    text = _read(kind, folder, "tokenizer.json")
    value = _json(kind, folder, "tokenizer.json", text)
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise _wrong(kind, folder, "has a tokenizer.json without a model in it")
    return text, value


def _parsed(kind: str, folder: Path, written: tuple[str, dict[str, Any]]) -> Any:
    """The tokenizer in a tokenizer.json. Raises `RequestError` where it cannot be read, or would take other tokens each
    time or no end of time."""
    from tokenizers import Tokenizer

    text, value = written
    if value["model"].get("dropout"):
        raise _wrong(kind, folder, "leaves merges out at random (dropout), so that a prompt is never the same")
    waiting = [each for name, each in value.items() if name != "model"]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if "Regex" in each and each["Regex"] not in PATTERNS:
                raise _wrong(kind, folder, f"splits text by a pattern that is not known: {_short(each['Regex'])}")
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    with _library(kind, folder):
        return Tokenizer.from_str(text)


@contextmanager
def _library(kind: str, folder: Path) -> Iterator[None]:
    """Whatever the library makes of a wrong tokenizer becomes a sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, RequestError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise _wrong(kind, folder, f"cannot be read ({_short(error)})") from None


def _clip_files(kind: str, folder: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges in vocab.json and merges.txt."""
    vocabulary = _json(kind, folder, "vocab.json", _read(kind, folder, "vocab.json"))
    lines = _read(kind, folder, "merges.txt").splitlines()
    rules = [line for line in lines if line and not line.startswith("#version")]
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise _wrong(kind, folder, "has a vocabulary that cannot be read")
    if not all(rule.count(" ") == 1 for rule in rules):
        raise _wrong(kind, folder, "has a merges.txt that cannot be read")
    return vocabulary, rules


def _check_sentences(
    kind: str, folder: Path, written: tuple[str, dict[str, Any]], sentences: dict[str, list[int]]
) -> None:
    """`written` is a tokenizer.json whose vocabulary is known to be right."""
    tokenizer = _parsed(kind, folder, written)
    with _library(kind, folder):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoded = {sentence: tokenizer.encode(sentence).ids for sentence in sentences}
    for sentence, wanted in sentences.items():
        if encoded[sentence] != wanted:
            raise _wrong(
                kind,
                folder,
                f"reads {sentence!r} as {_short(encoded[sentence])}, FLUX.1's as {_short(wanted)}",
            )


def _model(kind: str, folder: Path, written: tuple[str, dict[str, Any]], wanted: str) -> dict[str, Any]:
    """The model in a tokenizer.json; raises `RequestError` where it is of another type."""
    model: dict[str, Any] = written[1]["model"]
    if model.get("type", wanted) != wanted:  # the oldest files name no type
        raise _wrong(kind, folder, f"is another model's: a {_short(model['type'])} tokenizer, FLUX.1's is {wanted}")
    return model


def _by_id(vocabulary: object) -> list[str] | None:
    """The tokens in the order of their ids, which must count up from 0."""
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        return None
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return tokens if all(vocabulary[token] == number for number, token in enumerate(tokens)) else None


def _fingerprint(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _json(kind: str, folder: Path, name: str, text: str) -> Any:
    try:
        return parse_json(text.encode())
    except MalformedError as error:
        raise _wrong(kind, folder, f"cannot be read: its {name} {error}") from None


def _read(kind: str, folder: Path, name: str) -> str:
    try:
        return _read_bytes(kind, folder, name).decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong(kind, folder, f"cannot be read: its {name} is not UTF-8 text") from None


def _read_bytes(kind: str, folder: Path, name: str) -> bytes:
    try:
        return read_file(folder / name, MAX_BYTES)
    except OSError as error:
        raise _wrong(kind, folder, f"cannot be read: {name}: {error.strerror}") from None
    except MalformedError as error:
        raise _wrong(kind, folder, f"cannot be read: its {name} {error}") from None


def _wrong(kind: str, folder: Path, what: str) -> RequestError:
    return RequestError(
        "model", f"the {kind} tokenizer in {shown_path(folder)} {what}; get FLUX.1's with 't2i models pull tokenizers'."
    )


def _short(value: object) -> str:
    text = ascii(" ".join(str(value).split()))[1:-1]
    return text if len(text) <= 100 else text[:97] + "..."
