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
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.families.all import FAMILIES, family_of_pipeline, parts
from engine.families.facts import Size
from engine.families.family import Family
from engine.families.others import PIPELINES
from engine.folders import shown_path
from engine.precision import EIGHT_BITS, PRECISIONS
from engine.request import (
    MAX_SIDE,
    MIN_SIDE,
    SIDE_MULTIPLE,
    Defaults,
    Request,
    RequestError,
    Resolved,
)
from engine.text import quoted
from engine.untrusted import MAX_INDEX_BYTES, is_plain_name, open_file, read_object
from engine.untrusted.configs import SCHEDULER, TOKENIZER, checked, declared_class, read_config
from engine.untrusted.headers import PICKLE_SUFFIXES, read_header, unreadable
from engine.weights.layouts import Found, recognise

if TYPE_CHECKING:
    from engine.quantization.salience import Input

SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})(?:\.[A-Za-z0-9_]+)?\.safetensors$")
# diffusers' and transformers' names of a variant: model.fp16.safetensors, model.safetensors.index.fp16.json
VARIANT = re.compile(
    r"^(?:diffusion_pytorch_model|model)\.(?:safetensors\.index\.)?(?!safetensors)([A-Za-z0-9_]+)\.(?:safetensors|json)$"
    r"|\.safetensors\.index\.([A-Za-z0-9_]+)\.json$"
)
VARIANTS = ("", "bf16", "fp16", "fp32")  # in the order in which they are taken
DESCRIBING = (".json", ".txt", ".model")  # configurations and vocabularies
MIN_MANY_SIZES = 512  # pixels: a model that was made for fewer knows that size alone
MAX_TOKENS = 4096  # more is no limit: tokenizers write 10^30 where they have none
SAMPLE_BYTES, SAMPLES = 2**20, 18
WHOLE_FILE_BYTES = 64 * 2**20  # larger files are sampled for the model's hash


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model: configurations, files, and bytes of the weights, by component.

    A published model whose weights are not here has no files: it can be planned and simulated, not run.
    """

    family: Family
    name: str
    path: Path  # its folder, or the transformer's file
    configs: dict[str, dict[str, Any]]
    files: dict[str, tuple[Path, ...]]
    bytes: dict[str, int]
    tokenizers: dict[str, Path]  # folders
    found: dict[str, Found]  # what the files of a component are, where they were looked at
    defaults: Defaults
    limits: dict[str, int]  # tokens that it was made for and a tokenizer gives, by tokenizer
    sample_size: int  # pixels a side that the model was made for
    elsewhere: tuple[str, ...] = ()  # a sentence for each part that was taken from where it is not the model's own

    @property
    def has_weights(self) -> bool:
        return bool(self.files)

    @property
    def inputs(self) -> list[Input]:
        """What the 8-bit layers of its core are given, by what is balanced together. torch is imported."""
        return self.family.networks.inputs(self.configs[self.family.core.name])

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that pictures of it can be asked for in."""
        return tuple(each for each in PRECISIONS if each not in EIGHT_BITS or each in self.family.core.forms)

    @property
    def max_side(self) -> int:
        """Twice what the model was made for, in pixels."""
        return 2 * self.sample_size

    def size_note(self, request: Resolved) -> str | None:
        """A sentence where the model does not know the request's size: FLUX.1 knows many, a small one its own."""
        side, size = self.sample_size, (request.width, request.height)
        if side >= MIN_MANY_SIZES or size == (side, side):
            return None
        return (
            f"{self.name} was made for {side}x{side} pixels; at {size[0]}x{size[1]} things may be repeated or cut off."
        )

    def limit_of(self, encoder: str) -> int:
        """Tokens that a text encoder takes."""
        return self.limits[self.family.tokenizer_of(encoder).name]

    def size(self, request: Resolved) -> Size:
        """The geometry of a complete request's picture."""
        return self.family.size(self.configs, self.limits, request.width, request.height)

    @property
    def distills(self) -> bool:
        """Whether a smaller text encoder can take another's place."""
        return any(part.takes_place_of and part.name in self.configs for part in self.family.parts)

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
    family = _family_of(path)
    configs: dict[str, dict[str, Any]] = {}
    files: dict[str, tuple[Path, ...]] = {}
    found: dict[str, Found] = {}
    for part in family.parts:
        folder = path / part.name
        if part.takes_place_of and not folder.is_dir():
            continue
        if part.network:
            read_object(folder / "config.json")  # what is missing is said of the smallest file first
        files[part.name] = weight_files(folder)
        found[part.name] = part_of(files[part.name], part.name, [family])
        configs[part.name] = config_beside(found[part.name], folder / "config.json")
    configs["scheduler"] = read_config(path / "scheduler" / "scheduler_config.json", SCHEDULER)
    if family.index.keys:
        configs["index"] = read_config(path / "model_index.json", family.index)
    for tokenizer in family.tokenizers:
        if not has_tokenizer(path / tokenizer.name):
            raise RequestError("model", f"{shown_path(path)} has no {tokenizer.name}; copy it from the original model.")
    return described(
        family,
        name,
        path,
        configs,
        files,
        tokenizers={tokenizer.name: path / tokenizer.name for tokenizer in family.tokenizers},
        found=found,
        preferences=_preferences(path),
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    with suppress(OSError):
        return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model"))
    return False


def _family_of(path: Path) -> Family:
    """Of what a folder holds. Raises `RequestError` for another model. Whatever class it names, the tensors decide."""
    pipeline = pipeline_of(path)
    if family := family_of_pipeline(pipeline):
        return family
    if pipeline.isidentifier() and pipeline not in PIPELINES:  # other programs and trainers have classes of their own
        for family in FAMILIES:
            with suppress(RequestError):
                part_of(weight_files(path / family.core.name), family.core.name, [family])
                return family
    what = f"{PIPELINES[pipeline]} (a {quoted(pipeline)})" if pipeline in PIPELINES else f"a {quoted(pipeline)}"
    known = ", ".join(variant.title for family in FAMILIES for variant in family.variants)
    raise RequestError("model", f"{shown_path(path)} holds {what}; only {known} can be run.")


def pipeline_of(folder: Path) -> str:
    """The class of what lies in a folder in diffusers' layout. Raises `RequestError` where that cannot be told."""
    return str(read_object(folder / "model_index.json").get("_class_name"))


def part_of(files: Sequence[Path], component: str, families: Sequence[Family] = FAMILIES) -> Found:
    """What the files of a component are. Raises `RequestError` where they are something else."""
    found = recognise([read_header(file) for file in files], families)
    for each in found:
        if each.component == component:
            return each
    others = " and ".join(each.part.title for each in found)
    wanted = parts(families)[component].title
    raise RequestError("model", f"{shown_path(files[0])} holds {others}, not the {wanted} that is needed there.")


def component_in(path: Path, component: str, families: Sequence[Family] = FAMILIES) -> Found:
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
    return with_config(part_of(files, component, families))


def with_config(found: Found, *, trusted: bool = True) -> Found:
    """A part with the configuration in the config.json beside its weights, unless that is another part's.

    Where it says other sizes than the weights it is an error, or, not `trusted`, a part's of another size.
    Raises `RequestError`.
    """
    config, part = found.files[0].with_name("config.json"), found.part
    if found.prefix or not part.network or not config.is_file():
        return found
    said = read_object(config)
    if declared_class(said) != part.network:
        return found
    telling = [name for name, key in part.keys.keys.items() if key.told and name in said]
    if not trusted and any(said[name] != found.config[name] for name in telling):
        return found
    values = {**found.config, **{name: value for name, value in said.items() if value is not None}}
    values = checked(values, part.keys, config, found.config)
    return replace(found, config=values, said=json.dumps(said, sort_keys=True))


def config_beside(found: Found, file: Path) -> dict[str, Any]:
    """A part's configuration by the config.json of its folder, and by its shapes. Raises `RequestError`."""
    if not found.part.network:  # what its shapes do not tell is asked of the file, if there is one
        return found.family.config(found.component, found.shapes, read_object(file) if file.is_file() else {})
    return checked(
        found.family.said(found.component, read_object(file), found.config), found.part.keys, file, found.config
    )


def config_of(found: Found) -> dict[str, Any]:
    """A part's configuration, wherever it lies. Raises `RequestError`."""
    return found.config if found.part.network else config_beside(found, found.files[0].with_name("config.json"))


def described(
    family: Family,
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
    """A model of these parts, with what models of its kind prefer where nothing else is said.

    Raises `RequestError` where the parts do not fit each other. Without `sizes` the files are measured.
    """
    tokenizers, found, core = tokenizers or {}, found or {}, family.core.name
    sizes = sizes or {component: sum(file.stat().st_size for file in each) for component, each in files.items()}
    sizes |= {component: part.nbytes for component, part in found.items()}
    for part in family.needed:
        if part.name in configs and (wrong := family.misfit(part.name, configs[part.name], configs[core])):
            raise RequestError("model", f"{part.title} in {shown_path(path)} {wrong}; the parts are a mixture.")
    traits = family.traits(configs)
    limits = {
        part.name: min(_tokenizer_limit(tokenizers.get(part.name)), traits.tokens[part.name])
        for part in family.tokenizers
    }
    side = traits.side
    if not MIN_SIDE <= side <= MAX_SIDE or side % SIDE_MULTIPLE:
        side = family.side
    if preferences is not None and (preferences.guidance is None) != (traits.guidance is None):
        raise _wrong_defaults(path)
    small = core in found and found[core].eight_bits
    large = "bf16" if not small else "fp8"
    defaults = preferences or Defaults(
        steps=traits.steps,
        width=side,
        height=side,
        guidance=traits.guidance,
        precision="fp32" if sizes[core] < 2**30 and not small else large,
        cfg=traits.cfg,
    )
    return Model(family, name, path, configs, files, sizes, tokenizers, found, defaults, limits, side)


def model_hash(model: Model, *, distilled: bool = False) -> str:
    """sha256 over everything that decides pixels: the weights, and every other file of the model's parts.

    Files up to 64 MiB count whole. Of a larger one the size, the first and the last MiB and sixteen samples between
    count, so that a 24 GB model is known in a moment; a change between samples is not seen. `distilled`: of pictures
    whose prompts the smaller text encoder read. Raises `RequestError` where a file cannot be read.
    """
    digest = hashlib.sha256()
    files: dict[str, Path] = {}
    for component, weights in model.files.items():
        if distilled or not model.family.part(component).takes_place_of:
            files |= {f"{component}/{file.name}": file for file in weights}
    in_folder = (model.path / "model_index.json").is_file()
    needed = [part.name for part in model.family.needed]
    folders = {part: model.path / part for part in (*needed, "scheduler")} if in_folder else {}
    for component, config in sorted(model.configs.items()):  # of a folder they are files
        if not in_folder if component in (*needed, "scheduler") else distilled:
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


def _tokenizer_limit(folder: Path | None) -> int:
    """The most tokens that a tokenizer says it gives."""
    file = folder / "tokenizer_config.json" if folder else None
    limit = read_config(file, TOKENIZER).get("model_max_length") if file and file.is_file() else None
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
