"""Plans: made without weights, at FLUX.1's full size, and right about the small models that can be run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine import Engine, Request, RequestError
from engine.events import Plan
from engine.families.flux1 import FLUX1
from engine.families.flux1 import published as flux1
from engine.families.flux1.parts import DISTILL_T5 as DISTILLED
from engine.library.catalog import published
from engine.memory.cards import CARDS, H100, RTX_3060
from engine.memory.components import Components
from engine.memory.measure import META, Activations
from engine.memory.planner import Planner
from engine.memory.target import Target, resolve
from engine.memory.units import Unit
from engine.precision import BF16, FP8, FP32, INT8
from tests.tiny import flux_size, save_tiny

GIB = 2**30
PARAMETERS = {"transformer": 11_901_408_320, "text_encoder": 123_060_480, "vae": 83_819_683}
PHASE_FIELDS = {
    "name",
    "resident_bytes",
    "streamed_bytes_per_step",
    "loaded_bytes",
    "activation_bytes",
    "allowance_bytes",
    "peak_bytes",
}


class Card:
    """flux.1-dev planned for cards of several sizes; what was measured is shared."""

    def __init__(self) -> None:
        self.components = Components(published(flux1.DEV), META, simulated=True)
        self.activations = Activations(self.components)

    def planner(self, vram: float, ram: float = 64) -> Planner:
        target = resolve("auto", int(vram * GIB), int(ram * GIB), simulated=True, card=RTX_3060)
        return Planner(self.components, target, self.activations)

    def plan(self, vram: float, ram: float = 64, tile: int | None = None, **values: object) -> Plan:
        request = Request("a cat", seed=1).resolved(self.components.model.defaults)
        return self.planner(vram, ram).plan(replace(request, **values), tile).plan  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return Card()


def phases(plan: Plan) -> dict[str, int]:
    return {phase.name: phase.peak_bytes for phase in plan.phases}


def test_the_published_model_has_its_published_number_of_parameters(card: Card) -> None:
    for name, count in PARAMETERS.items():
        wanted = card.components.component(name, BF16).wanted
        assert sum(torch.Size(shape).numel() for shape in wanted.values()) == count
    t5 = card.components.component("text_encoder_2", BF16).wanted
    untied = {name: shape for name, shape in t5.items() if name != "encoder.embed_tokens.weight"}
    assert sum(torch.Size(shape).numel() for shape in untied.values()) == 4_762_310_656
    assert published(flux1.SCHNELL).bytes["transformer"] == 2 * 11_891_178_560


def test_at_8_bits_the_whole_loop_fits_a_12_gib_card_with_nothing_streamed(card: Card) -> None:
    plan = card.plan(12, precision="fp8")
    assert plan.peak_bytes <= 10 * GIB
    assert plan.phases[1].streamed_bytes_per_step == 0
    assert plan.tile == 0
    modulation = card.components.component("transformer", FP8).of_role("modulation")
    resident = plan.phases[1].resident_bytes
    assert resident == pytest.approx(8.65e9, rel=0.01), "the modulation weights are not among them"
    assert sum(unit.nbytes for unit in modulation) == pytest.approx(3.3e9, rel=0.02)


@pytest.mark.parametrize(("vram", "streamed"), [(8, 2.5e9), (6, 4.6e9), (4, 8.7e9)])
def test_small_cards_stream_little(card: Card, vram: float, streamed: float) -> None:
    plan = card.plan(vram, precision="fp8")
    assert 0 < plan.phases[1].streamed_bytes_per_step <= streamed
    assert plan.peak_bytes <= vram * GIB
    assert plan.peak_bytes > 0.95 * vram * GIB, "room is left that weights could lie in"


def test_bf16_runs_on_12_gib_by_streaming(card: Card) -> None:
    plan = card.plan(12, precision="bf16")
    assert plan.peak_bytes <= 12 * GIB
    assert 4e9 < plan.phases[1].streamed_bytes_per_step < 8e9
    assert any("streams" in note and "behind" in note for note in plan.notes)


def test_a_phase_is_the_sum_of_its_parts_and_json_says_all(card: Card) -> None:
    plan = card.plan(8, precision="fp8")
    assert [phase.name for phase in plan.phases] == ["encode", "denoise", "decode"]
    for phase in plan.phases:
        assert phase.peak_bytes == phase.resident_bytes + phase.activation_bytes + phase.allowance_bytes
        assert set(phase.__slots__) == PHASE_FIELDS
    assert plan.peak_bytes == max(phases(plan).values())
    assert plan.phases[0].streamed_bytes_per_step == plan.phases[2].streamed_bytes_per_step == 0
    assert plan.phases[0].loaded_bytes == pytest.approx(4.9e9, rel=0.02), (
        "T5 crosses once, at 8 bits, without its table"
    )


def test_large_pictures_are_decoded_in_tiles_where_the_budget_wants_it(card: Card) -> None:
    whole, tiled = (card.plan(vram, precision="fp8", width=2048, height=2048) for vram in (12, 6))
    assert whole.tile == 0
    assert tiled.tile > 0
    assert tiled.phases[2].peak_bytes <= 6 * GIB
    assert tiled.host_bytes > whole.host_bytes, "tiles are parked on the host"
    assert card.plan(12, tile=512, precision="fp8").tile == 512


def test_a_budget_below_the_floor_is_refused_with_what_would_do(card: Card) -> None:
    with pytest.raises(RequestError) as refused:
        card.plan(1, precision="bf16")
    message = str(refused.value)
    assert refused.value.field == "vram"
    assert "needs at least" in message
    assert "--precision fp8 (" in message
    assert message.count("--size") == 2
    allowed = float(message.split("--vram ")[1].split("GiB")[0])
    assert card.plan(allowed, precision="bf16").peak_bytes <= allowed * GIB, "what it names works"
    with pytest.raises(RequestError):
        card.plan(allowed - 0.11, precision="bf16")


def test_a_fixed_tile_that_does_not_fit_is_answered_with_the_automatic_one(card: Card) -> None:
    with pytest.raises(RequestError, match="--tile auto"):
        card.plan(4, tile=0, precision="fp8", width=2048, height=2048)


def test_ram_is_a_budget_too(card: Card) -> None:
    for ram in (4, 8, 13, 16, 32, 64):
        plan = card.plan(8, ram, precision="fp8")
        assert plan.host_bytes <= ram * GIB
        assert plan.pinned_bytes <= plan.host_bytes
    rich, poor = card.plan(8, 64, precision="fp8"), card.plan(8, 4, precision="fp8")
    assert rich.new_prompt.disk_bytes == 0
    assert rich.same_prompt.moved_bytes < rich.new_prompt.moved_bytes
    assert poor.new_prompt.disk_bytes > poor.same_prompt.disk_bytes > 0
    assert rich.pinned_bytes == pytest.approx(rich.phases[1].streamed_bytes_per_step, rel=0.5)
    with pytest.raises(RequestError) as refused:
        card.plan(8, 1, precision="fp8")
    assert refused.value.field == "ram"
    assert "of RAM" in str(refused.value)


def test_weights_that_are_read_from_disk_in_every_step_are_told(card: Card) -> None:
    assert any("from disk in every step" in note for note in card.plan(4, 6, precision="bf16").notes)


def test_weights_from_disk_are_waited_for_in_every_step(card: Card) -> None:
    request = replace(Request("a cat", seed=1).resolved(card.components.model.defaults), precision="bf16")
    rich, poor = (card.planner(4, ram).plan(request).pace for ram in (64, 6))
    assert rich.step_seconds(1) == rich.compute_seconds, "what crosses hides behind the compute"
    assert poor.step_seconds(1) > 10e9 / 2.5e9 > rich.step_seconds(1)


@pytest.mark.parametrize("name", ["rtx-3060", "rtx-3090", "rtx-4090", "h100"])
def test_fp32_takes_twice_the_time_of_bf16_or_more(name: str) -> None:
    profile, size = CARDS[name], flux_size(1024, 1024)
    step = FLUX1.cost("transformer", flux1.transformer(True), size)
    picture = FLUX1.cost("vae", flux1.VAE, size)
    seconds = {kind: profile.step_seconds(step, 0, kind) for kind in (FP32, BF16)}
    assert seconds[FP32] > 1.9 * seconds[BF16]
    decoding = [profile.decode_seconds(picture, kind) for kind in (FP32, BF16)]
    assert decoding[0] > 1.9 * decoding[1]


def test_a_step_on_an_rtx_3060_takes_what_was_published(card: Card) -> None:
    step = FLUX1.cost("transformer", flux1.transformer(True), flux_size(1024, 1024))
    assert RTX_3060.step_seconds(step, 0, BF16) == pytest.approx(4.0, rel=0.1)


def test_8_bit_products_are_as_fast_as_the_h100_had_them(card: Card) -> None:
    """Linear layers alone, in milliseconds, activations rounded first."""
    step, blocks = FLUX1.cost("transformer", flux1.transformer(True), flux_size(1024, 1024)), 8 * 2**30
    bf16 = H100.step_seconds(step, blocks, BF16)
    fp8 = H100.step_seconds(step, blocks, FP8, "scaled_mm")
    int8 = H100.step_seconds(step, blocks, INT8, "triton")
    assert 1000 * (int8 - bf16) == pytest.approx(76 + 13.5 - 81, abs=10)
    assert 1000 * (fp8 - bf16) == pytest.approx(52 + 13.5 - 81, abs=10)
    measured = replace(H100, int8_ratio=1.28).step_seconds(step, blocks, INT8, "triton")
    assert measured > int8, "what a probe measured on the card wins over the data sheet"


def test_true_guidance_takes_two_passes_of_the_time(card: Card) -> None:
    request = replace(Request("a cat", seed=1).resolved(card.components.model.defaults), precision="fp8", cfg=3.0)
    seconds = [
        card.planner(12).plan(request, negative_passes=passes).plan.new_prompt.seconds_by_phase["denoise"]
        for passes in (0, 14, 28)
    ]
    assert [each / seconds[0] for each in seconds] == pytest.approx([1.0, 1.5, 2.0])


def test_streamed_units_are_spread_evenly(card: Card) -> None:
    planner = card.planner(8)
    request = replace(Request("a cat", seed=1).resolved(card.components.model.defaults), precision="fp8")
    streamed = planner.plan(request).placements["transformer"].streamed
    blocks: list[Unit] = list(card.components.component("transformer", FP8).of_role("block"))
    places = [index for index, unit in enumerate(blocks) if unit.name in streamed]
    gaps = {after - before for before, after in pairwise(places)}
    assert len(places) > 3
    assert max(gaps) - min(gaps) <= 1


def test_a_repeated_request_plans_in_no_time(card: Card) -> None:
    planner = card.planner(8)
    request = Request("a cat", seed=1).resolved(card.components.model.defaults)
    first = planner.plan(request)
    assert planner.plan(replace(request, prompt="a dog", seed=2)) is first
    assert planner.plan(replace(request, width=512)) is not first


@pytest.mark.unmeasured
def test_what_was_measured_is_kept_on_disk(own_folders: Path) -> None:
    with Engine.open("demo", device="cpu") as engine:
        plan = engine.plan(Request("a cat"))
    files = list((own_folders / "cache" / "plans").iterdir())
    assert len(files) == 4
    for file in files:  # another measure than would come out now: it is believed, so it was read
        file.write_text(json.dumps({"activation_bytes": 12345}), "utf-8")
    with Engine.open("demo", device="cpu") as engine:
        assert engine.plan(Request("a cat")).phases[1].activation_bytes == 12345
    for file in files:
        file.unlink()
    for file, text in zip(
        files, ('{"activation_bytes": "many"}', "[" * 100_000, '{"activation_bytes": 1e999}'), strict=False
    ):
        file.write_text(text, "utf-8")
    files[-1].symlink_to("/dev/zero")
    with Engine.open("demo", device="cpu") as engine:
        assert engine.plan(Request("a cat")).phases == plan.phases


def test_no_weights_are_needed_but_to_paint() -> None:
    with Engine.open("flux.1-schnell", vram="12GiB") as engine:
        assert engine.defaults.steps == 4
        with pytest.raises(RequestError, match=r"weights of flux.1-schnell are not here.*--simulate"):
            engine.generate(Request("a cat"))


def test_the_cpu_obeys_ram_and_a_simulated_card(tmp_path: Path) -> None:
    save_tiny(tmp_path, guided=True)
    request = Request("a cat", width=64, height=64, steps=2)
    with Engine.open(tmp_path, device="cpu") as engine:
        roomy = engine.plan(request)
        assert roomy.target == "cpu"
        assert roomy.budget_bytes == roomy.ram_budget_bytes
        assert roomy.phases[1].streamed_bytes_per_step == roomy.phases[1].loaded_bytes == 0
    need = roomy.peak_bytes
    with Engine.open(tmp_path, device="cpu", vram=f"{need / 2**20 + 0.01:.2f}MiB") as engine:
        assert engine.plan(request).peak_bytes == need


def test_what_is_not_here_is_refused() -> None:
    total = 10**13
    with pytest.raises(RequestError, match="more than the"):
        resolve("cpu", None, total, simulated=False)
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no CUDA card"):
            resolve("cuda", None, None, simulated=False)
    target = resolve("cpu", 5 * GIB, 6 * GIB, simulated=False)
    assert isinstance(target, Target)
    assert (target.budget_bytes, target.ram_budget_bytes) == (5 * GIB, 6 * GIB)


@pytest.mark.unmeasured
def test_one_plan_at_full_size_needs_little_memory_and_few_seconds(own_folders: Path) -> None:
    """RssAnon after importing, against its peak: sampled from outside."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("RssAnon is Linux's")
    code = (
        "import re, threading, time\n"
        "from engine import Engine, Request\n"
        "import engine.memory.planner, engine.sampling.decode\n"
        "def anon(): return int(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "before, peak, on = anon(), [0], [True]\n"
        "def watch():\n"
        "    while on[0]:\n"
        "        peak[0] = max(peak[0], anon()); time.sleep(0.01)\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        "with Engine.open('flux.1-dev', vram='8GiB') as engine: engine.plan(Request('x', precision='fp8'))\n"
        "on[0] = False; thread.join()\n"
        "print(peak[0] - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True)
    assert int(run.stdout) < 600e6


def test_distillt5_reads_the_prompt_on_the_cpu_and_leaves_the_card_alone(card: Card) -> None:
    plain = replace(Request("a cat", seed=1).resolved(card.components.model.defaults), precision="fp8")
    planner = card.planner(8)
    whole, small = planner.plan(plain), planner.plan(replace(plain, distill=True))
    assert (whole.reads_on_host, small.reads_on_host) == (False, True)
    assert small.plan.text_encoder == "DistillT5, 130 million parameters, fp32, on the CPU"
    assert small.placements[DISTILLED].in_place
    assert "text_encoder_2" not in small.placements
    encode, smaller = whole.plan.phases[0], small.plan.phases[0]
    assert smaller.peak_bytes < encode.peak_bytes
    assert smaller.loaded_bytes < 0.1 * encode.loaded_bytes, "CLIP alone crosses to the card"
    assert small.plan.phases[1:] == whole.plan.phases[1:]
    assert small.plan.new_prompt.seconds < whole.plan.new_prompt.seconds
