"""A model on disk: its parts checked and described before any weight is read.

The parts come from a folder in diffusers' layout, or from files of several programs. Only JSON and headers are read
here; torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from engine.folders import shown_path
from engine.models import distill_names
from engine.models.configs import CLASSES, KEYS, checked, declared_class, read_config
from engine.models.headers import PICKLE_SUFFIXES, read_header, unreadable
from engine.models.layouts import TITLES, Found, recognise
from engine.request import MAX_SIDE, MIN_SIDE, PRECISIONS, SIDE_MULTIPLE, Defaults, Request, RequestError
from engine.text import quoted
from engine.untrusted import MAX_INDEX_BYTES, is_plain_name, open_file, read_object

TOKENIZERS = ("tokenizer", "tokenizer_2")
PIPELINE = "FluxPipeline"
PIPELINES = {  # others, by the class that their model_index.json names
    "FluxKontextPipeline": "FLUX.1 Kontext, which edits pictures",
    "FluxKontextInpaintPipeline": "FLUX.1 Kontext, which edits pictures",
    "FluxFillPipeline": "FLUX.1 Fill, which fills gaps in pictures",
    "FluxControlPipeline": "FLUX.1 Canny or Depth, which follows a picture",
    "FluxControlNetPipeline": "FLUX.1 with a ControlNet",
    "FluxPriorReduxPipeline": "FLUX.1 Redux, which varies pictures",
    "Flux2Pipeline": "FLUX.2",
    "Flux2KleinPipeline": "FLUX.2",
    "ChromaPipeline": "Chroma",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusionPipeline": "Stable Diffusion",
}
SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})(?:\.[A-Za-z0-9_]+)?\.safetensors$")
# diffusers' and transformers' names of a variant: model.fp16.safetensors, model.safetensors.index.fp16.json
VARIANT = re.compile(
    r"^(?:diffusion_pytorch_model|model)\.(?:safetensors\.index\.)?(?!safetensors)([A-Za-z0-9_]+)\.(?:safetensors|json)$"
    r"|\.safetensors\.index\.([A-Za-z0-9_]+)\.json$"
)
VARIANTS = ("", "bf16", "fp16", "fp32")  # in the order in which they are taken
DISTILLED = "distill_t5"  # a smaller network in the place of text_encoder_2; a model may have it
DESCRIBING = (".json", ".txt", ".model")  # configurations and vocabularies
FLUX_SIDE = 1024  # pixels that FLUX.1 was made for
MIN_MANY_SIZES = 512  # pixels: a model that was made for fewer knows that size alone
MAX_TOKENS = 4096  # more is no limit: tokenizers write 10^30 where they have none
SAMPLE_BYTES, SAMPLES = 2**20, 18
WHOLE_FILE_BYTES = 64 * 2**20  # larger files are sampled for the model's hash


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model: configurations, files, and bytes of the weights, by component.

    A published model whose weights are not here has no files: it can be planned and simulated, not run.
    """

    name: str
    path: Path  # its folder, or the transformer's file
    configs: dict[str, dict[str, Any]]
    files: dict[str, tuple[Path, ...]]
    bytes: dict[str, int]
    tokenizers: dict[str, Path]  # folders
    found: dict[str, Found]  # what the files of a component are, where they were looked at
    defaults: Defaults
    clip_limit: int  # CLIP tokens that it takes
    token_limit: int  # T5 tokens that it was made for and its tokenizer gives
    sample_size: int  # pixels a side that the model was made for
    elsewhere: tuple[str, ...] = ()  # a sentence for each part that was taken from where it is not the model's own

    @property
    def has_weights(self) -> bool:
        return bool(self.files)

    @property
    def max_side(self) -> int:
        """Twice what the model was made for, in pixels."""
        return 2 * self.sample_size

    def size_note(self, request: Request) -> str | None:
        """A sentence where the model does not know the request's size: FLUX.1 knows many, a small one its own."""
        side, size = self.sample_size, (request.width, request.height)
        if side >= MIN_MANY_SIZES or size == (side, side):
            return None
        return (
            f"{self.name} was made for {side}x{side} pixels; at {size[0]}x{size[1]} things may be repeated or cut off."
        )

    @property
    def distills(self) -> bool:
        """Whether a smaller text encoder can take the place of T5."""
        return DISTILLED in self.configs

    def place(self, component: str) -> Path:
        """The file or the folder of a component, for messages."""
        files = self.files[component]
        return files[0] if len(files) == 1 else files[0].parent

    def layout(self, component: str) -> str:
        """Whose names its files have, for people."""
        return self.found[component].layout if component in self.found else "diffusers"

    def precision(self, component: str) -> str:
        """What its weights are stored in, for people; empty where nobody looked."""
        return self.found[component].precision if component in self.found else ""


def open_folder(path: Path, name: str) -> Model:
    """Check a folder and describe it. Raises `RequestError` that names the part which is missing or broken."""
    index = path / "model_index.json"
    if not path.is_dir() or not index.is_file():
        raise RequestError(
            "model",
            f"{shown_path(path)} is not a model folder: it has no model_index.json; give a folder in diffusers' "
            "layout.",
        )
    _check_pipeline(path)
    configs: dict[str, dict[str, Any]] = {}
    files: dict[str, tuple[Path, ...]] = {}
    found: dict[str, Found] = {}
    for component in CLASSES:
        config = path / component / "config.json"
        said = read_object(config)
        files[component] = weight_files(path / component)
        found[component] = part_of(files[component], component)
        inner = said.get("text_config")  # of a whole CLIP, in whose file the text encoder is one of two parts
        if isinstance(inner, dict) and component == "text_encoder":
            said = {**found[component].config, **inner}
        configs[component] = checked(said, component, config, found[component].config)
    if (path / DISTILLED).is_dir():
        files[DISTILLED] = weight_files(path / DISTILLED)
        found[DISTILLED] = part_of(files[DISTILLED], DISTILLED)
        configs[DISTILLED] = distilled_config(found[DISTILLED])
    configs["scheduler"] = read_config(path / "scheduler" / "scheduler_config.json", "scheduler")
    for tokenizer in TOKENIZERS:
        if not has_tokenizer(path / tokenizer):
            raise RequestError("model", f"{shown_path(path)} has no {tokenizer}; copy it from the original model.")
    return described(
        name,
        path,
        configs,
        files,
        tokenizers={tokenizer: path / tokenizer for tokenizer in TOKENIZERS},
        found=found,
        preferences=_preferences(path),
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    with suppress(OSError):
        return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))
    return False


def _check_pipeline(path: Path) -> None:
    """Raises `RequestError` for a folder of another model. Whatever class it names, FLUX.1's tensors are FLUX.1."""
    pipeline = pipeline_of(path)
    if pipeline == PIPELINE:
        return
    if pipeline.isidentifier() and pipeline not in PIPELINES:  # other programs and trainers have classes of their own
        with suppress(RequestError):
            part_of(weight_files(path / "transformer"), "transformer")
            return
    what = f"{PIPELINES[pipeline]} (a {quoted(pipeline)})" if pipeline in PIPELINES else f"a {quoted(pipeline)}"
    raise RequestError(
        "model", f"{shown_path(path)} holds {what}; only FLUX.1 [dev] and [schnell] ({PIPELINE}) can be run."
    )


def pipeline_of(folder: Path) -> str:
    """The class of what lies in a folder in diffusers' layout. Raises `RequestError` where that cannot be told."""
    return str(read_object(folder / "model_index.json").get("_class_name"))


def part_of(files: Sequence[Path], component: str) -> Found:
    """What the files of a component are. Raises `RequestError` where they are something else."""
    parts = recognise([read_header(file) for file in files])
    for part in parts:
        if part.component == component:
            return part
    others = " and ".join(TITLES[part.component] for part in parts)
    raise RequestError(
        "model", f"{shown_path(files[0])} holds {others}, not the {TITLES[component]} that is needed there."
    )


def component_in(path: Path, component: str) -> Found:
    """A component in a model's folder, in the component's own folder, or in a file.

    Its configuration is config.json's where there is one beside the weights, else what the shapes tell.
    Raises `RequestError` for what is not there or cannot be used.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long, a null byte, links in a circle
        is_folder = is_file = False
    if is_folder:
        folder = path / component if (path / component).is_dir() else path
        files = weight_files(folder)
    elif is_file:
        check_whole(path)
        files = (path,)
    else:
        raise RequestError("model", f"{shown_path(path)} is not there; give a file or a folder with weights.")
    return with_config(part_of(files, component))


def with_config(found: Found, *, trusted: bool = True) -> Found:
    """A part with the configuration in the config.json beside its weights, unless that is another part's.

    Where it says other sizes than the weights it is an error, or, not `trusted`, a part's of another size.
    Raises `RequestError`.
    """
    config = found.files[0].with_name("config.json")
    if found.prefix or found.component not in CLASSES or not config.is_file():
        return found
    said = read_object(config)
    if declared_class(said) != CLASSES[found.component]:
        return found
    telling = [name for name, key in KEYS[found.component].items() if key.told and name in said]
    if not trusted and any(said[name] != found.config[name] for name in telling):
        return found
    values = {**found.config, **{name: value for name, value in said.items() if value is not None}}
    values = checked(values, found.component, config, found.config)
    return replace(found, config=values, said=json.dumps(said, sort_keys=True))


def distilled_config(part: Found) -> dict[str, Any]:
    """DistillT5's configuration: what its shapes tell, and of what they do not tell what a config.json beside says."""
    config = part.files[0].with_name("config.json")
    said = read_object(config) if config.is_file() else {}
    return distill_names.config_from_shapes(part.shapes, said)


def described(
    name: str,
    path: Path,
    configs: dict[str, dict[str, Any]],
    files: dict[str, tuple[Path, ...]],
    *,
    sizes: dict[str, int] | None = None,
    tokenizers: dict[str, Path] | None = None,
    found: dict[str, Found] | None = None,
    preferences: Defaults | None = None,
) -> Model:
    """A model of these parts, with what FLUX.1 of its kind prefers where nothing else is said.

    Raises `RequestError` where the parts do not fit each other. Without `sizes` the files are measured.
    """
    tokenizers, found = tokenizers or {}, found or {}
    sizes = sizes or {component: sum(file.stat().st_size for file in each) for component, each in files.items()}
    sizes |= {component: part.nbytes for component, part in found.items()}
    _check_sizes(path, configs)
    limits = [_tokenizer_limit(tokenizers[part]) if part in tokenizers else MAX_TOKENS for part in TOKENIZERS]
    guided = bool(configs["transformer"].get("guidance_embeds"))
    sample_size = configs["vae"].get("sample_size", 0)
    if not MIN_SIDE <= sample_size <= MAX_SIDE or sample_size % SIDE_MULTIPLE:
        sample_size = FLUX_SIDE
    if preferences is not None and (preferences.guidance is not None) != guided:
        raise _wrong_defaults(path)
    small = "transformer" in found and found["transformer"].eight_bits
    large = "bf16" if not small else "fp8"
    defaults = preferences or Defaults(
        steps=28 if guided else 4,
        width=sample_size,
        height=sample_size,
        guidance=3.5 if guided else None,
        precision="fp32" if sizes["transformer"] < 2**30 and not small else large,
    )
    clip_limit = min(limits[0], configs["text_encoder"]["max_position_embeddings"])
    token_limit = min(limits[1], 512 if guided else 256)
    return Model(name, path, configs, files, sizes, tokenizers, found, defaults, clip_limit, token_limit, sample_size)


def model_hash(model: Model, *, distilled: bool = False) -> str:
    """sha256 over everything that decides pixels: the weights, and every other file of the model's parts.

    Files up to 64 MiB count whole. Of a larger one the size, the first and the last MiB and sixteen samples between
    count, so that a 24 GB model is known in a moment; a change between samples is not seen. `distilled`: of pictures
    whose prompts the smaller text encoder read. Raises `RequestError` where a file cannot be read.
    """
    digest = hashlib.sha256()
    files: dict[str, Path] = {}
    for component, weights in model.files.items():
        if component != DISTILLED or distilled:
            files |= {f"{component}/{file.name}": file for file in weights}
    in_folder = (model.path / "model_index.json").is_file()
    folders = {part: model.path / part for part in (*CLASSES, "scheduler")} if in_folder else {}
    for component, config in sorted(model.configs.items()):  # of a folder they are files
        if distilled if component == DISTILLED else not in_folder:
            said = model.found[component].said if component in model.found else ""
            digest.update(f"[{json.dumps(component)}, {said or json.dumps(config, sort_keys=True)}]".encode())
    for part, folder in {**folders, **model.tokenizers}.items():
        files |= {f"{part}/{file.name}": file for file in folder.glob("*.*") if file.suffix in DESCRIBING}
    for label, file in sorted(files.items()):
        try:
            with open_file(file) as stream:
                size = os.fstat(stream.fileno()).st_size
                digest.update(f"{label}\0{size}\0".encode("utf-8", "surrogateescape"))
                if size <= WHOLE_FILE_BYTES:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
                else:
                    add_samples(digest, stream, size)
        except OSError as error:
            raise unreadable(file, error) from None
    return digest.hexdigest()


def add_samples(digest: hashlib._Hash, stream: BinaryIO, size: int) -> None:
    """Add the first and the last MiB of a file of this size to a hash, and sixteen between them."""
    for sample in range(SAMPLES):
        stream.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
        digest.update(stream.read(SAMPLE_BYTES))


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a component: the shards that an index names, or a whole file.

    Where there are several (`variant="fp16"` is saved beside the plain ones), the first that is complete: plain ones,
    as diffusers takes them, then variants by `VARIANTS`. Raises `RequestError` where there is none, or no telling.
    """
    files = sorted(folder.glob("*.safetensors"))
    whole = [file for file in files if not SHARD.search(file.name)]
    choices = sorted([*folder.glob("*.safetensors.index*.json"), *whole], key=_order)
    if len({_order(choice) for choice in choices[:2]}) < len(choices[:2]) and choices[0] in whole:
        raise RequestError("model", f"{shown_path(folder)} holds {len(whole)} whole files of weights; keep one.")
    problem: RequestError | None = None
    for choice in choices:
        if problem is not None and _order(choice)[:2] == _order(choices[0])[:2]:
            continue  # another variant may be complete; other files of this one are no better
        if choice in whole:
            return (choice,)
        try:
            return _shards(choice)
        except RequestError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    if len(files) == 1:  # a shard, and the only one
        return tuple(files)
    if files:
        raise RequestError("model", f"{shown_path(folder)} holds {len(files)} shards and no index; download it again.")
    if any(file.suffix.lower() in PICKLE_SUFFIXES for file in folder.glob("*")):
        raise RequestError(
            "model", f"{shown_path(folder)} holds pickled weights, which are never loaded; get the safetensors files."
        )
    raise RequestError("model", f"{shown_path(folder)} holds no weights (*.safetensors); download the model again.")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names. Raises `RequestError` for what is no index, or names files that are not there."""
    folder = index.parent
    weight_map = read_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RequestError("model", f"{shown_path(index)} names no shards; download it again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not is_plain_name(name) or not (folder / name).is_file():
            raise RequestError("model", f"{shown_path(folder)} lacks the shard {quoted(name)}; download it again.")
    return tuple(folder / name for name in names)


def _order(file: Path) -> tuple[int, str, bool]:
    """Plain files first, then those of a variant, the best known ones before others; an index before a whole file."""
    found = VARIANT.search(file.name)
    variant = (found[1] or found[2]) if found else ""
    place = VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)
    return place, variant, file.suffix != ".json"


def check_whole(file: Path) -> None:
    """Raises `RequestError` for one of several shards: alone it is no part of a model."""
    if shard := SHARD.search(file.name):
        raise RequestError(
            "model",
            f"{shown_path(file)} is one of {int(shard[1])} shards; give the folder that they are in, "
            f"{shown_path(file.parent)}.",
        )


def _check_sizes(path: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The parts must fit each other: refuse a mixture before gigabytes are read."""
    transformer, vae = configs["transformer"], configs["vae"]
    if transformer["in_channels"] != 4 * vae["latent_channels"]:
        hint = "a Fill, Canny or Depth model" if transformer["in_channels"] in (128, 384) else "a mixture"
        raise RequestError(
            "model",
            f"the transformer in {shown_path(path)} takes {transformer['in_channels']} channels, its VAE gives "
            f"{4 * vae['latent_channels']}: {hint}, which cannot be run.",
        )
    if len(vae["block_out_channels"]) != 4:
        raise RequestError("model", f"the VAE in {shown_path(path)} does not reduce 8 times, as FLUX.1's does.")
    if any(kind != "UpDecoderBlock2D" for kind in vae.get("up_block_types") or ()):
        raise RequestError(
            "model", f"the VAE in {shown_path(path)} has blocks that FLUX.1's has not; get FLUX.1's own."
        )
    widths = (
        ("text_encoder_2", configs["text_encoder_2"]["d_model"], transformer["joint_attention_dim"]),
        ("text_encoder", configs["text_encoder"]["hidden_size"], transformer["pooled_projection_dim"]),
    )
    for component, width, wanted in widths:
        if width != wanted:
            raise RequestError(
                "model", f"{component} in {shown_path(path)} gives width {width}, its transformer takes {wanted}."
            )


def _tokenizer_limit(folder: Path) -> int:
    """The most tokens that a tokenizer says it gives."""
    file = folder / "tokenizer_config.json"
    limit = read_config(file, "tokenizer").get("model_max_length") if file.is_file() else None
    return limit if type(limit) is int and 0 < limit < MAX_TOKENS else MAX_TOKENS


def _preferences(path: Path) -> Defaults | None:
    """Defaults that a model brings along (`t2i.json` beside model_index.json), as the demo model does."""
    file = path / "t2i.json"
    if not file.is_file():
        return None
    values = read_object(file).get("defaults")
    try:
        defaults = Defaults(**values)  # type: ignore[arg-type]
        Request("any", **values)  # type: ignore[arg-type]  # the same ranges hold for what a model prefers
    except (TypeError, RequestError):
        raise _wrong_defaults(path) from None
    incomplete = any(value is None for name, value in values.items() if name != "guidance")  # type: ignore[union-attr]
    if incomplete or defaults.precision not in PRECISIONS:
        raise _wrong_defaults(path)
    return defaults


def _wrong_defaults(path: Path) -> RequestError:
    return RequestError("model", f"{shown_path(path / 't2i.json')} has wrong defaults; delete it.")
