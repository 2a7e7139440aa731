"""Models of any size with random weights, in diffusers' folder layout, written in bounded memory; and what processes
take of the host's memory: what the benchmarks share."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.demo.vocabulary import clip_tokenizer, t5_tokenizer
from engine.families.flux1 import FLUX1
from engine.families.flux1 import published as flux1
from engine.library.catalog import published
from engine.precision import Precision
from engine.quantization.fp8 import SCALE_SUFFIX
from engine.weights.forms import Form
from engine.weights.loading import empty_component
from engine.weights.model import described

MIB, GIB = 2**20, 2**30
NOISE_BYTES = 32 * MIB  # written over and over, from another place each time
SPREAD = 0.02  # of the random weights, as trained ones have it
SCALE_OF_8_BITS = 2.0**-10  # so that they are within +-127 as a rule
KINDS = {"fp8": "F8_E4M3", "int8": "I8"}  # of stored weights, by form
BYTES_OF_KINDS = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I8": 1}
FILES = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}

Configs = dict[str, dict[str, Any]]
PARTS = {part.name: part.network for part in FLUX1.needed}


def flux_configs(name: str = flux1.DEV, *, double: int = 19, single: int = 38, t5_layers: int = 24) -> Configs:
    """FLUX.1's configurations with this many blocks and layers."""
    configs = {part: dict(config) for part, config in published(name).configs.items()}
    configs["transformer"] |= {"num_layers": double, "num_single_layers": single}
    configs["text_encoder_2"]["num_layers"] = t5_layers
    return configs


def medium_configs() -> Configs:
    """FLUX.1's proportions at a third of its width: a transformer of 300 million parameters."""
    configs = flux_configs(flux1.SCHNELL, double=5, single=7, t5_layers=4)
    configs["transformer"] |= {"num_attention_heads": 8, "joint_attention_dim": 1024}
    configs["text_encoder"]["num_hidden_layers"] = 6
    configs["text_encoder_2"] |= {"d_model": 1024, "d_ff": 2560, "num_heads": 16}
    configs["vae"] |= {"block_out_channels": [32, 64, 128, 128], "sample_size": 512}
    return configs


def small_configs() -> Configs:
    """FLUX.1's kind with a few million parameters, most of them in the transformer, for rehearsals."""
    configs = flux_configs(double=4, single=8, t5_layers=2)
    configs["transformer"] |= {
        "num_attention_heads": 8,
        "attention_head_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "axes_dims_rope": [8, 12, 12],
    }
    clip = {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64, "num_attention_heads": 2}
    configs["text_encoder"] |= {**clip, "num_hidden_layers": 2}
    configs["text_encoder_2"] |= {"d_model": 64, "d_ff": 160, "num_heads": 1}
    configs["vae"] |= {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 8, "sample_size": 256}
    return configs


def bf16_bytes(configs: Configs) -> int:
    """What a model of these configurations takes on disk."""
    return sum(2 * math.prod(shape) for component in PARTS for shape in stored_shapes(configs, component).values())


def stored_shapes(configs: Configs, component: str) -> dict[str, tuple[int, ...]]:
    """The tensors that a component's file holds."""
    folder = described(FLUX1, "random", Path("random"), configs, {}, sizes=dict.fromkeys(PARTS, 0))
    state = empty_component(folder, component).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in FLUX1.networks.tied(component)}


def write_model(folder: Path, configs: Configs, *, form: str | None = None, seed: int = 0) -> Path:
    """A model folder with random bf16 weights, and the demo's tokenizers with FLUX.1's limits; returns the folder.

    With a `form`, "fp8" or "int8", the transformer has it already, and T5 is in FP8, so that nothing is converted. A
    model that is there already is left as it is.
    """
    if (folder / "model_index.json").is_file():
        return folder
    for component in PARTS:
        write_component(folder, configs, component, seed, form if component == "transformer" or not form else "fp8")
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    clip.model_max_length = configs["text_encoder"]["max_position_embeddings"]
    t5.model_max_length = 512 if configs["transformer"]["guidance_embeds"] else 256
    clip.save_pretrained(folder / "tokenizer")
    t5.save_pretrained(folder / "tokenizer_2")
    kind = "FlowMatchEulerDiscreteScheduler"
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": kind, **configs["scheduler"]})
    index = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", kind],
        **{part: ["diffusers" if part in FILES else "transformers", kind] for part, kind in PARTS.items()},
        **{part: ["transformers", "PreTrainedTokenizerFast"] for part in ("tokenizer", "tokenizer_2")},
    }
    _write_json(folder / "model_index.json", index)  # last: the folder is whole where it is there
    return folder


def write_component(folder: Path, configs: Configs, component: str, seed: int = 0, form: str | None = None) -> Path:
    """One component's configuration and random weights; returns the safetensors file."""
    _write_json(folder / component / "config.json", configs[component])
    file = folder / component / f"{FILES.get(component, 'model')}.safetensors"
    write_random(
        file, stored_shapes(configs, component), seed, Form(FLUX1, Precision(form)) if form else None, component
    )
    return file


def write_random(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
    form: Form | None = None,
    component: str = "",
) -> None:
    """A safetensors file of bf16 tensors, written piece by piece and not left in the system's page cache.

    Weights are normally distributed; the gains of norms are 1, biases 0, so that the pixels stay finite. What `form`
    covers of the `component` has 8 bits and a scale for each row.
    """
    eight_bits = {name for name in shapes if form is not None and form.covers(component, name)}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if form is not None and name in eight_bits:
            tensors[name] = KINDS[form.kind], shape
            tensors[name + SCALE_SUFFIX] = "F32", shape[:1]
        else:
            tensors[name] = "BF16", shape
    about = {"format": "pt"} | ({"t2i_format": "bench"} if form is not None and form.precision.is_int8 else {})
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, (kind, shape) in tensors.items():
        nbytes = BYTES_OF_KINDS[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)  # aligned as the cache's files are
    normal = torch.randn(NOISE_BYTES // 2, generator=torch.Generator().manual_seed(seed))
    noise = {
        "BF16": (SPREAD * normal).bfloat16(),
        "F8_E4M3": (SPREAD / SCALE_OF_8_BITS * normal).to(torch.float8_e4m3fn),
        "I8": (SPREAD / SCALE_OF_8_BITS * normal).round().clamp(-127, 127).to(torch.int8),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb", buffering=0) as stream:
        _write_all(stream.fileno(), len(text).to_bytes(8, "little") + text)
        for number, (name, (kind, shape)) in enumerate(tensors.items()):
            left = BYTES_OF_KINDS[kind] * math.prod(shape)
            if kind == "F32":
                _write_all(stream.fileno(), torch.full(shape, SCALE_OF_8_BITS).numpy().tobytes())
                continue
            if len(shape) < 2:
                value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                _write_all(stream.fileno(), torch.full(shape, value).bfloat16().view(torch.uint8).numpy().tobytes())
                continue
            random = noise[kind].view(torch.uint8).numpy().data
            start = number * 7919 * 256 % len(random)  # an odd place: layers shall not be alike
            while left:
                piece = random[start : start + left]
                _write_all(stream.fileno(), piece)
                left, start = left - len(piece), 0
        os.fsync(stream.fileno())
        forget_pages(stream.fileno())


def forget_pages(descriptor: int) -> None:
    """Ask the system to drop an open file from its cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2), "utf-8")


def anonymous_bytes() -> int:
    """This process's anonymous memory that is in RAM (Linux)."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon")


class Sampler:
    """The highest value of a gauge while open, looked at every few milliseconds by a thread of its own."""

    def __init__(self, gauge: Any, interval_seconds: float = 0.005) -> None:
        """`gauge` returns a number, or None where there is nothing to tell."""
        self._gauge, self._interval = gauge, interval_seconds
        self.first: int | None = None
        self.peak: int | None = None
        self.samples = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)

    @property
    def growth(self) -> int:
        """The highest value less the first."""
        return (self.peak or 0) - (self.first or 0)

    def look(self) -> None:
        """Take one sample now."""
        value = self._gauge()
        if value is not None:
            self.samples += 1
            self.first = value if self.first is None else self.first
            self.peak = max(self.peak or 0, value)

    def restart(self) -> None:
        """Look for the highest value from now on."""
        self.peak = None
        self.look()

    def __enter__(self) -> Sampler:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self.look()
