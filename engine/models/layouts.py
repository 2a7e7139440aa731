"""Which model parts a file of weights holds, in whose layout: told by its header, never by its name.

`recognise` answers that for one file or for the shards of one component; `entries` then says for every tensor that
diffusers and transformers want where its elements lie. Nothing but headers is read; torch is not imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.folders import shown_path
from engine.models import distill_names, naming
from engine.models.headers import Header, TensorInfo, broken
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import parse_json

COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "distill_t5")
TITLES = {
    "transformer": "FLUX.1 transformer",
    "vae": "autoencoder",
    "text_encoder": "CLIP-L",
    "text_encoder_2": "T5-XXL",
    "distill_t5": "DistillT5",
}
# Where files that hold everything keep each part.
PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("vae.", "first_stage_model."),
    "text_encoder": ("text_encoders.clip_l.transformer.", "cond_stage_model.clip_l.transformer."),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.", "cond_stage_model.t5xxl.transformer."),
}
BESIDE = re.compile(
    r"(text_encoders|cond_stage_model)\.(clip_l|t5xxl)\.(logit_scale|transformer\.text_projection\.weight)"
)
SCALES = ("scale_weight", "weight_scale")  # beside "weight"; the second is ours as well
INPUT_SCALES = ("scale_input", "input_scale")  # of activations, which are not rounded here
MARKER, FORMAT_NOTE = "scaled_fp8", "comfy_quant"
FP8_KINDS = ("F8_E4M3", "F8_E5M2")
FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")  # of newer ComfyUI files
PRECISIONS = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8 e4m3",
    "F8_E5M2": "fp8 e5m2",
    "I8": "int8",
    "U8": "8 bits",
}
# Tensors that belong to what a file was made from, not to what is used of it.
SPARE = {
    "transformer": re.compile(r"(?!)"),
    "vae": re.compile(r"loss\..*|model_ema\..*"),
    "text_encoder": re.compile(r".*position_ids|logit_scale|text_projection(\.weight)?|vision_model\..*|visual.*"),
    "text_encoder_2": re.compile(r"decoder\..*|lm_head\.weight|logit_scale|dec\..*|output\.weight|spiece_model"),
    "distill_t5": re.compile(r"(?!)"),
}


class UnknownError(RequestError):
    """A file of weights that is nothing known, and may well be in order."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model part in one file or in several shards. `config` is what its shapes tell, or a config.json beside it."""

    component: str  # one of COMPONENTS
    layout: str  # whose names: "BFL", "diffusers", "transformers", ...
    precision: str  # of most of its bytes, for people: "bf16", "fp8 e4m3, scaled", "Q8_0"
    files: tuple[Path, ...]
    nbytes: int
    config: dict[str, Any]
    prefix: str = ""
    said: str = ""  # all that the config.json says from which `config` is, as JSON; the model's hash is over it
    warning: str = ""  # a sentence
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by the file's names, without the prefix

    @property
    def eight_bits(self) -> bool:
        """Whether its weights have 8 bits or fewer, so that more would only be padding."""
        return self.precision.startswith(("fp8", "int8", "Q", "IQ", "TQ"))


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor by our name: elements of a stored one, piece after piece, with the scale that they are to be times."""

    name: str
    shape: tuple[int, ...]
    stored: TensorInfo
    pieces: tuple[tuple[int, int], ...]  # of the stored tensor's elements, flat
    scale: TensorInfo | None = None  # of the whole tensor, or of each of the stored tensor's rows


@dataclass(slots=True)
class _Group:
    """The tensors of one part by their names without its prefix, companions of quantized weights taken out."""

    component: str
    prefix: str
    headers: Sequence[Header]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    scales: dict[str, TensorInfo] = field(default_factory=dict)  # by the name of the scaled tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}


def recognise(headers: Sequence[Header]) -> list[Found]:
    """The parts in these files, which belong together. Raises `RequestError` for what is recognised and cannot be used,
    and for what is not recognised."""
    for header in headers:
        if header.metadata.get("t2i_format") and header.metadata.get("form", "").startswith("int8"):
            raise RequestError(
                "model",
                f"{shown_path(header.path)} holds int8 weights from this program's own cache, which are no model: "
                "open the model that they were made of, with --precision int8.",
            )
    return [_found(group) for group in _groups(headers)]


def entries(headers: Sequence[Header], component: str) -> dict[str, Entry]:
    """Where each tensor of a component lies, by diffusers' and transformers' names.

    Raises `RequestError` that names the file and the tensor where one is missing, spare or misshapen, as far as that
    follows from the layout.
    """
    for group in _groups(headers):
        if group.component == component:
            return _entries(group)
    raise RequestError("model", f"{_place(headers)} holds no {TITLES[component]}.")


# Which part is which.


def _groups(headers: Sequence[Header]) -> list[_Group]:
    names = {name: header for header in headers for name in header.tensors}
    _refuse_others(names, headers)
    prefixed = [
        (component, prefix)
        for component, prefixes in PREFIXES.items()
        for prefix in prefixes
        if any(name.startswith(prefix) for name in names)
    ]
    groups = [_Group(component, prefix, headers) for component, prefix in prefixed]
    if not groups:
        wrapper = _wrapper([*names])
        inside = {name.removeprefix(wrapper): header for name, header in names.items()}
        groups = [_Group(_component(inside, headers), wrapper, headers)]
    spare = [] if groups[0].prefix == "" else [group.prefix for group in groups]
    for header in headers:
        for name, info in header.tensors.items():
            group = next((group for group in groups if name.startswith(group.prefix)), None)
            if group is None:
                if BESIDE.fullmatch(name):
                    continue
                raise RequestError(
                    "model",
                    f"{shown_path(header.path)} holds an unknown tensor {quoted(name)} beside {', '.join(spare)}.",
                )
            own = name.removeprefix(group.prefix)
            if own in group.tensors:
                raise twice(name, group.tensors[own].file, header.path)
            group.tensors[own] = info
    for group in groups:
        _take_companions(group)
    return groups


def _wrapper(names: Sequence[str]) -> str:
    """What stands before all names, as torch.compile ("_orig_mod.") and trainers ("module.", "model.") leave it."""
    wrapper = ""
    while names and not _part(names):
        first, dot, _ = names[0].partition(".")
        if not dot or not all(name.startswith(first + dot) for name in names):
            return ""
        wrapper += first + dot
        names = [name.removeprefix(first + dot) for name in names]
    return wrapper


def _component(names: Mapping[str, Header], headers: Sequence[Header]) -> str:
    """Of a file that holds one part. Raises `RequestError`."""
    if part := _part([*names]):
        return part
    first = next(iter(names), None)
    what = f"nothing of FLUX.1 (its first tensor is {quoted(first)})" if first else "no tensors"
    raise UnknownError(
        "model", f"{_place(headers)} holds {what}; give a FLUX.1 transformer, an autoencoder, CLIP-L or T5."
    )


def _part(names: Sequence[str]) -> str:
    """Which part has tensors of these names; "" where none has."""

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if has("double_blocks.", "single_blocks.", "single_transformer_blocks."):  # transformer_blocks are others', too
        return "transformer"
    if has("final_projection."):
        return "distill_t5"
    if has("encoder.block.", "enc.blk."):
        return "text_encoder_2"
    if has("text_model.", "encoder.layers.", "transformer.resblocks."):
        return "text_encoder"
    if has("decoder.up.", "decoder.up_blocks.", "decoder.mid"):
        return "vae"
    return ""


def _refuse_others(names: Mapping[str, Header], headers: Sequence[Header]) -> None:
    """What is known and cannot be used, by its name, with what to do."""
    for what, advice, is_it in OTHERS:
        if is_it(names):
            raise RequestError("model", f"{_place(headers)} is {what}, which cannot be run here; {advice}.")


def _ends(*ends: str) -> Callable[[Mapping[str, Header]], bool]:
    return lambda names: any(name.endswith(ends) for name in names)


def _holds(*parts: str) -> Callable[[Mapping[str, Header]], bool]:
    return lambda names: any(part in name for name in names for part in parts)


def _width_of_input(*widths: int) -> Callable[[Mapping[str, Header]], bool]:
    def is_it(names: Mapping[str, Header]) -> bool:
        for name, header in names.items():
            if name.endswith(("img_in.weight", "x_embedder.weight")) and "pos_embed" not in name:
                shape = header.tensors[name].shape
                return len(shape) == 2 and shape[1] in widths
        return False

    return is_it


TAKE_DEV = "take FLUX.1 [dev] or [schnell]"
OTHERS: tuple[tuple[str, str, Callable[[Mapping[str, Header]], bool]], ...] = (
    (
        "quantized to 4 bits by bitsandbytes (NF4 or FP4)",
        "take the FP8, Q8_0 or BF16 file of the model",
        _holds(".absmax", ".quant_map", "bitsandbytes__"),
    ),
    (
        "quantized to 4 bits by SVDQuant (Nunchaku)",
        "take the FP8, Q8_0 or BF16 file of the model",
        _ends(".qweight", ".wscales", ".wtscale", ".proj_down", ".lora_down", ".smooth_factor", ".smooth"),
    ),
    (
        "quantized to 8 bits by bitsandbytes (LLM.int8)",
        "take the FP8, Q8_0 or BF16 file of the model",
        _ends(".SCB", ".weight_format"),
    ),
    (
        "quantized in NVFP4 or with input scales folded in",
        "take the FP8, Q8_0 or BF16 file of the model",
        _ends(".weight_scale_2", ".pre_quant_scale"),
    ),
    (
        "a LoRA, not a model",
        "LoRAs cannot be used yet",
        _holds(".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", "lora_unet_", "lora_te", ".lokr_", ".hada_w"),
    ),
    ("FLUX.2", TAKE_DEV, _holds("double_stream_modulation_img", "single_stream_modulation")),
    ("Chroma", TAKE_DEV, _holds("distilled_guidance_layer.")),
    ("HunyuanVideo", TAKE_DEV, _holds("individual_token_refiner.")),
    ("a ControlNet", TAKE_DEV, _holds("controlnet_", "control_model.", "input_hint_block")),
    ("an IP-Adapter or Redux", TAKE_DEV, _holds("image_proj.", "ip_adapter", "redux_up", "redux_down")),
    ("FLUX.1 Fill", TAKE_DEV, _width_of_input(384)),
    ("FLUX.1 Canny or Depth", TAKE_DEV, _width_of_input(128)),
    ("a tiny autoencoder for previews (TAESD)", "take FLUX.1's own, ae.safetensors", _holds("decoder.layers.3.conv.")),
    ("Stable Diffusion 3", TAKE_DEV, _holds("joint_blocks.")),
    (
        "Stable Diffusion XL",
        TAKE_DEV,
        _holds("conditioner.embedders.1.", "add_embedding.linear_1", "diffusion_model.label_emb."),
    ),
    (
        "Stable Diffusion",
        TAKE_DEV,
        _holds("input_blocks.", "down_blocks.0.attentions.", "cond_stage_model.transformer."),
    ),
    (
        "umT5, another model's text encoder",
        "take T5-XXL (t5xxl)",
        _holds("encoder.block.1.layer.0.SelfAttention.relative_attention_bias", "enc.blk.1.attn_rel_b"),
    ),
)


def _found(group: _Group) -> Found:
    layout, config = _layout(group)
    if isinstance(config, str):
        error = _missing(group, config)
        raise error if group.component == "transformer" else UnknownError(error.field, str(error))
    warning = ""
    if group.component == "transformer":
        warning = _kontext(group)
        if group.headers and _is_modulation_free(group):
            raise RequestError("model", f"{_place(group.headers)} is a FLUX.1 of another build; {TAKE_DEV}.")
    bytes_of: Counter[str] = Counter()
    for name, info in group.tensors.items():
        if not SPARE[group.component].fullmatch(name):
            bytes_of[info.kind] += info.nbytes
    kind = bytes_of.most_common(1)[0][0]
    precision = PRECISIONS.get(kind, kind) + (", scaled" if group.scales and kind in FP8_KINDS else "")
    files = tuple(dict.fromkeys(info.file for info in group.tensors.values()))
    nbytes = sum(bytes_of.values()) + sum(info.nbytes for info in group.scales.values())
    return Found(
        group.component, layout, precision, files, nbytes, config, group.prefix, warning=warning, shapes=group.shapes
    )


def _layout(group: _Group) -> tuple[str, dict[str, Any] | str]:
    """Whose names a part has, and its configuration or the name of a tensor that it lacks."""
    shapes = group.shapes
    gguf = any(header.gguf for header in group.headers)
    by_prefix = "all in one" if group.prefix in PREFIXES.get(group.component, ()) else ""
    match group.component:
        case "transformer" if _is_bfl(group):
            return "GGUF" if gguf else by_prefix or "BFL", naming.bfl_config(_plain_norms(shapes))
        case "transformer":
            return by_prefix or "diffusers", naming.diffusers_config(shapes)
        case "vae" if _is_ldm(group):
            return by_prefix or "BFL", naming.ldm_config(shapes)
        case "vae":
            return by_prefix or "diffusers", naming.diffusers_vae_config(shapes)
        case "text_encoder" if _is_openai(group):
            return by_prefix or "OpenAI", naming.openai_clip_config(shapes)
        case "text_encoder":
            plain = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
            return by_prefix or "transformers", naming.clip_config(plain)
        case "text_encoder_2":
            ours = {naming.t5_name(name): shape for name, shape in shapes.items()}
            return "GGUF" if gguf else by_prefix or "transformers", naming.t5_config(ours)
    return "DistillT5", distill_names.config_from_shapes(shapes)


def _is_bfl(group: _Group) -> bool:
    return any(name.startswith(("double_blocks.", "single_blocks.")) for name in group.tensors)


def _is_ldm(group: _Group) -> bool:
    return any(name.startswith(("decoder.up.", "encoder.down.", "decoder.mid.")) for name in group.tensors)


def _is_openai(group: _Group) -> bool:
    return any(name.startswith("transformer.resblocks.") for name in group.tensors)


def _is_modulation_free(group: _Group) -> bool:
    """Whether a transformer has blocks and no modulation at all, as pruned builds have."""
    return not any("mod" in name or ("norm" in name and "linear" in name) for name in group.tensors)


def _kontext(group: _Group) -> str:
    """Refuses Kontext where the file says so itself; a warning where only its name does."""
    for header in group.headers:
        said = " ".join(
            value[:300] for key, value in header.metadata.items() if key.startswith(("modelspec.", "general."))
        )
        if "kontext" in said.lower():
            raise RequestError(
                "model", f"{shown_path(header.path)} is FLUX.1 Kontext, which cannot be run here; {TAKE_DEV}."
            )
        if "kontext" in header.path.name.lower():
            return (
                f"{quoted(header.path.name)} sounds like FLUX.1 Kontext, which edits pictures; its tensors are "
                f"those of "
                "[dev], so it is run as [dev]."
            )
    return ""


# Quantized weights and their companions.


def _take_companions(group: _Group) -> None:
    """Move scales out of the tensors and drop notes about them; refuse what would give other weights if ignored."""
    notes = [name for name in group.tensors if name.rpartition(".")[2] in (MARKER, FORMAT_NOTE, *INPUT_SCALES)]
    told = {name.removesuffix(f".{FORMAT_NOTE}") for name in notes if name.endswith(f".{FORMAT_NOTE}")}
    told |= {layer.removeprefix(group.prefix) for layer in _formats_in_metadata(group.headers)}
    marked = any(name == MARKER for name in notes)
    for name in notes:
        del group.tensors[name]
    for name in list(group.tensors):
        path, _, leaf = name.rpartition(".")
        if leaf not in SCALES or f"{path}.weight" not in group.tensors:
            continue
        info, weight = group.tensors.pop(name), group.tensors[f"{path}.weight"]
        if f"{path}.weight" in group.scales:
            raise RequestError("model", f"{shown_path(info.file)} holds two scales for '{path}.weight'; remove one.")
        if weight.kind not in FP8_KINDS and not (weight.kind == "I8" and _is_ours(group)):
            raise RequestError(
                "model",
                f"{quoted(info.name)} in {shown_path(info.file)} is the scale of a weight in "
                f"{PRECISIONS.get(weight.kind, '?')}; "
                "only FP8 weights with scales can be read.",
            )
        rows = weight.shape[0] if weight.shape else 1
        if info.count not in (1, rows) or info.kind not in ("F32", "F16", "BF16", "F64"):
            raise RequestError(
                "model",
                f"{quoted(info.name)} in {shown_path(info.file)} has shape {list(info.shape)}, "
                f"a scale has one number, or one for each of {rows} rows.",
            )
        group.scales[f"{path}.weight"] = info
    if group.scales or marked or told:
        for name, info in group.tensors.items():
            wanted = name.removesuffix(".weight") in told or ("block" in name and len(info.shape) == 2)
            if wanted and info.kind in FP8_KINDS and name not in group.scales and "relative_att" not in name:
                lacking = f"{info.name.removesuffix('.weight')}.{_scale_leaf(group)}"
                raise RequestError(
                    "model", f"{shown_path(info.file)} lacks {quoted(lacking)}, the scale of {quoted(info.name)}."
                )


def _is_ours(group: _Group) -> bool:
    """Whether this program converted these weights: of whole numbers in other files nobody knows how they were made."""
    return any("t2i_format" in header.metadata for header in group.headers)


def _scale_leaf(group: _Group) -> str:
    return next((info.name.rpartition(".")[2] for info in group.scales.values()), SCALES[0])


def _formats_in_metadata(headers: Sequence[Header]) -> Iterator[str]:
    """Layers whose quantization a file's metadata tell, checked."""
    for header in headers:
        try:
            layers = parse_json(header.metadata.get("_quantization_metadata", "{}").encode()).get("layers", {})
            found = [(str(layer), dict(said)) for layer, said in layers.items()]
        except (ValueError, TypeError, AttributeError):  # a MalformedError is a ValueError
            raise broken(header.path, "its metadata is not what it should be") from None
        for layer, said in found:
            check_format(said, layer, header.path)
            yield layer


def format_notes(headers: Sequence[Header]) -> Iterator[TensorInfo]:
    """Small tensors in which newer ComfyUI files say how a layer is quantized; see `check_format`."""
    for header in headers:
        yield from (info for name, info in header.tensors.items() if name.endswith(f".{FORMAT_NOTE}"))


def check_format(said: Mapping[str, Any], layer: str, file: Path) -> None:
    """Raises `RequestError` for a layer that is quantized in a way that cannot be read."""
    kind = str(said.get("format"))
    rotated = any("rot" in str(key).lower() and value for key, value in said.items())
    if kind not in FP8_FORMATS or rotated:
        raise RequestError(
            "model",
            f"{quoted(layer)} in {shown_path(file)} is quantized as "
            f"{quoted(kind, 40)}{', rotated' if rotated else ''}; of "
            f"these formats {' and '.join(FP8_FORMATS)} can be read.",
        )


# Which element goes where.


def _entries(group: _Group) -> dict[str, Entry]:
    if group.component == "transformer" and _is_bfl(group):
        group.tensors = {_plain_norm(name): info for name, info in group.tensors.items()}
        rules = naming.bfl_rules
    elif group.component == "vae" and _is_ldm(group):
        rules = naming.ldm_rules
    elif group.component == "text_encoder" and _is_openai(group):
        rules = naming.openai_clip_rules
    else:
        return _by_name(group)
    _, config = _layout(group)
    if isinstance(config, str):
        raise _missing(group, config)
    return _by_rules(group, rules(config))


def _by_rules(group: _Group, rules: Iterator[naming.Rule]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    left = dict(group.tensors)
    for rule in rules:
        info = left.pop(rule.stored, None)
        if info is None:
            raise _missing(group, rule.stored)
        if info.shape != rule.shape and not _is_same_table(info, rule):
            raise RequestError(
                "model",
                f"{quoted(info.name)} in {shown_path(info.file)} has shape {list(info.shape)}, "
                f"the model needs {list(rule.shape)}.",
            )
        width = info.count // max(1, rule.shape[0])
        for target in rule.targets:
            pieces = tuple((start * width, stop * width) for start, stop in target.rows)
            found[target.name] = Entry(target.name, target.shape, info, pieces, group.scales.get(rule.stored))
    for name, info in left.items():
        if not SPARE[group.component].fullmatch(name):
            raise RequestError("model", f"{shown_path(info.file)} holds an unknown tensor {quoted(info.name)}.")
    return found


def _is_same_table(info: TensorInfo, rule: naming.Rule) -> bool:
    """A linear layer where the rule has a convolution of one pixel, or the other way round."""
    return len(rule.shape) == 4 and rule.shape[2:] == (1, 1) and info.shape == rule.shape[:2]


def _by_name(group: _Group) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, info in group.tensors.items():
        if SPARE[group.component].fullmatch(name):
            continue
        ours: str | None = name
        if group.component == "text_encoder":
            ours = name.removeprefix("text_model.")
        elif group.component == "text_encoder_2":
            ours = naming.t5_name(name)
        elif group.component == "distill_t5":
            ours = distill_names.canonical_name(name)
        if ours is None:
            raise RequestError("model", f"{shown_path(info.file)} holds an unknown tensor {quoted(info.name)}.")
        if ours in found:
            raise RequestError(
                "model",
                f"{shown_path(info.file)} holds {quoted(ours)} a second time, as {quoted(info.name)}; remove it.",
            )
        found[ours] = Entry(ours, info.shape, info, ((0, info.count),), group.scales.get(name))
    return found


def _plain_norm(name: str) -> str:
    """Newer programs call the query's and the key's normalization `weight`."""
    return name.removesuffix("weight") + "scale" if name.endswith(("query_norm.weight", "key_norm.weight")) else name


def _plain_norms(shapes: naming.Shapes) -> dict[str, tuple[int, ...]]:
    return {_plain_norm(name): shape for name, shape in shapes.items()}


def _missing(group: _Group, name: str) -> RequestError:
    return RequestError(
        "model", f"{_place(group.headers)} lacks the tensor {quoted(group.prefix + name)}; download it again."
    )


def twice(name: str, first: Path, second: Path) -> RequestError:
    """What to tell the person about shards that do not belong together."""
    return RequestError(
        "model", f"{quoted(name)} is both in {shown_path(first)} and in {shown_path(second)}; download the model again."
    )


def _place(headers: Sequence[Header]) -> str:
    """The file, or the folder of several."""
    paths = [header.path for header in headers]
    return shown_path(paths[0] if len(paths) == 1 else paths[0].parent)
