"""What int8 and fp8 cost in quality and gain in time: `python -m tests.bench.quantization` prints the tables.

    quality   pictures against bf16's of the same prompts and seeds, on combinations that the demo was never shown
    errors    by kind of layer, on activations of the demo's pictures
    outliers  the demo with some channels made 40 times as large, exactly: what balancing is for
    speed     seconds a step, on the demo and on FLUX.1's own width with few blocks, each kernel in turn

Whole numbers are multiplied by the kernel "float32", whatever the probe would choose: the sums are those of every other
kernel but "dequantize". In fp8 and int8 T5 is stored in fp8. Latents are the engine's; all are decoded in fp32, because
a processor without bf16 takes ten times as long to decode in it as for all else. Calibrations and caches are kept in a
folder that is gone afterwards. `--device cuda` prints another table of speed alone. Quote times from an idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine import Engine, Request
from engine.demo import scenes
from engine.demo.checker import check
from engine.demo.grammar import describe
from engine.demo.scenes import Scene
from engine.events import Event, StepFinished
from engine.families.flux1 import FLUX1, blocks
from engine.families.flux1 import published as flux1
from engine.families.flux1.cuts import cut, inputs
from engine.families.flux1.latents import image_position_ids
from engine.families.flux1.networks import NETWORKS
from engine.images.save import Destination
from engine.jobs.picture import Job
from engine.jobs.runtime import NOTHING_TO_REPEAT, Repeat
from engine.library.catalog import DEMO_FOLDER
from engine.precision import INT8, MODES
from engine.quantization.int8 import KERNELS, Int8Linear, candidates, choose, quantize_rows, replace_linears
from engine.quantization.kernels import set_kernel
from engine.quantization.salience import Input
from engine.sampling import modulation
from engine.sampling.decode import decode
from engine.weights import calibrations
from engine.weights.converted import rounding_errors
from engine.weights.forms import Form, dequantize
from engine.weights.reading import WeightFiles
from tests.bench.accuracy import Picture, draw_scenes, summary
from tests.bench.models import Configs, flux_configs, write_model
from tests.tiny import flux_size

TRANSFORMER = Path("transformer") / "diffusion_pytorch_model.safetensors"  # in a model's folder
STEPS, SIDE = 4, 128
CALIBRATION_PROMPTS = 64
WHOLE_NUMBERS, WEIGHTS_ONLY = Repeat(kernel="float32"), Repeat(kernel="dequantize")
OUTLIERS, FACTOR = 12, 40.0  # channels of an input, and how much larger they become
HOPELESS = 2.0  # times bf16's seconds: measured in the first round alone
SAME_PSNR = 100.0  # dB, of pictures that do not differ
KINDS = {
    "A   q, k, v of the image": r"transformer_blocks\.\d+\.attn\.to_[qkv]",
    "A'  q, k, v of the text": r"transformer_blocks\.\d+\.attn\.add_[qkv]_proj",
    "B   attention out": r"transformer_blocks\.\d+\.attn\.(to_out\.0|to_add_out)",
    "C   feed-forward in, image": r"transformer_blocks\.\d+\.ff\.net\.0\.proj",
    "C'  feed-forward in, text": r"transformer_blocks\.\d+\.ff_context\.net\.0\.proj",
    "E   feed-forward out, image": r"transformer_blocks\.\d+\.ff\.net\.2",
    "E'  feed-forward out, text": r"transformer_blocks\.\d+\.ff_context\.net\.2",
    "F   single: q, k, v, mlp": r"single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp)",
    "G/H single: out": r"single_transformer_blocks\.\d+\.proj_out",
    "modulation (weights only)": r"(single_)?transformer_blocks\.\d+\.norm\w*\.linear",
}
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """How weights are stored and multiplied."""

    precision: str
    salience: str | None = None
    repeat: Repeat = WHOLE_NUMBERS


FORMS = {
    "fp8": Way("fp8"),
    "int8": Way("int8", "off"),
    "int8 csb": Way("int8", "csb"),
    "int8 csb+ssc": Way("int8", "csb+ssc"),
}


@dataclass(frozen=True, slots=True)
class Task:
    """A picture to paint."""

    scene: Scene
    prompt: str
    seed: int


def tasks(count: int, seed: int, wanted: Callable[[Scene], bool]) -> list[Task]:
    """Random scenes that are `wanted`, in random words."""
    rng = np.random.default_rng(seed)
    chosen = draw_scenes(rng, count, None, wanted)
    return [Task(scene, describe(scene, rng), seed + k) for k, scene in enumerate(chosen)]


Observer = Callable[[Any], AbstractContextManager[None]]


class LatentsJob(Job):
    """One prompt through encode and denoise; `observer` is open while the transformer runs."""

    latents: Tensor

    def __init__(self, engine: Engine, request: Request, observer: Observer = nullcontext) -> None:
        super().__init__(engine.context, engine.resolve(request), Destination(Path()), 0, time.perf_counter())
        self.observer = observer

    def paint(self) -> Generator[Event, None, None]:
        yield from self.open()
        conditioning = yield from self._encode()
        self.latents = yield from self._denoise(conditioning)

    def _observing(self, transformer: Any) -> AbstractContextManager[None]:
        return self.observer(transformer)


def latents_of(engine: Engine, task: Task, way: Way, observer: Observer = nullcontext) -> Tensor:
    """Finished latents [1, L, C] of a task."""
    request = Request(task.prompt, steps=STEPS, seed=task.seed, precision=way.precision, salience=way.salience)
    job = LatentsJob(engine, request, observer)
    for _ in job.paint():
        pass
    return job.latents


class Decoder:
    """The demo's, in fp32."""

    def __init__(self) -> None:
        self.vae = AutoencoderKL.from_pretrained(DEMO_FOLDER / "vae", torch_dtype=torch.float32).eval()

    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = decode(NETWORKS, self.vae, latents, flux_size(SIDE, SIDE), lambda: None).numpy()
        return pixels


def calibrated(model: str | Path, chosen: Sequence[Task]) -> None:
    """Calibrate a model, into the cache that it is opened with."""
    with Engine.open(model, device="cpu") as engine:
        request = Request("calibration", steps=STEPS, seed=chosen[0].seed, precision="bf16")
        for _ in engine.calibrate([task.prompt for task in chosen], request):
            pass


# Pictures.


def psnr(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of 8-bit pictures, in dB."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 10 * math.log10(255**2 / error) if error else SAME_PSNR


def ssim(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Mean structural similarity of luma (Wang et al., 2004): Gaussian window of 11 pixels, sigma 1.5."""
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    x, y = (torch.from_numpy(each.astype(np.float64)) @ luma for each in (image, reference))
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    planes = torch.stack([x, y, x * x, y * y, x * y])[:, None]
    mean_x, mean_y, xx, yy, xy = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))[:, 0]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return float(((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure).mean())


def quality(count: int, seed: int, calibration: Sequence[Task], sheet: Path | None) -> None:
    calibrated("demo", calibration)
    chosen, decoder = tasks(count, seed, scenes.held_out), Decoder()
    ways = {"bf16": Way("bf16"), "fp32": Way("fp32"), **FORMS, "int8 weights only": Way("int8", "off", WEIGHTS_ONLY)}
    print(f"quality: {count} held-out prompts against bf16, {SIDE}x{SIDE}, {STEPS} steps")
    print(f"{'':<20}{'PSNR, dB':>10}{'worst':>8}{'SSIM':>9}{'strict %':>10}  {'95 % interval':>14}")
    images: dict[str, list[NDArray[np.uint8]]] = {}
    for name, way in ways.items():
        with Engine.open("demo", device="cpu", repeat=way.repeat) as engine:
            images[name] = [decoder(latents_of(engine, task, way)) for task in chosen]
        verdicts = [
            Picture(task.scene, task.prompt, image, check(image, task.scene))
            for task, image in zip(chosen, images[name], strict=True)
        ]
        result = summary(verdicts)
        pairs = list(zip(images[name], images["bf16"], strict=True))
        errors = [psnr(*pair) for pair in pairs]
        likeness = statistics.mean(ssim(*pair) for pair in pairs)
        against = f"{statistics.mean(errors):>10.1f}{min(errors):>8.1f}{likeness:>9.4f}"
        interval = f"{100 * result['strict_low']:.1f} to {100 * result['strict_high']:.1f}"
        print(f"{name:<20}{against if name != 'bf16' else ' ' * 27}{100 * result['strict']:>10.1f}  {interval:>14}",
              flush=True)  # fmt: skip
    if sheet is not None:
        save_sheet(sheet, images)


def save_sheet(file: Path, images: Mapping[str, Sequence[NDArray[np.uint8]]], columns: int = 12) -> None:
    """The first pictures side by side, for one's own eyes: one row for each way."""
    from PIL import Image

    rows = [np.concatenate(list(row[:columns]), axis=1) for row in images.values()]
    Image.fromarray(np.concatenate(rows)).save(file)


# Layers.


class LayerErrors:
    """What rounding does to the output of every linear layer, summed over the passes of a transformer in fp32.

    A layer is given the activations of the exact run. Its output is the product alone, without the bias.
    """

    def __init__(self, weights: State, forms: Mapping[str, Form]) -> None:
        self.weights, self.forms = weights, forms
        self.layers = [name.removesuffix(".weight") for name in weights if FLUX1.eight_bit("transformer", name)]
        self.error: dict[tuple[str, str], float] = defaultdict(float)  # squared, by layer and form
        self.output: dict[str, float] = defaultdict(float)
        self._quantized: dict[tuple[str, str], nn.Module | Tensor] = {}

    @contextmanager
    def observing(self, transformer: Any) -> Iterator[None]:
        """While open, all passes count."""
        kinds = [kind for name, kind in KINDS.items() if "weights only" not in name]
        watched = [layer for layer in self.layers if any(re.fullmatch(kind, layer) for kind in kinds)]
        handles = [transformer.get_submodule(name).register_forward_pre_hook(self._see(name)) for name in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def relative(self, layer: str, form: str) -> float:
        """The output's relative RMS error."""
        return math.sqrt(self.error[layer, form] / self.output[layer])

    def _see(self, layer: str) -> Callable[..., None]:
        def see(_: object, args: tuple[Tensor, ...]) -> None:
            exact = F.linear(args[0], self.weights[f"{layer}.weight"])
            self.output[layer] += float(exact.square().sum(dtype=torch.float64))
            for name, form in self.forms.items():
                error = self._output(layer, name, form, args[0]) - exact
                self.error[layer, name] += float(error.square_().sum(dtype=torch.float64))

        return see

    def _output(self, layer: str, name: str, form: Form, x: Tensor) -> Tensor:
        if (layer, name) not in self._quantized:
            quantized, scale = form.quantize(f"{layer}.weight", self.weights[f"{layer}.weight"], 0)
            self._quantized[layer, name] = (
                int8_layer(quantized, scale) if form.precision.is_int8 else dequantize(quantized, scale, torch.float32)
            )
        ready = self._quantized[layer, name]
        if isinstance(ready, Tensor):
            return F.linear(x, ready)
        assert isinstance(ready, Int8Linear)
        kernel, folds = KERNELS["float32"], form.folds
        columns = folds.columns.get(layer) if folds is not None else None
        output = kernel.linear(kernel.quantize(x, None if columns is None else 1 / columns), ready)
        if folds is not None and layer in folds.rows:
            output = output * folds.rows[layer]  # which the next layer's columns undo
        return output


def int8_layer(quantized: Tensor, scale: Tensor) -> Int8Linear:
    """A layer that holds these, and computes in fp32."""
    layer = Int8Linear(quantized.shape[1], quantized.shape[0], False, torch.float32)
    layer._parameters["quantized"] = nn.Parameter(quantized, requires_grad=False)
    layer._parameters["scale"] = nn.Parameter(scale, requires_grad=False)
    return layer


def forms_of(engine: Engine) -> dict[str, Form]:
    """All 8-bit forms of a calibrated model's transformer."""
    components = engine.runtime().components
    named = {name: components.form("transformer", Request("any", precision=way.precision, salience=way.salience).form)
             for name, way in FORMS.items()}  # fmt: skip
    return {name: form for name, form in named.items() if form is not None}


def errors(count: int, seed: int, calibration: Sequence[Task]) -> None:
    calibrated("demo", calibration)
    file = DEMO_FOLDER / TRANSFORMER
    with Engine.open("demo", device="cpu") as engine:
        forms = forms_of(engine)
        seen = LayerErrors({name: tensor.float() for name, tensor in load_file(file).items()}, forms)
        for task in tasks(count, seed, scenes.held_out):
            latents_of(engine, task, Way("fp32"), seen.observing)
    rounded: dict[str, dict[str, float]] = {}
    with WeightFiles.open([file], "transformer") as files:
        for name in ("fp8", "int8"):
            rounded[name] = {weight.removesuffix(".weight"): error
                             for weight, error, _ in rounding_errors(files, "transformer", forms[name])}  # fmt: skip
    print(f"errors: relative RMS in per cent, by kind of layer, over {count} pictures of the demo in fp32")
    print(f"{'':<30}{'layers':>7}{'weights: fp8':>14}{'int8':>8}"
          f"{'output: fp8 weights':>21}{'int8':>8}{'csb':>8}{'csb+ssc':>9}")  # fmt: skip
    for title, kind in KINDS.items():
        layers = [layer for layer in seen.layers if re.fullmatch(kind, layer)]
        of_weights = [100 * root_mean_square(rounded[name][layer] for layer in layers) for name in ("fp8", "int8")]
        line = f"{title:<30}{len(layers):>7}{of_weights[0]:>14.2f}{of_weights[1]:>8.2f}"
        if all(layer in seen.output for layer in layers):
            for form, width in zip(forms, (21, 8, 8, 9), strict=True):
                line += f"{100 * root_mean_square(seen.relative(layer, form) for layer in layers):>{width}.2f}"
        print(line, flush=True)


def root_mean_square(values: Iterator[float]) -> float:
    return math.sqrt(statistics.mean(value**2 for value in values))


# Outliers.


def inject_outliers(state: State, config: Mapping[str, Any], seed: int) -> tuple[State, dict[str, Tensor]]:
    """A transformer's weights with `OUTLIERS` channels of every input made `FACTOR` times as large, and as much smaller
    in what reads them, so that it computes what it did; and these channels, by the input's name.

    What comes out of GELU cannot be scaled before it, and stays as it is.
    """
    state, channels = {name: tensor.clone() for name, tensor in state.items()}, {}
    generator = torch.Generator().manual_seed(seed)
    for each in inputs(config):
        if each.tables is None and not each.values:
            continue
        channels[each.name] = torch.randperm(each.width, generator=generator)[:OUTLIERS].sort().values
        factor = next(iter(state.values())).new_ones(each.width)
        factor[channels[each.name]] = FACTOR
        _grow(state, each, factor)
        first, last = each.channels
        for layer in each.layers:
            state[f"{layer}.weight"][:, first:last] /= factor
    return state, channels


def _grow(state: State, each: Input, factor: Tensor) -> None:
    """Multiply an input's channels by `factor`, where they come from."""
    for layer in each.values:
        state[f"{layer}.weight"] *= factor[:, None]
        state[f"{layer}.bias"] *= factor
    if each.tables is not None:
        linear, _, shift, scale = each.tables
        weight, bias = (state[f"{linear}.{leaf}"].unflatten(0, (-1, each.width)) for leaf in ("weight", "bias"))
        weight[[shift, scale]] *= factor[:, None]
        bias[shift] *= factor
        bias[scale] = (1 + bias[scale]) * factor - 1  # a channel is multiplied by 1 + scale


@torch.no_grad()
def velocity(config: Mapping[str, Any], state: State, seed: int = 0) -> Tensor:
    """What a transformer with these weights, in fp64, predicts for random inputs."""
    transformer = FluxTransformer2DModel.from_config(dict(config)).double().eval()
    transformer.load_state_dict(state)
    generator = torch.Generator().manual_seed(seed)
    text = 32

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    places = image_position_ids(SIDE, SIDE)
    output: Tensor = transformer(
        hidden_states=normal(1, len(places), config["in_channels"]),
        encoder_hidden_states=normal(1, text, config["joint_attention_dim"]),
        pooled_projections=normal(1, config["pooled_projection_dim"]),
        timestep=torch.full((1,), 0.7, dtype=torch.float64),
        guidance=torch.full((1,), 3.0, dtype=torch.float64) if config["guidance_embeds"] else None,
        img_ids=places.double(),
        txt_ids=torch.zeros(text, 3, dtype=torch.float64),
        return_dict=False,
    )[0]
    return output


def relative_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative RMS."""
    squared = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(values, exact, strict=True))
    return math.sqrt(squared / sum(float(b.double().square().sum()) for b in exact))


@dataclass(slots=True)
class Passes:
    """Every pass of a transformer: the latents and the prompt that it was given, the velocity that it gave.

    With `along` it is given those of other passes instead of its own, so that velocities can be compared one by one.
    """

    along: Passes | None = None
    given: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)

    @contextmanager
    def observing(self, transformer: Any) -> Iterator[None]:
        """While open, passes are kept."""
        handles = [
            transformer.register_forward_pre_hook(self._enter, with_kwargs=True),
            transformer.register_forward_hook(lambda _, args, output: self.velocities.append(output[0].float())),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, _: object, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = ("hidden_states", "encoder_hidden_states")
        if self.along is not None:
            others = self.along.given[len(self.velocities)]
            named |= {name: other.to(named[name].dtype) for name, other in zip(names, others, strict=True)}
        self.given.append((named[names[0]].clone(), named[names[1]].clone()))
        return args, named


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a way gave: pictures, and velocities along fp32's path."""

    pictures: list[NDArray[np.uint8]]
    velocities: list[Tensor]

    def velocity_error(self, other: Outcome) -> float:
        return relative_error(self.velocities, other.velocities)

    def psnrs(self, other: Outcome) -> list[float]:
        return [psnr(*pair) for pair in zip(self.pictures, other.pictures, strict=True)]

    def pixel_error(self, other: Outcome) -> float:
        """RMS, in levels of 255."""
        return float(np.sqrt(np.mean((np.array(self.pictures, np.float64) - np.array(other.pictures)) ** 2)))


def outcomes(model: str | Path, chosen: Sequence[Task]) -> dict[str, Outcome]:
    """A model's pictures and velocities in every way."""
    decoder, exact, result = Decoder(), Passes(), {}
    with Engine.open(model, device="cpu", repeat=WHOLE_NUMBERS) as engine:
        for name, way in {"fp32": Way("fp32"), "bf16": Way("bf16"), **FORMS}.items():
            pictures = [decoder(latents_of(engine, task, way)) for task in chosen]
            passes = exact if name == "fp32" else Passes(exact)
            for task in chosen:
                latents_of(engine, task, way, passes.observing)
            result[name] = Outcome(pictures, passes.velocities)
    return result


def outliers(count: int, seed: int, calibration: Sequence[Task], folder: Path) -> None:
    config = json.loads((DEMO_FOLDER / "transformer" / "config.json").read_text("utf-8"))
    plain = {name: tensor.double() for name, tensor in load_file(DEMO_FOLDER / TRANSFORMER).items()}
    injected, channels = inject_outliers(plain, config, seed)
    difference = relative_error([velocity(config, injected)], [velocity(config, plain)])
    model = folder / "outliers"
    shutil.copytree(DEMO_FOLDER, model, ignore=shutil.ignore_patterns("distill_t5"))
    (model / TRANSFORMER).unlink()
    save_file({name: tensor.float() for name, tensor in injected.items()}, model / TRANSFORMER)
    print(f"outliers: {OUTLIERS} channels of {len(channels)} inputs x {FACTOR:g}; {count} held-out prompts. "
          f"In fp64 the velocity differs from the demo's by {difference:.1e}.")  # fmt: skip
    print("velocity: relative RMS error in per cent over all steps, along fp32's latents and prompts\n")
    chosen = tasks(count, seed, scenes.held_out)
    for title, each, special in (("the demo", "demo", {}), ("with outliers", model, channels)):
        calibrated(each, calibration)
        tell_outcomes(title, outcomes(each, chosen))
        tell_factors(each, config, special)
        print(flush=True)


def tell_outcomes(title: str, found: Mapping[str, Outcome]) -> None:
    """One table. Distances to bf16 are what 8 bits cost: those to fp32 hold the rounding of timestep and guidance to
    bf16 as well, as diffusers' model has it, which is most of bf16's own."""
    references = {"fp32": found["fp32"], "bf16": found["bf16"]}
    print(f"{title:<16}{'velocity to fp32':>18}{'to bf16':>9}{'PSNR to fp32':>15}{'worst':>7}{'to bf16':>9}"
          f"{'worst':>7}")  # fmt: skip
    for name in ("bf16", *FORMS):
        errors = [found[name].velocity_error(reference) for reference in references.values()]
        levels = [found[name].psnrs(reference) for reference in references.values()]
        to_bf16 = f"{statistics.mean(levels[1]):>9.1f}{min(levels[1]):>7.1f}" if name != "bf16" else ""
        print(f"{name:<16}{100 * errors[0]:>18.2f}{100 * errors[1]:>9.2f}"
              f"{statistics.mean(levels[0]):>15.1f}{min(levels[0]):>7.1f}{to_bf16}")  # fmt: skip
    for mode in MODES:
        with_, without = found[f"int8 {mode}"], found["int8"]
        ratios = [
            f"{what} to {name} {error(with_, reference) / error(without, reference):.3f}"
            for what, error in (("velocity", Outcome.velocity_error), ("pixels", Outcome.pixel_error))
            for name, reference in references.items()
        ]
        print(f"error with {mode} / without: {', '.join(ratios)}")


def tell_factors(model: str | Path, config: Mapping[str, Any], channels: Mapping[str, Tensor]) -> None:
    """The largest balancing factors, and whether they are those of `channels`."""
    with Engine.open(model, device="cpu") as engine:
        calibration = calibrations.read(engine.model, engine.context.model_hash, inputs(config))
    for mode, factors in calibration.factors.items():
        largest = max(factors, key=lambda name: float(factors[name].max()))
        text = f"{mode}: the largest factor is {factors[largest].max():.1f} ({largest})"
        if channels:
            right = [len(set(factors[name].topk(OUTLIERS).indices.tolist()) & set(these.tolist()))
                     for name, these in channels.items()]  # fmt: skip
            text += (f"; the {OUTLIERS} largest are the outliers' in {right.count(OUTLIERS)} of {len(right)} inputs, "
                     f"{100 * sum(right) / (OUTLIERS * len(right)):.0f} % of the channels")  # fmt: skip
        print(text)


# Speed.


def wide_configs() -> Configs:
    """FLUX.1 [schnell]'s transformer with 1 + 2 blocks, between encoders and a decoder that hardly compute."""
    configs = flux_configs(flux1.SCHNELL, double=1, single=2, t5_layers=1)
    configs["text_encoder"] |= {"num_hidden_layers": 1}
    configs["text_encoder_2"] |= {"vocab_size": 256, "d_ff": 256, "num_heads": 1}
    configs["vae"] |= {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 8}
    return configs


def step_seconds(engine: Engine, precision: str, side: int) -> list[float]:
    salience = "off" if precision == "int8" else None
    request = Request("a circle", width=side, height=side, steps=STEPS if side == SIDE else 1, seed=1,
                      precision=precision, salience=salience)  # fmt: skip
    return [event.seconds for event in LatentsJob(engine, request).paint() if isinstance(event, StepFinished)]


def speed_of(title: str, model: str | Path, side: int, rounds: int) -> None:
    """Median seconds a step of every way, measured in turn, each by an engine that stays open."""
    ways = {"bf16": ("bf16", NOTHING_TO_REPEAT), "fp8": ("fp8", NOTHING_TO_REPEAT)}
    ways |= {f"int8 {kernel}": ("int8", Repeat(kernel=kernel)) for kernel in candidates(torch.device("cpu"))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine.open(model, device="cpu", repeat=way[1]))
                   for name, way in ways.items()}  # fmt: skip
        for name, (precision, _) in ways.items():
            step_seconds(engines[name], precision, 64)  # reads and converts
        with Engine.open(model, device="cpu") as engine:
            chosen = engine.runtime().choose_kernel(INT8)
            note = engine.runtime().kernel_note
        for number in range(rounds):
            for name, (precision, _) in ways.items():
                if number and seconds[name][0] > HOPELESS * seconds["bf16"][0]:
                    continue  # it would take most of the time
                seconds[name].append(statistics.median(step_seconds(engines[name], precision, side)))
    print(f"speed on the CPU, {torch.get_num_threads()} threads: {title}, median of {rounds} rounds in turn")
    print(f"the probe: {note}")
    tell_seconds(seconds, f"int8 {chosen}")


def tell_seconds(seconds: Mapping[str, Sequence[float]], chosen: str) -> None:
    print(f"{'':<20}{'s/step':>10}{'to bf16':>10}")
    for name, each in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(each, seconds["bf16"], strict=False))
        mark = "  chosen by the probe" if name == chosen else "  (one round)" if len(each) == 1 else ""
        print(f"{name:<20}{statistics.median(each):>10.4f}{ratio:>10.2f}{mark}", flush=True)


def speed(rounds: int, wide_rounds: int, folder: Path) -> None:
    speed_of(f"the demo, {SIDE}x{SIDE}", "demo", SIDE, rounds)
    model = write_model(folder / "wide", wide_configs())
    speed_of("width 3072, 1 + 2 blocks, 1024 tokens of 512x512 and 256 of text", model, 512, wide_rounds)


# Speed on a card: eager steps of FLUX.1 [dev]'s transformer with random weights that are made there.


@torch.no_grad()
def speed_on_card(device: torch.device, config: Mapping[str, Any], side: int, text: int, rounds: int) -> None:
    """Seconds a step in turn; all transformers lie on the card together, which takes 64 GiB for FLUX.1's size."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    choice = choose(str(device), width)
    plain, ours = detached(config, device), detached(config, device)
    in_int8(ours)
    steps = {"bf16": partial(step, plain, config, side, text)}
    for kernel in candidates(device):
        steps[f"int8 {kernel}"] = partial(step, ours, config, side, text, kernel)
    if find_spec("torchao") is not None:
        torchao = import_module("torchao.quantization")
        theirs = detached(config, device)
        torchao.quantize_(theirs, torchao.Int8DynamicActivationInt8WeightConfig(), filter_fn=in_blocks)
        steps["torchao int8"] = partial(step, theirs, config, side, text)
    else:
        print("torchao is not installed, so it is not compared")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, work in steps.items():
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    tell_seconds(seconds, f"int8 {choice.kernel}")
    print(f"the probe: {choice.sentence()}")


def in_blocks(layer: nn.Module, name: str) -> bool:
    """Whether a layer is one of those that are quantized."""
    return isinstance(layer, nn.Linear) and FLUX1.eight_bit("transformer", f"{name}.weight")


def detached(config: Mapping[str, Any], device: torch.device) -> Any:
    """A random transformer in bf16, its modulation in a table as in the engine."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(dict(config)).bfloat16()
    transformer = transformer.to_empty(device=device).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.normal_(0, 0.02)
    reader = modulation.detach(transformer, cut("transformer", transformer), torch.bfloat16)
    reader.embedder.clear()
    reader.linears.clear()
    reader.set_row(torch.randn(1, reader.total, device=device).mul_(0.1).bfloat16())
    return transformer


def in_int8(transformer: Any) -> None:
    """The engine's int8 blocks over the transformer's weights."""
    layers = {name: layer for name, layer in transformer.named_modules() if in_blocks(layer, name)}
    replace_linears(transformer, partial(FLUX1.eight_bit, "transformer"), torch.bfloat16, ())
    for name, layer in layers.items():
        quantized, scale = quantize_rows(layer.weight)
        target = transformer.get_submodule(name)
        for leaf, value in (("quantized", quantized), ("scale", scale), ("bias", layer.bias)):
            target._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        layer.weight = None
    blocks.install(transformer, KERNELS, folded=True)
    transformer.time_text_embed.set_row(transformer.time_text_embed.row.float())


def step(transformer: Any, config: Mapping[str, Any], side: int, text: int, kernel: str | None = None) -> Tensor:
    """One step for a square picture of `side` pixels."""
    if kernel is not None:
        set_kernel(transformer, kernel)
    places = image_position_ids(side, side)
    device = next(transformer.parameters()).device
    options = {"device": device, "dtype": torch.bfloat16}
    output: Tensor = transformer(
        hidden_states=torch.randn(1, len(places), config["in_channels"], **options),
        encoder_hidden_states=torch.randn(1, text, config["joint_attention_dim"], **options),
        timestep=torch.zeros(1, **options),
        img_ids=places.to(**options),
        txt_ids=torch.zeros(text, 3, **options),
        return_dict=False,
    )[0]
    if kernel is not None:
        transformer.watch.first_bad()
    return output


@contextmanager
def own_folders() -> Iterator[Path]:
    """A folder for everything that is kept; the person's own calibrations and caches are neither used nor changed."""
    with tempfile.TemporaryDirectory(prefix="t2i-bench-") as name:
        for kind in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
            os.environ[f"TEXTTOIMAGETOOL_{kind}_DIR"] = str(Path(name) / kind.lower())
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100, help="that are judged; a third of them with outliers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7, help="of the demo's speed")
    parser.add_argument("--wide-rounds", type=int, default=2, help="of the wide model's, whose step takes a minute")
    parser.add_argument("--only", choices=("quality", "errors", "outliers", "speed"))
    parser.add_argument("--sheet", type=Path, help="write the first pictures of each row of quality to this PNG")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the speed of a card alone")
    options = parser.parse_args()
    if options.device == "cuda":
        config = flux_configs(flux1.DEV)["transformer"]
        speed_on_card(torch.device("cuda"), config, 1024, 512, options.rounds)
        return
    wanted = (options.only,) if options.only else ("quality", "errors", "outliers", "speed")
    calibration = tasks(CALIBRATION_PROMPTS, options.seed + 1_000_000, lambda scene: not scenes.held_out(scene))
    with own_folders() as folder:
        if "quality" in wanted:
            quality(options.pictures, options.seed, calibration, options.sheet)
        if "errors" in wanted:
            errors(max(1, options.pictures // 10), options.seed, calibration)
        if "outliers" in wanted:
            outliers(max(1, -(-options.pictures // 3)), options.seed, calibration, folder)
        if "speed" in wanted:
            speed(options.rounds, options.wide_rounds, folder)


if __name__ == "__main__":
    main()
