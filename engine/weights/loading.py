"""diffusers' and transformers' own modules without weights, and which stored tensors they need."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device

from engine.families.networks import Networks
from engine.folders import shown_path
from engine.request import RequestError
from engine.text import quoted
from engine.weights.model import Model, component_in, config_of
from engine.weights.reading import WeightFiles


def load(path: str | Path, part: str, dtype: torch.dtype = torch.float32) -> Any:
    """The network of a part on the CPU in `dtype`, from any layout: a model's folder, the part's own, or a file.

    The configuration comes from config.json, or from the file's shapes where there is none. Takes the memory of the
    network and of a few MB. Raises `RequestError` that names the file and the tensor where it cannot be used.
    """
    found = component_in(Path(path).expanduser(), part)
    networks = found.family.networks
    module = _empty(networks, part, config_of(found), found.place).eval()
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    with WeightFiles.open(found.files, part, True, [found.family]) as files:
        names = check_tensors(wanted, files, found.place, networks, part)
        for name in wanted.keys() - networks.tied(part).keys():
            memory = torch.empty(wanted[name], dtype=dtype)
            files.read(names[name], memory)
            set_module_tensor_to_device(module, name, "cpu", value=memory, dtype=dtype)
            for other, source in networks.tied(part).items():
                if source == name:
                    set_module_tensor_to_device(module, other, "cpu", value=memory, dtype=dtype)
    return module.requires_grad_(False)


def empty_component(model: Model, component: str) -> Any:
    """The component's module with its real configuration and no weights (parameters on the meta device)."""
    return _empty(model.family.networks, component, model.configs[component], model.path)


def _empty(networks: Networks, part: str, config: Mapping[str, Any], place: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return networks.build(part, config)
    except Exception as error:  # what a wrong configuration may cause in three libraries, though its values are allowed
        raise RequestError(
            "model", f"the configuration of {part} in {shown_path(place)} is wrong: {quoted(_line(error))}."
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_tensors(
    wanted: Mapping[str, tuple[int, ...]], files: WeightFiles, place: Path, networks: Networks, part: str
) -> dict[str, str]:
    """The name in `files` of every tensor that a component wants (shapes by name); nothing is read.

    Raises `RequestError` that names the file (or the `place` of all) and the tensor where something is missing, spare
    or misshapen.
    """
    names: dict[str, str] = {}
    for ours, tensor in files.tensors.items():
        name = networks.current_name(part, ours, wanted)
        if name not in wanted:
            raise RequestError("model", f"{shown_path(tensor.file)} holds an unknown tensor {quoted(tensor.stored)}.")
        if tensor.shape != wanted[name]:
            raise RequestError(
                "model",
                f"{quoted(tensor.stored)} in {shown_path(tensor.file)} has shape {list(tensor.shape)}, "
                f"the model needs {list(wanted[name])}.",
            )
        if not tensor.dtype.is_floating_point:
            raise RequestError(
                "model",
                f"{quoted(tensor.stored)} in {shown_path(tensor.file)} holds whole numbers, where weights belong.",
            )
        names[name] = ours
    for name, source in networks.tied(part).items():
        if name in wanted and (name in names or source in names):
            names.setdefault(name, names.get(source, ""))
            names.setdefault(source, names[name])
    missing = sorted(wanted.keys() - names.keys())
    if missing:
        raise RequestError(
            "model",
            f"{shown_path(place)} lacks {len(missing)} tensors, the first is {quoted(missing[0])}; download it again.",
        )
    return names
