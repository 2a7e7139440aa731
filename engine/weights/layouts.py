"""Which model parts a file of weights holds, in whose layout: told by its header, never by its name.

`recognise` answers that for one file or for the shards of one component; `entries` then says for every tensor that
diffusers and transformers want where its elements lie. Nothing but headers is read; torch is not imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.families.all import FAMILIES, parts
from engine.families.facts import Layout, Part
from engine.families.family import Family
from engine.families.others import OTHERS
from engine.families.rules import Rule
from engine.folders import shown_path
from engine.request import RequestError
from engine.text import quoted
from engine.untrusted import parse_json
from engine.untrusted.headers import Header, TensorInfo, broken

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


class UnknownError(RequestError):
    """A file of weights that is nothing known, and may well be in order."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model part in one file or in several shards. `config` is what its shapes tell, or a config.json beside it."""

    family: Family
    component: str  # the part's name
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
    def part(self) -> Part:
        """What the family says of it."""
        return self.family.part(self.component)

    @property
    def place(self) -> Path:
        """Its file, or the folder of several."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    @property
    def eight_bits(self) -> bool:
        """Whether its weights have 8 bits or fewer, so that more would only be padding."""
        return self.precision.startswith(("fp8", "int8", "Q", "IQ", "TQ"))

    @property
    def is_fp8(self) -> bool:
        """Whether its weights are 8-bit floats."""
        return self.precision.startswith("fp8")


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

    family: Family
    part: Part
    prefix: str
    headers: Sequence[Header]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    scales: dict[str, TensorInfo] = field(default_factory=dict)  # by the name of the scaled tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def layout(self) -> Layout:
        """Whose names these are."""
        return self.family.layout(self.part.name, self.shapes)


def recognise(headers: Sequence[Header], families: Sequence[Family] = FAMILIES) -> list[Found]:
    """The parts in these files, which belong together, of one of the `families`.

    Raises `RequestError` for what is recognised and cannot be used, and for what is not recognised.
    """
    for header in headers:
        if header.metadata.get("t2i_format") and header.metadata.get("form", "").startswith("int8"):
            raise RequestError(
                "model",
                f"{shown_path(header.path)} holds int8 weights from this program's own cache, which are no model: "
                "open the model that they were made of, with --precision int8.",
            )
    return [_found(group) for group in _groups(headers, families)]


def entries(headers: Sequence[Header], component: str, families: Sequence[Family] = FAMILIES) -> dict[str, Entry]:
    """Where each tensor of a part lies, by diffusers' and transformers' names.

    Raises `RequestError` that names the file and the tensor where one is missing, spare or misshapen, as far as that
    follows from the layout.
    """
    for group in _groups(headers, families):
        if group.part.name == component:
            return _entries(group)
    raise RequestError("model", f"{_place(headers)} holds no {parts(families)[component].title}.")


# Which part is which.


def _groups(headers: Sequence[Header], families: Sequence[Family]) -> list[_Group]:
    names = {name: header for header in headers for name in header.tensors}
    _refuse_others(names, headers, families)
    groups = _parts_of(headers, families)
    spare = [] if groups[0].prefix == "" else [group.prefix for group in groups]
    for header in headers:
        for name, info in header.tensors.items():
            group = next((group for group in groups if name.startswith(group.prefix)), None)
            if group is None:
                if groups[0].family.beside(name):
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


def _wrapper(names: Sequence[str], families: Sequence[Family]) -> str:
    """What stands before all names, as torch.compile ("_orig_mod.") and trainers ("module.", "model.") leave it."""
    wrapper = ""
    while names and not _known_parts(names, families):
        first, dot, _ = names[0].partition(".")
        if not dot or not all(name.startswith(first + dot) for name in names):
            return ""
        wrapper += first + dot
        names = [name.removeprefix(first + dot) for name in names]
    return wrapper


def _parts_of(headers: Sequence[Header], families: Sequence[Family]) -> list[_Group]:
    """Which parts files hold, still without their tensors. Raises `RequestError` where no family knows one."""
    infos = {name: info for header in headers for name, info in header.tensors.items()}
    wholes = [groups for family in families if (groups := _parts_by_prefix(infos, headers, family))]
    if wholes:
        return _likeliest(wholes, infos)
    wrapper = _wrapper([*infos], families)
    inside = [name.removeprefix(wrapper) for name in infos]
    alone = [[_Group(*known, wrapper, headers)] for known in _known_parts(inside, families)]
    if not alone:
        raise _unknown(inside, headers, families)
    return _likeliest(alone, infos)


def _parts_by_prefix(names: Collection[str], headers: Sequence[Header], family: Family) -> list[_Group]:
    """The parts of a file that holds everything, as a family calls them."""
    return [
        _Group(family, part, prefix, headers)
        for part in family.parts
        for prefix in part.prefixes
        if any(name.startswith(prefix) for name in names)
    ]


def _likeliest(claims: Sequence[list[_Group]], infos: Mapping[str, TensorInfo]) -> list[_Group]:
    """What files are that several families claim: of the one that tells most of them, whatever order families have.

    Where nothing tells, as of an autoencoder that several have, it is the first by name; a model of another family
    asks for its own.
    """
    if len(claims) == 1:
        return claims[0]

    def order(groups: list[_Group]) -> tuple[int, str]:
        return -sum(_likeness(group, infos) for group in groups), groups[0].family.name

    return min(claims, key=order)


def _likeness(group: _Group, infos: Mapping[str, TensorInfo]) -> int:
    """Of tensors to a part: 1 where its family knows their names, 2 where they also tell the whole configuration."""
    start = len(group.prefix)
    shapes = {name[start:]: info.shape for name, info in infos.items() if name.startswith(group.prefix)}
    if group.family.part_of([*shapes]) != group.part.name:
        return 0
    return 1 if isinstance(group.family.layout(group.part.name, shapes).config, str) else 2


def _unknown(names: Collection[str], headers: Sequence[Header], families: Sequence[Family]) -> UnknownError:
    """What to tell the person about files that no family knows."""
    first = next(iter(names), None)
    known_titles = " or ".join(family.title for family in families)
    what = f"nothing of {known_titles} (its first tensor is {quoted(first)})" if first else "no tensors"
    titles = list(dict.fromkeys(part.title for family in families for part in family.needed))
    return UnknownError("model", f"{_place(headers)} holds {what}; give one of {', '.join(titles)}.")


def _known_parts(names: Sequence[str], families: Sequence[Family]) -> list[tuple[Family, Part]]:
    """Which parts have tensors of these names, of each family at most one."""
    return [(family, family.part(part)) for family in families if (part := family.part_of(names))]


def _refuse_others(names: Mapping[str, Header], headers: Sequence[Header], families: Sequence[Family]) -> None:
    """What is known and cannot be used, by its name, with what to do; a model that is of one of the families can."""
    titles = {family.title for family in families}
    for what, advice, is_it in OTHERS:
        if is_it(names):
            if what in titles:
                return  # what comes after it would take it for something else
            raise RequestError("model", f"{_place(headers)} is {what}, which cannot be run here; {advice}.")


def _found(group: _Group) -> Found:
    layout = group.layout
    if isinstance(layout.config, str):
        error = _missing(group, layout.config)
        raise error if group.part is group.family.core else UnknownError(error.field, str(error))
    warning = group.family.look(group.part.name, [*group.tensors], group.headers)
    bytes_of: Counter[str] = Counter()
    for name, info in group.tensors.items():
        if not group.part.spare.fullmatch(name):
            bytes_of[info.kind] += info.nbytes
    kind = bytes_of.most_common(1)[0][0]
    precision = PRECISIONS.get(kind, kind) + (", scaled" if group.scales and kind in FP8_KINDS else "")
    files = tuple(dict.fromkeys(info.file for info in group.tensors.values()))
    nbytes = sum(bytes_of.values()) + sum(info.nbytes for info in group.scales.values())
    return Found(
        group.family,
        group.part.name,
        _title(group, layout),
        precision,
        files,
        nbytes,
        layout.config,
        group.prefix,
        warning=warning,
        shapes=group.shapes,
    )


def _title(group: _Group, layout: Layout) -> str:
    """The name of a layout, for people."""
    if any(header.gguf for header in group.headers):
        return "GGUF"
    return "all in one" if group.prefix in group.part.prefixes else layout.title


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
    layout = group.layout
    if layout.rules is None:
        return _by_name(group, layout)
    if isinstance(layout.config, str):
        raise _missing(group, layout.config)
    group.tensors = {layout.plain(name): info for name, info in group.tensors.items()}
    return _by_rules(group, layout.rules(layout.config))


def _by_rules(group: _Group, rules: Iterator[Rule]) -> dict[str, Entry]:
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
        if not group.part.spare.fullmatch(name):
            raise RequestError("model", f"{shown_path(info.file)} holds an unknown tensor {quoted(info.name)}.")
    return found


def _is_same_table(info: TensorInfo, rule: Rule) -> bool:
    """A linear layer where the rule has a convolution of one pixel, or the other way round."""
    return len(rule.shape) == 4 and rule.shape[2:] == (1, 1) and info.shape == rule.shape[:2]


def _by_name(group: _Group, layout: Layout) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, info in group.tensors.items():
        if group.part.spare.fullmatch(name):
            continue
        ours = layout.ours(name)
        if ours is None:
            raise RequestError("model", f"{shown_path(info.file)} holds an unknown tensor {quoted(info.name)}.")
        if ours in found:
            raise RequestError(
                "model",
                f"{shown_path(info.file)} holds {quoted(ours)} a second time, as {quoted(info.name)}; remove it.",
            )
        found[ours] = Entry(ours, info.shape, info, ((0, info.count),), group.scales.get(name))
    return found


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
