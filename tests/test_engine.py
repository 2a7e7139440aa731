"""The engine's contract: events, cancel, cache, strict sequence, and sentences for what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Engine, Request, RequestError
from engine.events import (
    TERMINAL,
    Cancelled,
    Encoded,
    Event,
    Failed,
    ImageSaved,
    LatentsRestored,
    LoadProgress,
    PhaseFinished,
    PhaseStarted,
    StepFinished,
)
from engine.folders import state_dir
from engine.images.metadata import read_record
from engine.images.save import Destination, plan_output
from engine.jobs.latents import KeptLatents
from engine.jobs.runtime import Repeat
from engine.memory.loan import Loan
from engine.memory.placement import Placement
from engine.precision import FP32
from engine.weights.reading import WeightFiles
from tests.tiny import save_tiny

PROMPT = "a red circle above a blue square"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny dev ü"
    save_tiny(folder, guided=True)
    return folder


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    with Engine.open(model, device="cpu") as engine:
        yield engine


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return plan_output(tmp_path, 1)


def small(**values: Any) -> Request:
    return Request(**{"prompt": PROMPT, "steps": 2, "seed": 5, "width": 64, "height": 64, **values})


def pixels(event: Event) -> np.ndarray[Any, Any]:
    assert isinstance(event, ImageSaved), event
    return np.asarray(Image.open(event.path))


def test_phases_follow_each_other_and_one_terminal_event_ends_them(engine: Engine, destination: Destination) -> None:
    events = list(engine.generate(small(), destination))
    started = [event.phase for event in events if isinstance(event, PhaseStarted)]
    finished = [event.phase for event in events if isinstance(event, PhaseFinished)]
    assert started == finished == ["encode", "denoise", "decode", "save"]
    assert [isinstance(event, TERMINAL) for event in events] == [False] * (len(events) - 1) + [True]
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert [(event.step, event.steps) for event in steps] == [(1, 2), (2, 2)]
    assert steps[0].sigma == 1.0
    assert all(event.memory.ram_bytes > 10**7 for event in events)
    assert [event.elapsed_seconds for event in events] == sorted(event.elapsed_seconds for event in events)


def test_load_progress_counts_every_component_to_its_last_byte(engine: Engine, destination: Destination) -> None:
    loads = [event for event in engine.generate(small(), destination) if isinstance(event, LoadProgress)]
    assert {event.component for event in loads} == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    for component in {event.component for event in loads}:
        last = [event for event in loads if event.component == component][-1]
        assert last.done_bytes == last.total_bytes
        with WeightFiles.open(engine.source.files[component]) as files:
            stored = sum(
                tensor.nbytes
                for name, tensor in files.tensors.items()
                if component != "vae" or not name.startswith("encoder.")
            )
        assert last.total_bytes == stored > 0


def test_events_survive_pickling_and_become_json(engine: Engine, destination: Destination) -> None:
    for event in engine.generate(small(), destination):
        assert pickle.loads(pickle.dumps(event)) == event
        values = json.loads(json.dumps(event.to_dict()))
        assert values["event"] == event.name
        assert values.keys() - {"event"} == {field.name for field in dataclasses.fields(event)}


def test_a_second_picture_of_a_prompt_encodes_and_loads_nothing(engine: Engine, destination: Destination) -> None:
    list(engine.generate(small(), destination))
    events = list(engine.generate(small(seed=6), destination))
    assert not [event for event in events if isinstance(event, LoadProgress)]
    assert [event.cached for event in events if isinstance(event, Encoded)] == [True]


def test_image_k_of_a_batch_is_the_picture_of_seed_plus_k(engine: Engine, destination: Destination) -> None:
    batch = [event for event in engine.generate(small(count=3), destination) if isinstance(event, ImageSaved)]
    assert [event.seed for event in batch] == [5, 6, 7]
    assert [event.image for event in batch] == [0, 1, 2]
    single = list(engine.generate(small(seed=7), destination))[-1]
    assert np.array_equal(pixels(batch[2]), pixels(single))
    assert not np.array_equal(pixels(batch[1]), pixels(batch[2]))


def test_a_picture_regenerates_from_its_own_file(engine: Engine, destination: Destination) -> None:
    first = list(engine.generate(small(steps=3, guidance=2.25), destination))[-1]
    assert isinstance(first, ImageSaved)
    record = read_record(first.path)
    assert record.request.guidance == 2.25
    again = list(engine.generate(record.request, destination))[-1]
    assert np.array_equal(pixels(first), pixels(again))


def test_cancelling_stops_before_the_next_block(engine: Engine, destination: Destination) -> None:
    list(engine.generate(small(), destination))  # loads
    calls = 0
    transformer = engine.runtime().components.component("transformer", FP32).module

    def cancel_in_the_middle(*_: object) -> None:
        nonlocal calls
        calls += 1
        engine.cancel()

    hooks = [block.register_forward_hook(cancel_in_the_middle) for block in transformer.transformer_blocks]
    try:
        events = list(engine.generate(small(count=2), destination))
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == 1, "the second block must not have run"
    assert [type(event) for event in events if isinstance(event, TERMINAL)] == [Cancelled, Cancelled]
    assert isinstance(events[-1], Cancelled)
    assert next(event.phase for event in events if isinstance(event, Cancelled)) == "denoise"
    assert isinstance(list(engine.generate(small(), destination))[-1], ImageSaved), "the engine must go on afterwards"


@pytest.mark.parametrize("moment", [LoadProgress, PhaseStarted, Encoded, StepFinished])
def test_cancelling_at_any_event_saves_nothing(moment: type[Event], engine: Engine, destination: Destination) -> None:
    events = []
    for event in engine.generate(small(), destination):
        events.append(event)
        if isinstance(event, moment):
            engine.cancel()
    assert isinstance(events[-1], Cancelled)
    assert not list(destination.path.iterdir())


def test_closing_the_generator_frees_the_engine(engine: Engine, destination: Destination) -> None:
    job = engine.generate(small(), destination)
    for event in job:
        if isinstance(event, StepFinished):
            break
    job.close()
    assert engine.runtime().components.resident is None
    assert engine.runtime().components.device.placed_bytes == 0
    assert isinstance(list(engine.generate(small(), destination))[-1], ImageSaved)


def test_two_components_are_never_lent_at_once(engine: Engine, destination: Destination) -> None:
    list(engine.generate(small(), destination))
    components = engine.runtime().components

    def lend(name: str) -> AbstractContextManager[Loan]:
        return components.lend(name, FP32, Placement(), lambda: None)

    with lend("vae"), pytest.raises(RuntimeError, match="vae is on the device"), lend("transformer"):
        pass


def test_a_long_prompt_says_how_many_tokens_are_used(engine: Engine, destination: Destination) -> None:
    events = list(engine.generate(small(prompt=PROMPT + " and a star" * 20), destination))
    encoded = next(event for event in events if isinstance(event, Encoded))
    assert encoded.hint == "the prompt has 68 tokens; the first 32 are used."
    assert isinstance(events[-1], ImageSaved)


def test_bf16_paints_nearly_the_same_picture(engine: Engine, destination: Destination) -> None:
    exact = pixels(list(engine.generate(small(precision="fp32"), destination))[-1]).astype(int)
    coarse = pixels(list(engine.generate(small(precision="bf16"), destination))[-1]).astype(int)
    assert 0 < np.abs(exact - coarse).mean() < 8


def test_sizes_and_guidance_that_the_model_cannot_do_are_refused_at_once(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"height 512 is too large .* up to 256"):
        engine.generate(small(height=512))
    save_tiny(tmp_path / "schnell", guided=False)
    with pytest.raises(RequestError, match="takes no guidance"):
        Engine.open(tmp_path / "schnell").generate(small(guidance=3.0))


def _break(folder: Path, part: str, how: str) -> None:
    target = folder / part
    if how == "missing":
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    elif how == "truncated":
        target.write_bytes(target.read_bytes()[:-1000])
    elif how == "pickle":
        target.rename(target.with_suffix(".bin"))
    elif how == "not finite":
        data = bytearray(target.read_bytes())
        data[-2:] = b"\xff\x7f"
        target.write_bytes(data)
    else:
        target.write_text(how, "utf-8")


TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("part", "how", "said"),
    [
        ("model_index.json", "missing", "no model_index.json"),
        ("model_index.json", "{", "not valid JSON"),
        ("model_index.json", "[]", "not a JSON object"),
        ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}', "StableDiffusionPipeline"),
        ("transformer", "missing", "config.json"),
        ("vae/config.json", "{}", "lacks"),
        (TRANSFORMER, "missing", "no weights"),
        (TRANSFORMER, "pickle", "never loaded"),
        (TRANSFORMER, "truncated", "broken (it ends too early)"),
        (TRANSFORMER, "not safetensors", "is a text file, not a model"),
        ("tokenizer_2", "missing", "tokenizer_2"),
        ("scheduler/scheduler_config.json", "missing", "scheduler_config.json"),
        (
            "vae/config.json",
            '{"latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "shift_factor": 0}',
            "lacks 'down_block_types'",
        ),
        ("text_encoder/config.json", '{"architectures": 7}', "lacks 'vocab_size'"),
        ("t2i.json", '{"defaults": {"steps": 4}}', "wrong defaults"),
        ("t2i.json", "{}", "wrong defaults"),
    ],
)
def test_a_broken_folder_is_refused_with_the_part_that_is_missing(
    part: str, how: str, said: str, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    _break(folder, part, how)
    with pytest.raises(RequestError) as caught:
        Engine.open(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "how"),
    [
        (TRANSFORMER, "not finite"),
        ("tokenizer/tokenizer.json", "{}"),
        ("scheduler/scheduler_config.json", '{"use_karras_sigmas": true}'),
    ],
)
def test_broken_weights_fail_with_one_sentence_that_names_the_file(
    part: str, how: str, model: Path, tmp_path: Path, destination: Destination
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    _break(folder, part, how)
    last = list(Engine.open(folder, device="cpu").generate(small(), plan_output(None, 1)))[-1]
    assert isinstance(last, Failed)
    assert last.bad_input
    assert part.split("/")[0] in last.message
    assert "\n" not in last.message


def test_one_broken_file_is_read_once_for_all_pictures(model: Path, tmp_path: Path, destination: Destination) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    _break(folder, TRANSFORMER, "not finite")
    events = list(Engine.open(folder, device="cpu").generate(small(count=3), destination))
    assert [event.image for event in events if isinstance(event, Failed)] == [0, 1, 2]
    assert {event.image for event in events if isinstance(event, LoadProgress)} == {0}


def test_t5_holds_its_embedding_once_and_clip_may_bring_its_position_ids(
    model: Path, tmp_path: Path, destination: Destination
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "older"
    shutil.copytree(model, folder)
    clip = folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(clip), "text_model.embeddings.position_ids": torch.arange(32)[None]}, clip)
    with Engine.open(folder, device="cpu") as engine:
        assert isinstance(list(engine.generate(small(), destination))[-1], ImageSaved)
        component = engine.runtime().components.component("text_encoder_2", FP32)
    assert [piece.stored for unit in component.units for piece in unit.pieces if "embed" in piece.stored] == []
    assert component.host_shape == component.wanted["shared.weight"]


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_weights_with_scales_of_their_own_are_read_with_them(precision: str, model: Path, tmp_path: Path) -> None:
    """In FP8 they stay as they are: the picture is that of the numbers that they mean, which FP8 cannot hold better."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / TRANSFORMER)
    scaled, meant = dict(weights), dict(weights)
    for name in [name for name in weights if "blocks." in name and name.endswith(".weight") and "norm" not in name]:
        scale = weights[name].abs().amax(dim=1) / 2.0 ** torch.randint(5, 9, weights[name].shape[:1])
        scaled[name] = (weights[name] / scale[:, None]).to(torch.float8_e4m3fn)
        scaled[f"{name}_scale"] = torch.exp2(scale.log2().round())  # a power of two: nothing is rounded again
        meant[name] = scaled[name].float() * scaled[f"{name}_scale"][:, None]
    pictures = {}
    for kind, state in (
        ("scaled", scaled),
        ("meant", meant),
        ("ignored", {**weights, **{n: scaled[n] for n in meant}}),
    ):
        folder = tmp_path / kind
        shutil.copytree(model, folder)
        save_file(state, folder / TRANSFORMER)
        with Engine.open(folder, device="cpu") as engine:
            saved = list(engine.generate(small(precision=precision), plan_output(tmp_path, 1)))[-1]
        assert isinstance(saved, ImageSaved), saved
        pictures[kind] = Image.open(saved.path).tobytes()
    assert pictures["scaled"] == pictures["meant"]
    assert pictures["ignored"] != pictures["meant"]


def test_weights_that_are_not_numbers_do_not_become_a_picture(
    model: Path, tmp_path: Path, destination: Destination
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    weights = load_file(folder / TRANSFORMER)
    weights["proj_out.weight"] = weights["proj_out.weight"] * float("nan")
    save_file(weights, folder / TRANSFORMER)
    last = list(Engine.open(folder, device="cpu").generate(small(), destination))[-1]
    assert isinstance(last, Failed)
    assert "not finite" in last.message


def test_an_unknown_model_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="did you mean 'demo'"):
        Engine.open("dmeo")


def test_latents_that_were_not_saved_are_decoded_when_asked_for_again(tmp_path: Path) -> None:
    request = Request("a red circle", seed=4, steps=3)
    destination = plan_output(tmp_path, 1)
    with Engine.open("demo") as engine:
        (first,) = [event.path for event in engine.generate(request, destination) if isinstance(event, ImageSaved)]
        with (
            pytest.MonkeyPatch.context() as patch,
            closing(engine.generate(request, destination)) as events,
        ):
            patch.setattr("engine.sampling.decode.decode", _fail)
            failed = list(events)[-1]
            assert isinstance(failed, Failed)
            assert failed.phase == "decode"
        (kept,) = (state_dir() / "latents").iterdir()
        again = list(engine.generate(replace(request, template="{a red circle}"), destination))
        assert [event.steps for event in again if isinstance(event, LatentsRestored)] == [3]
        assert not any(isinstance(event, StepFinished) for event in again)
        saved = again[-1]
        assert isinstance(saved, ImageSaved)
        assert Image.open(saved.path).tobytes() == Image.open(first).tobytes()
        assert not kept.exists()


@pytest.mark.parametrize("harm", ["cut", "other", "shape"])
def test_kept_latents_that_are_not_right_are_not_used(tmp_path: Path, harm: str) -> None:
    kept = KeptLatents(Request("a red circle", seed=4, steps=3), model_hash="x")
    latents = torch.ones(1, 4, 8)
    kept.keep(latents)
    assert kept.find((1, 4, 8)) is not None
    assert KeptLatents(Request("a red circle", seed=5, steps=3), model_hash="x").find((1, 4, 8)) is None
    if harm == "cut":
        kept.path.write_bytes(kept.path.read_bytes()[:-4])
    elif harm == "other":
        kept.path.write_bytes(b"not safetensors")
    assert kept.find((1, 4, 8) if harm != "shape" else (1, 4, 9)) is None


def test_a_load_before_the_first_picture_brings_everything_in(tmp_path: Path) -> None:
    with Engine.open("demo") as engine:
        loaded = [event.component for event in engine.load() if isinstance(event, LoadProgress)]
        assert set(loaded) == {"text_encoder", "text_encoder_2", "transformer", "vae"}
        events = list(engine.generate(Request("a red circle", seed=4, steps=1), plan_output(tmp_path, 1)))
        assert not any(isinstance(event, LoadProgress) for event in events)


def test_a_budget_too_small_for_the_models_own_size_does_not_refuse_the_model(tmp_path: Path) -> None:
    whole = Repeat(tile=0)
    with Engine.open("demo", device="cpu", repeat=whole) as engine:
        need = engine.plan(Request("a circle", width=64, height=64)).peak_bytes
    with Engine.open("demo", device="cpu", vram=f"{need / 2**20 + 0.1:.1f}MiB", repeat=whole) as engine:
        assert list(engine.load()) == []
        failed = list(engine.generate(Request("a circle", seed=1), plan_output(tmp_path, 1)))[-1]
        assert isinstance(failed, Failed)
        assert "needs at least" in failed.message
        small_one = Request("a circle", seed=1, width=64, height=64)
        assert isinstance(list(engine.generate(small_one, plan_output(tmp_path, 1)))[-1], ImageSaved)
    with Engine.open("demo", device="cpu", ram="900GiB") as engine, pytest.raises(RequestError, match="more than"):
        list(engine.load())


def _fail(*_: object) -> None:
    raise RuntimeError("the card fell off the bus")


def test_a_distilled_text_encoder_reads_the_prompt_where_it_is_asked_for(destination: Destination) -> None:
    with Engine.open("demo", device="cpu") as engine:
        request = Request("a red circle", seed=1, steps=2)
        plain, distilled, again = (
            list(engine.generate(replace(request, distill=distill), destination))[-1] for distill in (False, True, True)
        )
        kept = set(engine.runtime().components._open)
    assert isinstance(plain, ImageSaved)
    assert isinstance(distilled, ImageSaved)
    assert isinstance(again, ImageSaved)
    assert Image.open(distilled.path).tobytes() == Image.open(again.path).tobytes()
    assert Image.open(distilled.path).tobytes() != Image.open(plain.path).tobytes()
    records = [read_record(saved.path) for saved in (plain, distilled)]
    assert [record.request.distill for record in records] == [False, True]
    assert records[0].model_hash != records[1].model_hash
    assert "text_encoder_2" not in kept, "T5 is not kept in RAM for a picture that does not need it"


def test_a_model_without_a_distilled_text_encoder_says_where_to_get_one(model: Path, destination: Destination) -> None:
    with Engine.open(model, device="cpu") as engine:
        assert "distill" not in {option.name for option in engine.options}
        with pytest.raises(RequestError, match="t2i models pull distillt5"):
            engine.generate(small(distill=True), destination)
