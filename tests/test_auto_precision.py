"""The precision that auto chooses: the best picture that streams nothing, else the fastest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine import Engine, Request, RequestError
from engine.cli.commands import main
from engine.events import Planned
from engine.families.flux1 import published as flux1
from engine.images.metadata import Record, read_record
from engine.library.catalog import published
from engine.memory.choice import LEVELS, choose, levels
from engine.memory.layout import BudgetError, Layout
from engine.precision import PRECISIONS
from engine.quantization.int8 import Choice
from engine.request import AUTO, Option
from engine.text import duration
from engine.weights.model import Model, component_in
from tests import checkpoints
from tests.checkpoints import save
from tests.models import small_kit
from tests.tiny import save_tiny
from tui.parameters import Parameters

DEV = published(flux1.DEV)
SMALL = Request("a red circle", seed=3, steps=1, width=64, height=64)
FLUX = Request("a lighthouse", seed=1, width=1024, height=1024)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[tuple[str, str], Engine]]:
    """flux.1-dev by simulated card and budget."""
    opened = {
        (card, vram): Engine.open("flux.1-dev", simulate=True, card=card, vram=vram)
        for card, vram in (
            ("rtx-3060", "12GiB"),
            ("rtx-3060", "6GiB"),
            ("rtx-3090", "24GiB"),
            ("rtx-4090", "12GiB"),
            ("h100", "12GiB"),
        )
    }
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.mark.parametrize(
    ("card", "vram", "chosen", "reasons"),
    [
        ("rtx-3060", "12GiB", "int8", ("int8: bf16 would stream ", " GiB a step; fp8 would take {fp8} a picture")),
        (
            "rtx-3060",
            "6GiB",
            "int8",
            ("int8: none fits whole, and it is the fastest, {int8} a picture (bf16 {bf16}, fp8 {fp8})",),
        ),
        ("rtx-3090", "24GiB", "bf16", ("bf16: as the model prefers it",)),
        ("rtx-4090", "12GiB", "fp8", ("fp8: bf16 would stream ", "int8 would take {int8} a picture")),
        ("h100", "12GiB", "fp8", ("fp8: bf16 would stream ", "int8 would take {int8} a picture")),
    ],
)
def test_the_best_picture_that_streams_nothing_else_the_fastest(
    card: str, vram: str, chosen: str, reasons: tuple[str, ...], engines: dict[tuple[str, str], Engine]
) -> None:
    engine = engines[card, vram]
    plan = engine.plan(FLUX)
    assert plan.precision == chosen
    seconds = {p: engine.plan(replace(FLUX, precision=p)).new_prompt.seconds for p in PRECISIONS[1:]}
    told = {precision: duration(each) for precision, each in seconds.items()}
    assert all(reason.format(**told) in plan.precision_reason for reason in reasons), plan.precision_reason
    named = engine.plan(replace(FLUX, precision=chosen))
    assert named == replace(plan, precision_reason=""), "what is chosen is planned as if it had been named"
    whole = [p for p in PRECISIONS if p != "fp32" and not streams(engine, p)]
    if whole:
        assert chosen in whole
    else:
        assert seconds[chosen] == min(seconds.values())


def streams(engine: Engine, precision: str) -> bool:
    return engine.plan(replace(FLUX, precision=precision)).phases[1].streamed_bytes_per_step > 0


def test_where_none_fits_the_smallest_budget_of_all_is_named() -> None:
    floors = []
    with Engine.open("demo", simulate=True, vram="1MiB") as engine:
        for precision in PRECISIONS:
            with pytest.raises(BudgetError) as refused:
                engine.plan(replace(SMALL, precision=precision))
            floors.append(refused.value.floor_bytes)
        with pytest.raises(BudgetError) as refused:
            engine.plan(SMALL)
    assert refused.value.floor_bytes == min(floors) < max(floors)
    assert refused.value.field == "vram"


def test_what_a_probe_measured_on_the_card_wins_over_its_profile(engines: dict[tuple[str, str], Engine]) -> None:
    engine = engines["rtx-3060", "12GiB"]
    runtime = engine.runtime()
    before = runtime.target, runtime.planner
    try:
        runtime.heed(Choice("triton", 1.28))  # as on an H100
        plan = engine.plan(FLUX)
        assert plan.precision == "fp8"
        slower = engine.plan(replace(FLUX, precision="int8")).new_prompt.seconds
        assert f"int8 would take {duration(slower)} a picture" in plan.precision_reason
    finally:
        runtime.target, runtime.planner = before


def test_nothing_is_chosen_that_has_more_bits_than_the_file(tmp_path: Path) -> None:
    file = save(checkpoints.scaled_fp8(small_kit().transformer)[0], tmp_path / "fp8.safetensors")
    fp8 = component_in(file, "transformer")

    def of(precision: str, stored: str) -> Model:
        found = {"transformer": replace(fp8, precision=stored)}
        return replace(DEV, found=found, defaults=replace(DEV.defaults, precision=precision))

    assert levels(DEV, on_card=True) == LEVELS[1:]
    assert levels(of("fp32", "fp32"), on_card=True) == LEVELS
    assert levels(of("fp8", fp8.precision), on_card=True) == (("fp8",), ("int8",)), "int8 rounds them anew"
    assert levels(of("fp8", "Q4_0"), on_card=True) == (("fp8", "int8"),)
    assert levels(of("fp8", "Q4_0"), on_card=False) == (("fp8",),)


def test_the_first_level_that_fits_ends_the_search() -> None:
    planned: list[str] = []

    def plan(request: Request) -> Layout:
        planned.append(str(request.precision))
        return layout

    with Engine.open("demo", simulate=True) as engine:
        request, layout = engine.context.planned(engine.resolve(replace(SMALL, precision="fp32")))
        candidates = [[replace(request, precision=each) for each in level] for level in LEVELS]
        assert choose(candidates, plan)[0].precision == "fp32"
    assert planned == ["fp32"]


class TestWhatIsKept:
    def test_a_picture_says_what_was_chosen_and_repeats_it(self, tmp_path: Path) -> None:
        picture, again = tmp_path / "one.png", tmp_path / "two.png"
        arguments = ["--device", "cpu", "--steps", "1", "--seed", "3", "-q"]
        assert main(["generate", "-p", "a star", "--precision", "auto", *arguments, "-o", str(picture)]) == 0
        assert read_record(picture).request.precision == "fp32", "the demo's own on a CPU"
        assert main(["generate", "--from", str(picture), "-q", "-o", str(again)]) == 0
        assert read_record(again).request == read_record(picture).request

    def test_a_record_with_an_open_choice_is_none(self, tmp_path: Path) -> None:
        picture = tmp_path / "one.png"
        assert main(["generate", "-p", "a star", "--device", "cpu", "--steps", "1", "-q", "-o", str(picture)]) == 0
        values = json.loads(read_record(picture).to_json())
        values["request"]["precision"] = "auto"
        with pytest.raises(ValueError, match="request must say precision"):
            Record.from_json(json.dumps(values))

    def test_a_repeated_picture_may_be_chosen_for_anew(self, tmp_path: Path) -> None:
        picture, again = tmp_path / "one.png", tmp_path / "two.png"
        first = ["generate", "-p", "a star", "--precision", "int8", "--device", "cpu", "--steps", "1", "-q"]
        assert main([*first, "-o", str(picture)]) == 0
        assert main(["generate", "--from", str(picture), "--precision", "auto", "-q", "-o", str(again)]) == 0
        assert (read_record(again).request.precision, read_record(again).request.salience) == ("fp32", None)

    def test_the_plan_as_json_says_the_choice_and_why(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "--model", "demo", "--device", "cpu", "--precision", "auto", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert (plan["precision"], plan["precision_reason"]) == ("fp32", "fp32: as the model prefers it")

    def test_a_simulated_picture_is_planned_with_what_was_chosen(self) -> None:
        with Engine.open("demo", simulate=True, vram="2GiB") as engine:
            planned = next(event for event in engine.generate(SMALL) if isinstance(event, Planned))
        assert planned.plan.precision == "fp32", "all of it fits"

    def test_a_model_may_not_prefer_auto(self, tmp_path: Path) -> None:
        save_tiny(tmp_path, guided=True)
        defaults = {"steps": 4, "width": 64, "height": 64, "guidance": 3.5, "precision": "auto"}
        (tmp_path / "t2i.json").write_text(json.dumps({"defaults": defaults}))
        with pytest.raises(RequestError, match="has wrong defaults"):
            Engine.open(tmp_path)

    def test_salience_needs_int8_by_name(self) -> None:
        with Engine.open("demo", simulate=True) as engine, pytest.raises(RequestError, match="add --precision int8"):
            engine.resolve(replace(SMALL, salience="csb"))


class TestInThePanel:
    OPTIONS = (
        Option("width", 1024, 64, 2048, 16),
        Option("height", 1024, 64, 2048, 16),
        Option("precision", AUTO, choices=(AUTO, *PRECISIONS)),
    )

    def test_the_panel_shows_what_auto_chose_for_this_size(self, engines: dict[tuple[str, str], Engine]) -> None:
        parameters = Parameters(self.OPTIONS)
        assert parameters.shown("precision") == "auto"
        parameters.auto = engines["rtx-3060", "12GiB"].plan(FLUX)
        assert parameters.shown("precision") == "auto (int8)"
        parameters.write("size", "512x512")
        assert parameters.shown("precision") == "auto", "for another size it may be another"
        parameters.write("precision", "bf16")
        assert parameters.shown("precision") == "bf16"
        parameters.write("precision", "auto")
        assert parameters.is_default("precision")
        assert "precision" not in parameters.requested()

    def test_a_picture_of_what_auto_chooses_here_leaves_it_at_auto(
        self, engines: dict[tuple[str, str], Engine]
    ) -> None:
        parameters = Parameters(self.OPTIONS)
        parameters.auto = engines["rtx-3060", "12GiB"].plan(FLUX)
        parameters.take(replace(FLUX, precision="int8"), seed=True)
        assert parameters.chosen == {}
        parameters.take(replace(FLUX, precision="bf16"), seed=True)
        assert parameters.chosen == {"precision": "bf16"}
