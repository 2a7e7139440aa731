"""A model on disk in diffusers' folder layout: its parts checked and described before any weight is read.

Only JSON is read here; torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from engine.request import Defaults, Request, RequestError

CLASSES = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
}
DESCRIBING = (".json", ".txt", ".model")  # configurations and vocabularies
MAX_TOKENS = 4096  # more is no limit: tokenizers write 10^30 where they have none
MAX_JSON_BYTES = 32 * 2**20
SAMPLE_BYTES, SAMPLES = 2**20, 18
WHOLE_FILE_BYTES = 64 * 2**20  # larger files are sampled for the model's hash


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A checked model: configurations by component, safetensors files by component, and their total bytes.

    A published model whose weights are not here has no files: it can be planned and simulated, not run.
    """

    name: str
    path: Path
    configs: dict[str, dict[str, Any]]
    files: dict[str, tuple[Path, ...]]
    bytes: dict[str, int]
    defaults: Defaults
    clip_limit: int  # CLIP tokens that it takes
    token_limit: int  # T5 tokens that it was made for and its tokenizer gives
    sample_size: int  # pixels a side that the model was made for

    @property
    def has_weights(self) -> bool:
        return bool(self.files)

    @property
    def max_side(self) -> int:
        """Twice what the model was made for, in pixels."""
        return 2 * self.sample_size


def open_folder(path: Path, name: str) -> ModelFolder:
    """Check a folder and describe it. Raises `RequestError` that names the part which is missing or broken."""
    try:
        return _described(path, name)
    except RequestError:
        raise
    except KeyError as error:
        raise RequestError("model", f"a config.json in {_quoted(path)} lacks {error}; download it again.") from None
    except (TypeError, ValueError, AttributeError) as error:  # a list where a number belongs
        raise RequestError(
            "model", f"a config.json in {_quoted(path)} is wrong ({_quoted(error)}); download it again."
        ) from None


def _described(path: Path, name: str) -> ModelFolder:
    index = path / "model_index.json"
    if not path.is_dir() or not index.is_file():
        raise RequestError(
            "model",
            f"{_quoted(path)} is not a model folder: it has no model_index.json; give a folder in diffusers' layout.",
        )
    pipeline = _read_json(index).get("_class_name")
    if pipeline != "FluxPipeline":
        raise RequestError(
            "model", f"{_quoted(path)} holds a {_quoted(pipeline)}; only FLUX.1 (FluxPipeline) can be run."
        )
    configs, files, sizes = {}, {}, {}
    for component, class_name in CLASSES.items():
        configs[component] = _read_json(path / component / "config.json")
        declared = configs[component].get("_class_name") or (configs[component].get("architectures") or [class_name])[0]
        if declared != class_name:
            raise RequestError(
                "model", f"{_quoted(path / component)} holds a {_quoted(declared)}; FLUX.1 needs a {class_name} there."
            )
        files[component] = _weight_files(path / component)
        sizes[component] = sum(file.stat().st_size for file in files[component])
    configs["scheduler"] = _read_json(path / "scheduler" / "scheduler_config.json")
    for tokenizer in ("tokenizer", "tokenizer_2"):
        if not (path / tokenizer).is_dir() or not any((path / tokenizer).iterdir()):
            raise RequestError("model", f"{_quoted(path)} has no {tokenizer}; copy it from the original model.")
    _check_sizes(path, configs)

    limits = [_tokenizer_limit(path / part) for part in ("tokenizer", "tokenizer_2")]
    return described(name, path, configs, files, sizes, _preferences(path), limits[0], limits[1])


def described(
    name: str,
    path: Path,
    configs: dict[str, dict[str, Any]],
    files: dict[str, tuple[Path, ...]],
    sizes: dict[str, int],
    preferences: Defaults | None = None,
    clip_limit: int = MAX_TOKENS,
    token_limit: int = MAX_TOKENS,
) -> ModelFolder:
    """A model of these parts, with what FLUX.1 of its kind prefers where nothing else is said."""
    guided = bool(configs["transformer"].get("guidance_embeds"))
    sample_size = int(configs["vae"].get("sample_size") or 1024)
    defaults = preferences or Defaults(
        steps=28 if guided else 4,
        width=sample_size,
        height=sample_size,
        guidance=3.5 if guided else None,
        precision="fp32" if sizes["transformer"] < 2**30 else "bf16",
    )
    clip_limit = min(clip_limit, int(configs["text_encoder"]["max_position_embeddings"]))
    token_limit = min(token_limit, 512 if guided else 256)
    return ModelFolder(name, path, configs, files, sizes, defaults, clip_limit, token_limit, sample_size)


def model_hash(folder: ModelFolder) -> str:
    """sha256 over everything that decides pixels: the weights, and every other file of the model's parts.

    Files up to 64 MiB count whole. Of a larger one the size, the first and the last MiB and sixteen samples between
    count, so that a 24 GB model is known in a moment; a change between samples is not seen.
    """
    digest = hashlib.sha256()
    parts = (*CLASSES, "scheduler", "tokenizer", "tokenizer_2")
    files = {file for part in parts for file in (folder.path / part).glob("*.*") if file.suffix in DESCRIBING}
    files.update(file for weights in folder.files.values() for file in weights)
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder.path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE_BYTES:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            add_samples(digest, stream, size)
    return digest.hexdigest()


def add_samples(digest: hashlib._Hash, stream: BinaryIO, size: int) -> None:
    """Add the first and the last MiB of a file of this size to a hash, and sixteen between them."""
    for sample in range(SAMPLES):
        stream.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
        digest.update(stream.read(SAMPLE_BYTES))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a component: the shards that its index names, or its only file."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        weight_map = _read_json(indexes[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RequestError("model", f"{_quoted(indexes[0])} names no shards; download it again.")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise RequestError("model", f"{_quoted(folder)} lacks the shard {_quoted(name)}; download it again.")
        return tuple(folder / name for name in names)
    files = tuple(sorted(folder.glob("*.safetensors")))
    if len(files) == 1:
        return files
    if files:
        raise RequestError("model", f"{_quoted(folder)} holds {len(files)} safetensors files and no index; keep one.")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt")):
        raise RequestError(
            "model", f"{_quoted(folder)} holds pickled weights, which are never loaded; get the safetensors files."
        )
    raise RequestError("model", f"{_quoted(folder)} holds no weights (*.safetensors); download the model again.")


def _check_sizes(path: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The parts must fit each other: refuse a mixture before gigabytes are read."""
    transformer, vae = configs["transformer"], configs["vae"]
    if transformer["in_channels"] != 4 * vae["latent_channels"]:
        hint = "a Fill, Canny or Depth model" if transformer["in_channels"] in (128, 384) else "a mixture"
        raise RequestError(
            "model",
            f"the transformer in {_quoted(path)} takes {transformer['in_channels']} channels, its VAE gives "
            f"{4 * vae['latent_channels']}: {hint}, which cannot be run.",
        )
    if len(vae["block_out_channels"]) != 4:
        raise RequestError("model", f"the VAE in {_quoted(path)} does not reduce 8 times, as FLUX.1's does.")
    if any(kind != "UpDecoderBlock2D" for kind in vae.get("up_block_types") or ()):
        raise RequestError("model", f"the VAE in {_quoted(path)} has blocks that FLUX.1's has not; get FLUX.1's own.")
    widths = (
        ("text_encoder_2", configs["text_encoder_2"]["d_model"], transformer["joint_attention_dim"]),
        ("text_encoder", configs["text_encoder"]["hidden_size"], transformer["pooled_projection_dim"]),
    )
    for component, width, wanted in widths:
        if width != wanted:
            raise RequestError(
                "model", f"{component} in {_quoted(path)} gives width {width}, its transformer takes {wanted}."
            )


def _tokenizer_limit(folder: Path) -> int:
    """The most tokens that a tokenizer says it gives."""
    file = folder / "tokenizer_config.json"
    limit = _read_json(file).get("model_max_length") if file.is_file() else None
    return limit if type(limit) is int and 0 < limit < MAX_TOKENS else MAX_TOKENS


def _preferences(path: Path) -> Defaults | None:
    """Defaults that a model brings along (`t2i.json` beside model_index.json), as the demo model does."""
    file = path / "t2i.json"
    if not file.is_file():
        return None
    try:
        values = _read_json(file)["defaults"]
        defaults = Defaults(**values)
        Request("any", **values)  # the same ranges hold for what a model prefers
    except (KeyError, TypeError, RequestError):
        raise RequestError("model", f"{_quoted(file)} has wrong defaults; delete it.") from None
    return defaults


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise RequestError("model", f"{_quoted(path)} is too large to be a configuration.")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RequestError("model", f"{_quoted(path)} is missing; download the model again.") from None
    except OSError as error:
        raise RequestError("model", f"{_quoted(path)} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise RequestError("model", f"{_quoted(path)} is not valid JSON; download the model again.") from None
    if not isinstance(value, dict):
        raise RequestError("model", f"{_quoted(path)} is not a JSON object; download the model again.")
    return value


def _quoted(value: object) -> str:
    """A name from outside in quotes, one line, control characters escaped."""
    text = str(value)
    return repr(text if len(text) <= 300 else text[:297] + "...")
