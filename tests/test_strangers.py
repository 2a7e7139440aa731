"""Files from strangers: they run nothing, hang nothing, fill nothing, and each bad one is one short sentence."""

from __future__ import annotations

import ast
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from engine import Engine, Failed, Request
from engine.families.flux1 import tokenizers
from engine.library import finding, inventory, pairing, registry
from engine.library.catalog import DEMO_FOLDER
from engine.library.registry import Registered, Registry
from engine.request import RequestError
from engine.untrusted import MalformedError, is_plain_name, parse_json, read_file
from engine.untrusted.headers import read_header
from engine.weights.model import Model, model_hash, open_folder
from tests.commands import ROOT, isolated_environment, t2i

POSIX = os.name == "posix"
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that somebody else wrote."""
    shutil.copytree(DEMO_FOLDER, tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def config_of(part: str) -> str:
    return "scheduler/scheduler_config.json" if part == "scheduler" else f"{part}/config.json"


def refusal(open_it: Callable[[], object]) -> str:
    """The sentence with which something is refused: short, and fit for a terminal."""
    with pytest.raises(RequestError) as refused:
        open_it()
    sentence = str(refused.value)
    assert len(sentence) <= 400
    assert sentence.isprintable()
    return sentence


# Nothing runs.


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
def test_no_attention_kernel_is_taken_from_a_configuration(
    folder: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.weights.loading import empty_component

    asked: list[object] = []

    def get_kernel(*arguments: object, **named: object) -> object:
        asked.append(arguments)
        raise AssertionError("a kernel was asked for")

    for name in (
        "transformers.integrations.hub_kernels.get_kernel",
        "transformers.modeling_utils.load_and_register_attn_kernel",
    ):
        monkeypatch.setattr(name, get_kernel, raising=False)
    for part in ("text_encoder", "text_encoder_2"):
        change(folder / config_of(part), **{key: "somebody/kernel"})
    model = open_folder(folder, "theirs")
    for part in ("text_encoder", "text_encoder_2"):
        assert key not in model.configs[part]
        assert empty_component(model, part).config._attn_implementation == "sdpa"
    assert not asked


HOSTILE_CLASSES = ["RagTokenizer", "AutoModel", "AutoTokenizer", "BertModel", "CLIPModel", "pipeline"]


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("name", HOSTILE_CLASSES)
def test_a_tokenizer_without_its_own_files_is_refused(folder: Path, tokenizer: str, name: str) -> None:
    place = folder / tokenizer
    (place / "tokenizer.json").unlink()
    write_code(place, name)
    (place / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert f"has no {tokenizer}" in refusal(lambda: open_folder(folder, "theirs"))
    assert "tokenizer" in refusal(lambda: tokenizers.load(tokenizer, place))


def write_code(place: Path, name: str) -> None:
    """What a folder says to have its author's code run, nested as deep as a composite tokenizer looks."""
    for inner in (place, place / "question_encoder_tokenizer", place / "generator_tokenizer"):
        inner.mkdir(exist_ok=True)
        code = f"open({str(place / 'ran')!r}, 'w')\nclass Theirs: pass\n"
        (inner / "theirs.py").write_text(code)
        auto = {"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"], "AutoModel": "theirs.Theirs"}
        about = {"tokenizer_class": name, "auto_map": auto, "trust_remote_code": True}
        (inner / "tokenizer_config.json").write_text(json.dumps(about))
        (inner / "config.json").write_text(json.dumps({"model_type": "rag", "auto_map": auto}))


@pytest.mark.spawned
def test_a_yes_on_standard_input_answers_no_question(folder: Path, tmp_path: Path) -> None:
    for place in (folder / "tokenizer", folder / "tokenizer_2"):
        write_code(place, "RagTokenizer")
    arguments = ("generate", "--model", str(folder), "--prompt", "a circle", "--steps", "1", "--size", "64x64", "-q")
    done = t2i(*arguments, env=isolated_environment(tmp_path), stdin=b"y\n" * 20)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("ran"))


SOURCES = [path for room in ("engine", "tui") for path in (ROOT / room).rglob("*.py")]
TRAINING = {"train.py", "train_flow.py", "train_text.py", "train_vae.py", "distill.py", "export.py", "vocabulary.py"}
FORBIDDEN = {"from_pretrained", "trust_remote_code", "pickle", "eval", "exec", "shell"}
# Who reads JSON otherwise than through the door: what this program wrote itself, and a picture's own limits.
OWN_JSON = {
    "engine/untrusted/__init__.py",
    "engine/images/metadata.py",
    "engine/cli/machine.py",
    "engine/memory/measure.py",
    "engine/weights/conversions.py",
    "engine/library/hub.py",
    "engine/library/registry.py",
    "tui/history.py",
}


def test_no_library_is_let_loose_on_a_strangers_folder() -> None:
    """No Auto class, no from_pretrained, no pickle, no JSON past the door: whoever needs one has to change this."""
    found = []
    for path in SOURCES:
        place = path.relative_to(ROOT).as_posix()
        if path.name in TRAINING and "/demo/" in place:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = {getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "arg", None)}
            if isinstance(node, ast.ImportFrom | ast.Import):
                names |= {alias.name.rpartition(".")[2] for alias in node.names}
            for name in filter(None, names):
                if name in (
                    "from_pretrained",
                    "trust_remote_code",
                    "pickle",
                    "eval",
                    "exec",
                    "shell",
                    "dill",
                    "joblib",
                ):
                    if name == "eval" and isinstance(node, ast.Attribute):
                        continue  # a network's own
                    found.append(f"{place}: {name}")
                if name.startswith("Auto") and name[4:5].isupper() and name != "AutoencoderKL":
                    found.append(f"{place}: {name}")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                if call == "torch.load" or (call in ("json.load", "json.loads") and place not in OWN_JSON):
                    found.append(f"{place}: {call}")
    assert not found


# Nothing hangs, nothing fills the memory.

COUNTS = [
    ("transformer", "num_layers"),
    ("transformer", "num_single_layers"),
    ("transformer", "attention_head_dim"),
    ("transformer", "num_attention_heads"),
    ("transformer", "joint_attention_dim"),
    ("vae", "layers_per_block"),
    ("vae", "latent_channels"),
    ("text_encoder", "num_hidden_layers"),
    ("text_encoder", "max_position_embeddings"),
    ("text_encoder", "vocab_size"),
    ("text_encoder_2", "num_layers"),
    ("text_encoder_2", "d_ff"),
    ("text_encoder_2", "relative_attention_num_buckets"),
]


@pytest.mark.parametrize(("part", "key"), COUNTS)
def test_sizes_must_be_those_of_the_weights(folder: Path, part: str, key: str) -> None:
    file = folder / config_of(part)
    true = json.loads(file.read_text("utf-8"))[key]
    for wrong in (10**9, true + 1):
        change(file, **{key: wrong})
        sentence = refusal(lambda: open_folder(folder, "theirs"))
        assert sentence.startswith(f"{key} in {str(file)!r} is {wrong}, ")
    assert f"by its weights it is {true}" in sentence


def test_sizes_that_no_network_is_built_from_are_left_out(folder: Path) -> None:
    for part in PARTS:
        change(folder / config_of(part), num_labels=10**9, quantization_config={"load_in_8bit": True}, torchscript=True)
    assert not {"num_labels", "quantization_config"} & set().union(*open_folder(folder, "theirs").configs.values())


NOT_ORDINARY = [
    "model_index.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "t2i.json",
    "preview.json",
]


@pytest.mark.skipif(not POSIX, reason="devices and pipes are files on POSIX alone")
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
@pytest.mark.parametrize("name", NOT_ORDINARY)
def test_what_is_no_ordinary_file_is_not_read(folder: Path, name: str, kind: str) -> None:
    file = folder / name
    file.unlink(missing_ok=True)
    match kind:
        case "device":
            file.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(file)
        case _:
            file.mkdir()

    def paint() -> None:
        with Engine.open(folder, device="cpu") as engine:
            list(engine.generate(Request("a circle", steps=1, width=64, height=64)))

    if name in ("t2i.json", "preview.json", "tokenizer/tokenizer_config.json"):
        paint()  # a model need not have it; what is no file is not there
    else:
        refusal(paint)


@pytest.mark.skipif(not POSIX, reason="devices are files on POSIX alone")
def test_what_is_hashed_is_an_ordinary_file(folder: Path) -> None:
    (folder / "tokenizer" / "more.json").symlink_to("/dev/zero")
    model = open_folder(folder, "theirs")
    assert "no ordinary file" in refusal(lambda: model_hash(model))


def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    text = b'{"__metadata__":[' + b"[]," * 3_000_000 + b"[]]}"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    assert "more values than it can need" in refusal(lambda: read_header(file))
    shape = ",".join(["281474976710655"] * 10_000)
    text = f'{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}'.encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"1")
    assert "wrong shape or place" in refusal(lambda: read_header(file))


def test_a_gguf_header_has_a_bound_for_all_of_its_texts(tmp_path: Path) -> None:
    file = tmp_path / "w.gguf"
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 4000))
        for number in range(4000):  # texts of a MiB that take no room on the disk
            key = str(number).encode()
            stream.write(struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 2**20))
            stream.seek(2**20, os.SEEK_CUR)
        stream.truncate()
    assert "its header is too long" in refusal(lambda: read_header(file))


def test_a_configuration_is_a_mebibyte_at_most(folder: Path) -> None:
    change(folder / "vae" / "config.json", spare=" " * 2**20)
    assert "larger than 1 MiB" in refusal(lambda: open_folder(folder, "theirs"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "has 'a' twice"),
        ('{"a": NaN}', "not finite"),
        ('{"a": -Infinity}', "not finite"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": "\\ud800"}', "not valid Unicode"),
        ('{"\\udfff": 1}', "not valid Unicode"),
        ("[" * 200_000, "nested without end"),
        ("[" + "0," * 600_000 + "0]", "more values"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_with_surprises_is_refused(text: str, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        parse_json(text.encode())


def test_json_without_surprises_is_what_it_is() -> None:
    assert parse_json('{"ü": [1, -2.5, "\\u0120 \\ud83d\\ude00", null, true]}'.encode()) == {
        "ü": [1, -2.5, "Ġ 😀", None, True]
    }


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_file(tmp_path / "x", 5) == b"12345"
    with pytest.raises(MalformedError, match="larger than"):
        read_file(tmp_path / "x", 4)


# What is said is what is wrong.

WRONG_VALUES = [
    ("transformer", "axes_dims_rope", 3),
    ("transformer", "axes_dims_rope", [8, 12, 14]),
    ("transformer", "axes_dims_rope", [7, 13, 12]),
    ("transformer", "guidance_embeds", "yes"),
    ("transformer", "guidance_embeds", 1),
    ("transformer", "patch_size", 2),
    ("transformer", "num_layers", True),
    ("transformer", "in_channels", -1),
    ("vae", "shift_factor", "x"),
    ("vae", "shift_factor", None),
    ("vae", "scaling_factor", 0),
    ("vae", "norm_num_groups", 7),
    ("vae", "block_out_channels", "abcd"),
    ("vae", "up_block_types", ["UpDecoderBlock2D"]),
    ("vae", "up_block_types", None),
    ("vae", "act_fn", "__import__('os')"),
    ("vae", "sample_size", [1]),
    ("text_encoder", "num_attention_heads", 3),
    ("text_encoder", "hidden_act", "nonsense"),
    ("text_encoder", "layer_norm_eps", []),
    ("text_encoder_2", "feed_forward_proj", "gated-nothing"),
    ("text_encoder_2", "relative_attention_max_distance", 8),
    ("text_encoder_2", "d_model", {}),
    ("scheduler", "shift", "3"),
    ("scheduler", "use_dynamic_shifting", "no"),
    ("scheduler", "base_image_seq_len", 1.5),
    ("scheduler", "max_shift", 10**400),
]


@pytest.mark.parametrize(("part", "key", "value"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_its_file_when_the_model_is_opened(
    folder: Path, part: str, key: str, value: object
) -> None:
    change(folder / config_of(part), **{key: value})
    sentence = refusal(lambda: open_folder(folder, "theirs"))
    assert key in sentence
    assert str(folder / config_of(part)) in sentence


@pytest.mark.parametrize(
    "defaults",
    [
        {"steps": 4, "width": 128, "height": 128, "guidance": 3.0, "precision": None},
        {"steps": None, "width": 128, "height": 128, "guidance": 3.0, "precision": "fp32"},
        {"steps": 4, "width": 128, "height": 128, "guidance": None, "precision": "fp32"},
        {"steps": 4, "width": "128", "height": 128, "guidance": 3.0, "precision": "fp32"},
        {"steps": 4, "width": 128, "height": 128, "guidance": 3.0, "precision": "fp32", "prompt": "x"},
        [],
        None,
    ],
)
def test_defaults_that_no_picture_can_have_are_refused(folder: Path, defaults: object) -> None:
    change(folder / "t2i.json", defaults=defaults)
    assert f"{str(folder / 't2i.json')!r} has wrong defaults" in refusal(lambda: open_folder(folder, "theirs"))


ODD = "\x1b]0;title\x07\u202e\u200b" + "n" * 5000


@pytest.mark.parametrize("name", [ODD, "n" * 5000, "../transformer/x", "a/b", "..", "", "c:x", "a\\b", "a\0b"])
def test_an_index_names_files_of_its_own_folder(folder: Path, name: str) -> None:
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x_embedder.weight": name}}), "utf-8")
    assert not is_plain_name(name)
    assert "lacks the shard" in refusal(lambda: open_folder(folder, "theirs"))


def test_sentences_are_short_and_fit_for_a_terminal(folder: Path) -> None:
    change(folder / "model_index.json", _class_name=ODD)
    refusal(lambda: open_folder(folder, "theirs"))
    change(folder / "model_index.json", _class_name="FluxPipeline")
    change(folder / "vae" / "config.json", act_fn=ODD)
    refusal(lambda: open_folder(folder, "theirs"))
    file = folder / "w.safetensors"
    for entry in (
        {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        {"dtype": ODD, "shape": [1], "data_offsets": [0, 1]},
    ):
        text = json.dumps({ODD: entry}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + b"1")
        refusal(lambda: pairing.recognised(file))
    refusal(lambda: Engine.open("n" * 5000))
    long = folder / ("d" * 200) / ("e" * 200)
    long.mkdir(parents=True)
    shutil.copy(file, long / "w.safetensors")
    refusal(lambda: pairing.recognised(long / "w.safetensors"))


# Tokenizers.


def test_the_file_that_was_checked_is_the_one_that_is_read(folder: Path) -> None:
    place = folder / "tokenizer_2"
    before = tokenizers.load("tokenizer_2", place)("a red circle").input_ids
    other = json.loads((place / "tokenizer.json").read_text("utf-8"))
    other["model"]["vocab"] = dict.fromkeys(other["model"]["vocab"], 0) | {"<unk>": 0}
    (place / "tokenizer.0.0.1.json").write_text(json.dumps(other), "utf-8")
    change(place / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.0.0.1.json", "tokenizer.json"])
    assert tokenizers.load("tokenizer_2", place)("a red circle").input_ids == before


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_is_read_as_transformers_reads_it(tokenizer: str) -> None:
    from transformers import AutoTokenizer

    ours, theirs = (
        tokenizers.load(tokenizer, DEMO_FOLDER / tokenizer),
        AutoTokenizer.from_pretrained(DEMO_FOLDER / tokenizer),
    )
    assert ours.pad_token_id == theirs.pad_token_id
    for text in ("a red circle above a blue square", "", "Ünïcode <pad> </s> <|endoftext|>", "a " * 100):
        settings: dict[str, Any] = {"padding": "max_length", "max_length": 32, "truncation": True}
        assert ours([text], **settings).input_ids == theirs([text], **settings).input_ids


def test_clip_is_read_from_its_two_files_as_transformers_reads_it(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz'!?0123456789"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    about = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    special = {"pad_token": "!", "bos_token": {"content": "<|startoftext|>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    for described in (None, {"61": {"content": "<|endoftext|>", "normalized": True, "special": True}}):
        if described:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(about | {"added_tokens_decoder": described}))
        same_as_transformers(tmp_path)
    tokenizer = tokenizers.load("tokenizer", tmp_path)
    assert tokenizer("cat").input_ids == [
        tokens.index(token) for token in ("<|startoftext|>", "cat</w>", "<|endoftext|>")
    ]


def same_as_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = tokenizers.load("tokenizer", folder), AutoTokenizer.from_pretrained(folder)
    for text in ("a photo of a CAT's  hat!", "cat cat", "<|endoftext|>x", "<|ENDOFTEXT|>x <|STARTOFTEXT|>", ""):
        settings: dict[str, Any] = {"padding": "max_length", "max_length": 12, "truncation": True}
        assert ours([text], **settings).input_ids == theirs([text], **settings).input_ids


def message(*fields: tuple[int, bytes]) -> bytes:
    """A protobuf message whose fields are all bytes; short ones alone."""
    return b"".join(bytes([number << 3 | 2, len(value)]) + value for number, value in fields)


def test_t5_is_read_from_its_sentencepiece_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0), ("a", -4.0)]
    data = b"".join(
        message((1, message((1, piece.encode())) + b"\x15" + struct.pack("<f", score))) for piece, score in pieces
    )
    data += message((2, b"trainer"), (3, message((1, b"nmt_nfkc"))))
    assert tokenizers.sentencepiece_model(data) == (pieces, b"")
    monkeypatch.setattr(tokenizers, "T5_SENTENCEPIECE", hashlib.sha256(data).hexdigest())
    (tmp_path / "spiece.model").write_bytes(data)
    tokenizer = tokenizers.load("tokenizer_2", tmp_path)
    assert tokenizer("ab  b").input_ids == [3, 4, 5, 4, 1]
    assert tokenizer.convert_tokens_to_ids(["<extra_id_99>", "<extra_id_0>"]) == [7, 106]
    (tmp_path / "spiece.model").write_bytes(data + b"\x08\x01")
    assert "another model's" in refusal(lambda: tokenizers.load("tokenizer_2", tmp_path))


@pytest.mark.parametrize("data", [b"\x0a", b"\x0b", b"\xff" * 20, b"\x0a\x02\x0a\x05"])
def test_what_is_no_sentencepiece_model_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no SentencePiece"):
        list(tokenizers.sentencepiece_model(data))


def test_patterns_and_chance_in_a_tokenizer_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(tokenizers.PATTERNS[2]), "removed", invert=True)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.to_str())
    assert tokenizers.load("tokenizer", tmp_path)("a").input_ids == [0]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "removed", invert=True)
    file.write_text(tokenizer.to_str())
    assert "a pattern that is not known: (a+)+$" in refusal(lambda: tokenizers.load("tokenizer", tmp_path))
    value = json.loads(tokenizer.to_str())
    value["pre_tokenizer"], value["model"]["dropout"] = None, 0.5
    file.write_text(json.dumps(value))
    assert "at random" in refusal(lambda: tokenizers.load("tokenizer", tmp_path))


def test_a_special_token_is_one_of_the_vocabulary(folder: Path) -> None:
    for token in ("<nowhere>", 7, {"content": ["<pad>"]}, ODD):
        change(folder / "tokenizer_2" / "tokenizer_config.json", pad_token=token)
        assert "pad_token" in refusal(lambda: tokenizers.load("tokenizer_2", folder / "tokenizer_2"))


def test_a_token_that_the_text_encoder_does_not_have_is_told(folder: Path) -> None:
    file = folder / "tokenizer_2" / "tokenizer.json"
    value = json.loads(file.read_text("utf-8"))
    value["model"]["vocab"] |= {"circle": 5000}
    file.write_text(json.dumps(value), "utf-8")
    with Engine.open(folder, device="cpu") as engine:
        *_, last = engine.generate(Request("a circle", steps=1, width=64, height=64))
    assert isinstance(last, Failed)
    assert last.bad_input
    assert "gives the token 5000, text_encoder_2 knows 78" in last.message


# One bad model is one line.


@pytest.fixture
def two_models(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A sound model and one that is about to be spoiled, both known."""
    sound = tmp_path / "sound"
    shutil.copytree(folder, sound)
    registry.write(Registry({"bad": Registered("bad", folder), "sound": Registered("sound", sound)}))
    return folder, sound


def infinite(folder: Path) -> None:
    file = folder / "vae" / "config.json"
    file.write_text(file.read_text("utf-8").replace("128", "Infinity"), "utf-8")


def long_name(folder: Path) -> None:
    index = {"weight_map": {"x": "n" * 5000}}
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("spoil", [infinite, long_name])
def test_a_bad_model_is_one_line_of_the_list(two_models: tuple[Path, Path], spoil: Callable[[Path], None]) -> None:
    bad, _ = two_models
    spoil(bad)
    lines = {listing.name: listing for listing in inventory.listed()}
    assert lines["sound"].here
    assert not lines["bad"].here
    assert str(bad) in lines["bad"].warning
    assert len(lines["bad"].warning) <= 400


@pytest.mark.parametrize("spoil", [infinite, long_name])
def test_a_scan_keeps_what_is_sound(folder: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    shutil.copytree(folder, tmp_path / "sound")
    spoil(folder)
    *_, last = finding.scan(tmp_path)
    assert "sound" in [Path(listing.place).name for listing in last.added]
    assert str(folder) in last.refused[0]


def test_what_nobody_foresaw_is_one_line_too(
    two_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours over one model's files hides no other model."""
    bad, _ = two_models
    opened = open_folder

    def stumbling(path: Path, name: str) -> Model:
        if path == bad:
            raise OverflowError("\x1b[31mcannot convert" + "!" * 5000)
        return opened(path, name)

    for place in ("listings", "finding"):
        monkeypatch.setattr(f"engine.library.{place}.open_folder", stumbling)
    lines = {listing.name: listing for listing in inventory.listed()}
    assert lines["sound"].here
    assert "cannot convert" in lines["bad"].warning
    *_, last = finding.scan(tmp_path)
    assert [listing.name for listing in last.known] == ["sound"]
    (said,) = last.refused
    for sentence in (said, lines["bad"].warning):
        assert len(sentence) <= 400
        assert sentence.isprintable()


def test_the_lowest_transformers_cannot_download_attention() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '"transformers>=5.3"' in text


def test_the_door_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, engine.weights.model; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
