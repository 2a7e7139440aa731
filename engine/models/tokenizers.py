"""Are these tokenizers FLUX.1's? Another vocabulary would paint something else than the prompt, without any error.

The fingerprints are those of the files that FLUX.1 comes with: CLIP's vocabulary and merges are the ones of OpenAI's
`bpe_simple_vocab_16e6.txt.gz`, and T5's pieces those of the `spiece.model` that T5, T5 v1.1 and Flan-T5 share. What is
read here is untrusted; neither torch nor transformers is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.folders import shown_path
from engine.request import RequestError

CLIP_ENTRIES, CLIP_MERGES = 49408, 48894
# sha256 over one token a line, in the order of the ids, and over one rule a line
CLIP_VOCABULARY = "e30e57b6f1e47616982ef898d8922be24e535b4fa3d0110477b3a6f02ebbae7d"
CLIP_MERGE_RULES = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
T5_PIECES = 32000  # the sentinels <extra_id_0> to <extra_id_99> follow, which FLUX.1 never sees
T5_ENTRIES = range(32100, 32128 + 1)  # 32100 in FLUX.1's; the embedding has 32128 rows
T5_VOCABULARY = "6b359e3ae4db87602c27d08117d3cb79d09bc85c8a44deb6d48b24c3c7a4f937"  # over one piece a line
T5_SENTENCEPIECE = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"  # of spiece.model, 791656 bytes
MAX_BYTES = 32 * 2**20

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
    file = folder / "tokenizer.json"
    if file.is_file():
        text = _read(kind, folder, file.name)
        model = _model(kind, folder, text, "BPE")
        vocabulary, rules = model.get("vocab"), model.get("merges")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        text = ""
        vocabulary = _json(kind, folder, "vocab.json", _read(kind, folder, "vocab.json"))
        lines = _read(kind, folder, "merges.txt").splitlines()
        rules = [line for line in lines if line and not line.startswith("#version")]
    else:
        raise _wrong(kind, folder, "is not there: neither tokenizer.json nor vocab.json with merges.txt")

    tokens = _by_id(vocabulary)
    if tokens is None or not isinstance(rules, list):
        raise _wrong(kind, folder, "has a vocabulary that cannot be read")
    if len(tokens) != CLIP_ENTRIES:
        raise _wrong(kind, folder, f"is another model's: it has {len(tokens)} entries, FLUX.1's has {CLIP_ENTRIES}")
    merges = [" ".join(map(str, rule)) if isinstance(rule, list) else str(rule) for rule in rules]
    if _fingerprint(tokens) != CLIP_VOCABULARY or _fingerprint(merges) != CLIP_MERGE_RULES:
        raise _wrong(kind, folder, f"is another model's: it has FLUX.1's {CLIP_ENTRIES} entries, but not the same ones")
    if text:
        _check_sentences(kind, folder, text, CLIP_SENTENCES)


def check_t5(folder: Path) -> None:
    """Raises `RequestError` if this folder's tokenizer is not T5's (tokenizer.json, or spiece.model)."""
    kind = "T5"
    if (folder / "tokenizer.json").is_file():
        text = _read(kind, folder, "tokenizer.json")
        entries = _model(kind, folder, text, "Unigram").get("vocab")
        if not isinstance(entries, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
            raise _wrong(kind, folder, "has a vocabulary that cannot be read")
        if len(entries) not in T5_ENTRIES:
            raise _wrong(kind, folder, f"is another model's: it has {len(entries)} entries, FLUX.1's has 32100")
        if _fingerprint(str(piece) for piece, _ in entries[:T5_PIECES]) != T5_VOCABULARY:
            raise _wrong(kind, folder, f"is another model's: it has {len(entries)} entries, but not FLUX.1's")
        _check_sentences(kind, folder, text, T5_SENTENCES)
    elif (folder / "spiece.model").is_file():
        if hashlib.sha256(_read_bytes(kind, folder, "spiece.model")).hexdigest() != T5_SENTENCEPIECE:
            raise _wrong(kind, folder, "is another model's: its spiece.model is not the one that FLUX.1 has")
    else:
        raise _wrong(kind, folder, "is not there: neither tokenizer.json nor spiece.model")


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


def _check_sentences(kind: str, folder: Path, text: str, sentences: dict[str, list[int]]) -> None:
    """`text` is a tokenizer.json whose vocabulary is known to be right."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoded = {sentence: tokenizer.encode(sentence).ids for sentence in sentences}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise _wrong(kind, folder, f"cannot be read ({_short(error)})") from None
    for sentence, wanted in sentences.items():
        if encoded[sentence] != wanted:
            raise _wrong(
                kind,
                folder,
                f"reads {sentence!r} as {_short(encoded[sentence])}, FLUX.1's as {_short(wanted)}",
            )


def _model(kind: str, folder: Path, text: str, wanted: str) -> dict[str, Any]:
    """The model in a tokenizer.json; raises `RequestError` where it is of another type."""
    value = _json(kind, folder, "tokenizer.json", text)
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict):
        raise _wrong(kind, folder, "has a tokenizer.json without a model in it")
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
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(kind, folder, f"cannot be read: its {name} is not valid JSON") from None


def _read(kind: str, folder: Path, name: str) -> str:
    try:
        return _read_bytes(kind, folder, name).decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong(kind, folder, f"cannot be read: its {name} is not UTF-8 text") from None


def _read_bytes(kind: str, folder: Path, name: str) -> bytes:
    try:
        with (folder / name).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _wrong(kind, folder, f"cannot be read: {name}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise _wrong(kind, folder, f"is another model's: its {name} is larger than 32 MiB")
    return data


def _wrong(kind: str, folder: Path, what: str) -> RequestError:
    return RequestError(
        "model", f"the {kind} tokenizer in {shown_path(folder)} {what}; get FLUX.1's with 't2i models pull tokenizers'."
    )


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return ascii(text)[1:-1] if len(text) <= 100 else ascii(text[:97])[1:-1] + "..."
