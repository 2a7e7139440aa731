"""The engine's process: real kills, real cancelling, the demo model for real."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from engine import events
from engine.events import Event, ImageSaved, LatentsRestored, PhaseFinished, PhaseStarted, StepFinished
from engine.folders import state_dir
from engine.images.metadata import read_record
from engine.process import (
    Cancel,
    EngineProcess,
    Foresee,
    Foreseen,
    JobEvent,
    JobRefused,
    MemorySampled,
    Message,
    ModelLoaded,
    ModelOpened,
    ModelRefused,
    OpenModel,
    Paint,
    _Server,
)
from engine.request import Request

PATIENCE = 120  # seconds without a word: then something hangs
PROMPT = "a red circle above a blue square"
IMPORTING = pytest.param("load", marks=pytest.mark.spawned, id="import")


@pytest.fixture
def process() -> Iterator[EngineProcess]:
    engine = EngineProcess()
    yield engine
    kill(engine)


def kill(engine: EngineProcess) -> None:
    """From outside, as the kernel does."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(engine.pid).kill()


def heard(engine: EngineProcess, *until: type) -> list[Message]:
    """Everything up to the first message, or job's event, of these kinds."""
    said: list[Message] = []
    while True:
        message = engine.receive(PATIENCE)
        assert message is not None, f"nothing came; so far {said}"
        said.append(message)
        if isinstance(message, until) or (isinstance(message, JobEvent) and isinstance(message.event, until)):
            return said


def job_events(said: list[Message], job: str) -> list[Event]:
    return [message.event for message in said if isinstance(message, JobEvent) and message.job == job]


def wait_for(engine: EngineProcess, phase: str) -> None:
    """Until a job enters `phase`; for "load" until the model's folder is open and torch, if it is spawned, comes in."""
    if phase == "load":
        heard(engine, ModelOpened)
        return
    while True:
        message = heard(engine, PhaseStarted)[-1]
        assert isinstance(message, JobEvent)
        assert isinstance(message.event, PhaseStarted)
        if message.event.phase == phase:
            return


def hear_the_end(engine: EngineProcess) -> None:
    try:
        while engine.receive(PATIENCE) is not None:
            pass
    except EOFError:
        return
    pytest.fail("the pipe stays open")


def test_a_model_is_opened_announced_and_loaded(process: EngineProcess) -> None:
    process.send(OpenModel("demo"))
    opened = heard(process, ModelOpened)[-1]
    assert isinstance(opened, ModelOpened)
    assert opened.defaults.steps == 4
    assert [option.name for option in opened.options] == (
        "steps width height guidance cfg negative_prompt guidance_schedule cfg_zero apg precision distill".split()
    )
    loaded = heard(process, ModelLoaded)[-1]
    assert isinstance(loaded, ModelLoaded)
    assert (loaded.device, loaded.device_name, loaded.device_uuid) == ("cpu", "CPU", None)


def test_a_picture_comes_with_every_event_in_order(process: EngineProcess, tmp_path: Path) -> None:
    process.send(OpenModel("demo"))
    process.send(Paint("first", Request(PROMPT, seed=3), str(tmp_path)))
    said = job_events(heard(process, *events.TERMINAL), "first")
    assert [event.phase for event in said if isinstance(event, PhaseFinished)] == [
        "encode",
        "denoise",
        "decode",
        "save",
    ]
    saved = said[-1]
    assert isinstance(saved, ImageSaved)
    assert read_record(saved.path).request.prompt == PROMPT


def test_bad_models_and_bad_folders_are_refused_with_a_sentence(process: EngineProcess, tmp_path: Path) -> None:
    process.send(OpenModel("dmeo"))
    process.send(Paint("none", Request(PROMPT), str(tmp_path)))
    said = heard(process, JobRefused)
    assert isinstance(said[0], ModelRefused)
    assert "did you mean 'demo'" in said[0].message
    assert isinstance(said[-1], JobRefused)
    assert said[-1].field == "model"
    process.send(OpenModel("demo"))  # the process is not lost
    process.send(Paint("nowhere", Request(PROMPT), str(tmp_path / "missing")))
    refused = heard(process, JobRefused)[-1]
    assert isinstance(refused, JobRefused)
    assert refused.field == "output"
    process.send(Paint("large", Request(PROMPT, width=1024, height=1024), str(tmp_path)))
    refused = heard(process, JobRefused)[-1]
    assert isinstance(refused, JobRefused)
    assert refused.field == "width"


def test_memory_is_told_over_the_time_of_a_job(process: EngineProcess, tmp_path: Path) -> None:
    process.send(OpenModel("demo"))
    process.send(Paint("a", Request(PROMPT, seed=1, steps=8), str(tmp_path)))
    said = heard(process, ImageSaved)
    said.append(heard(process, MemorySampled)[-1])  # the last comes after the picture
    samples = [sample for message in said if isinstance(message, MemorySampled) for sample in message.samples]
    moments = [sample.seconds for sample in samples]
    assert moments == sorted(moments)
    saved = job_events(said, "a")[-1].elapsed_seconds
    gaps = [after - before for before, after in pairwise([0.0, *moments])]
    assert moments[-1] >= saved - 0.1
    assert sorted(gaps)[len(gaps) // 2] < 0.1
    assert all(sample.ram_bytes > 2**20 for sample in samples)


def test_a_question_waits_for_work_and_only_the_last_is_answered(process: EngineProcess) -> None:
    process.send(Foresee(0, Request(PROMPT)))  # no model is open
    process.send(OpenModel("demo"))
    for number in range(1, 4):
        process.send(Foresee(number, Request(PROMPT, steps=number)))
    said = heard(process, Foreseen)
    assert any(isinstance(message, ModelLoaded) for message in said)  # a question does not break off the loading
    answer = said[-1]
    assert isinstance(answer, Foreseen)
    assert answer.plan is not None
    assert (answer.number, answer.plan.steps, answer.refusal) == (3, 3, "")
    assert answer.tokens is not None
    assert (answer.tokens.limit, answer.tokens.cut) == (32, "")

    words = [f"word{number}" for number in range(40)]
    process.send(Foresee(4, Request(" ".join(words), width=2048)))
    answer = heard(process, Foreseen)[-1]
    assert isinstance(answer, Foreseen)
    assert answer.plan is None
    assert "width 2048 is too large for demo" in answer.refusal
    assert answer.tokens is not None
    assert answer.tokens.count > answer.tokens.limit
    assert answer.tokens.cut.endswith("word38 word39")
    assert answer.tokens.cut in " ".join(words[1:])


@pytest.mark.parametrize("phase", [IMPORTING, "load", "encode", "denoise", "decode"])
def test_cancelling_works_in_every_phase_and_keeps_the_weights(
    process: EngineProcess, tmp_path: Path, phase: str
) -> None:
    process.send(OpenModel("demo"))
    process.send(Paint("long", Request(PROMPT, seed=1, steps=1000 if phase == "denoise" else 1), str(tmp_path)))
    wait_for(process, phase)
    process.send(Cancel("long"))
    last = heard(process, *events.TERMINAL)[-1]
    assert isinstance(last, JobEvent)
    if phase != "decode":  # which may be over before the word arrives
        assert isinstance(last.event, events.Cancelled)
        assert not list(tmp_path.iterdir())
    process.send(Paint("next", Request(PROMPT, seed=1), str(tmp_path)))
    said = job_events(heard(process, *events.TERMINAL), "next")
    assert isinstance(said[-1], ImageSaved)
    if phase in ("denoise", "decode"):
        assert not [
            event for event in said if isinstance(event, events.LoadProgress) and event.component == "transformer"
        ]


def test_a_job_can_be_cancelled_before_it_begins(process: EngineProcess, tmp_path: Path) -> None:
    process.send(OpenModel("demo"))
    for job in ("first", "second", "third"):
        process.send(Paint(job, Request(PROMPT, seed=1), str(tmp_path)))
    process.send(Cancel("second"))
    said = [*heard(process, *events.TERMINAL), *heard(process, *events.TERMINAL), *heard(process, *events.TERMINAL)]
    ends = {job: type(job_events(said, job)[-1]) for job in ("first", "second", "third")}
    assert ends == {"first": ImageSaved, "second": events.Cancelled, "third": ImageSaved}


def test_cancelling_after_the_step_ends_between_steps(process: EngineProcess, tmp_path: Path) -> None:
    process.send(OpenModel("demo"))
    process.send(Paint("long", Request(PROMPT, seed=1, steps=1000), str(tmp_path)))
    said = heard(process, StepFinished)
    process.send(Cancel("long", after_step=True))
    *_, before, last = [*said, *heard(process, *events.TERMINAL)]  # no other step may have ended in between
    assert isinstance(before, JobEvent)
    assert isinstance(last, JobEvent)
    assert isinstance(before.event, StepFinished)
    assert before.event.step < 1000
    assert isinstance(last.event, events.Cancelled)
    assert last.event.phase == "denoise"


@pytest.mark.parametrize("phase", [IMPORTING, "load", "encode", "denoise", "decode", "save"])
def test_a_kill_leaves_no_half_picture_and_its_reason(process: EngineProcess, tmp_path: Path, phase: str) -> None:
    process.send(OpenModel("demo"))
    process.send(Paint("doomed", Request(PROMPT, seed=5, steps=1000 if phase == "denoise" else 1), str(tmp_path)))
    wait_for(process, phase)
    kill(process)
    hear_the_end(process)
    assert "killed by SIGKILL" in process.death()
    assert not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    pictures = list(tmp_path.glob("*.png"))
    assert [read_record(path).request.seed for path in pictures] == [5] * len(pictures)  # a whole one, or none


def test_latents_that_were_finished_are_decoded_by_the_next_process(process: EngineProcess, tmp_path: Path) -> None:
    request = Request(PROMPT, seed=6, steps=20)
    process.send(OpenModel("demo"))
    process.send(Paint("doomed", request, str(tmp_path)))
    wait_for(process, "decode")
    kill(process)
    hear_the_end(process)
    fresh = EngineProcess()
    try:
        fresh.send(OpenModel("demo"))
        fresh.send(Paint("again", request, str(tmp_path)))
        said = job_events(heard(fresh, *events.TERMINAL), "again")
        assert any(isinstance(event, LatentsRestored) for event in said)
        assert not any(isinstance(event, StepFinished) for event in said)
        restored = said[-1]
        assert isinstance(restored, ImageSaved)
        fresh.send(Paint("compare", request, str(tmp_path)))
        said = job_events(heard(fresh, *events.TERMINAL), "compare")
        painted = said[-1]
        assert isinstance(painted, ImageSaved)
        assert sum(isinstance(event, StepFinished) for event in said) == 20  # the latents went with their picture
    finally:
        kill(fresh)
    from PIL import Image

    assert Image.open(restored.path).tobytes() == Image.open(painted.path).tobytes()


def test_what_the_process_prints_goes_to_its_log(process: EngineProcess, capfd: pytest.CaptureFixture[str]) -> None:
    process.send(OpenModel("demo"))
    heard(process, ModelLoaded)
    psutil.Process(process.pid).send_signal(11)  # a fault, as a broken driver makes one
    hear_the_end(process)
    reason = process.death()
    assert "SIGSEGV" in reason
    assert "Segmentation fault" in process.log.read_text()
    assert str(process.log) in reason
    assert capfd.readouterr() == ("", "")


def test_of_a_traceback_only_what_was_wrong_is_quoted(process: EngineProcess) -> None:
    psutil.Process(process.pid).kill()
    hear_the_end(process)
    with process.log.open("a") as log:
        log.write(
            'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    work()\nOSError: no luck\n'
        )
    assert "Its last words: OSError: no luck (all of them in" in process.death()


def test_a_model_that_cannot_be_opened_for_want_of_memory_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_memory(engine: object) -> NoReturn:
        raise MemoryError

    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr("engine.engine.Engine.load", out_of_memory)
    _Server(theirs)._open(OpenModel("demo"))
    said = [ours.recv(), ours.recv()]
    assert isinstance(said[1], ModelRefused)
    assert said[1].message.startswith("demo could not be opened: the machine ran out of memory (details in ")


def test_the_process_leaves_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys
from engine.process import EngineProcess, OpenModel, Paint, JobEvent
from engine.events import StepFinished
from engine.request import Request
if __name__ == "__main__":
    engine = EngineProcess()
    engine.send(OpenModel("demo"))
    engine.send(Paint("long", Request({PROMPT!r}, steps=1000, width=256, height=256), {str(tmp_path)!r}))
    while not (isinstance(message := engine.receive(), JobEvent) and isinstance(message.event, StepFinished)):
        pass
    print(engine.pid, flush=True)
    sys.stdin.read()
"""
    script = tmp_path / "owner.py"
    script.write_text(code)
    owner = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert owner.stdout is not None
    engine = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    gone, alive = psutil.wait_procs([engine], timeout=30)
    assert gone
    assert not alive
    assert not list(tmp_path.glob("*.png"))


def test_stopping_ends_the_process_while_it_denoises(process: EngineProcess, tmp_path: Path) -> None:
    process.send(OpenModel("demo"))
    process.send(Paint("long", Request(PROMPT, steps=1000, width=256, height=256), str(tmp_path)))
    heard(process, StepFinished)
    process.stop()
    assert not psutil.pid_exists(process.pid)
    hear_the_end(process)


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_latents_stay_when_the_owner_goes_away_during_decode(process: EngineProcess, tmp_path: Path, how: str) -> None:
    process.send(OpenModel("demo"))
    heard(process, ModelLoaded)
    process.send(Paint("doomed", Request(PROMPT, seed=8, steps=2, width=256, height=256), str(tmp_path)))
    wait_for(process, "decode")
    if how == "stop":
        process.stop()
    else:
        process.close()  # as when the owner is killed
        psutil.wait_procs([psutil.Process(process.pid)], timeout=30)
    saved, kept = list(tmp_path.glob("*.png")), list((state_dir() / "latents").glob("*.safetensors"))
    assert len(saved) + len(kept) == 1  # the picture, or what it needs


def test_the_process_runs_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    monkeypatch.setenv("TEXTTOIMAGETOOL_STATE_DIR", str(tmp_path / "state"))
    engine = EngineProcess()
    try:
        engine.send(OpenModel("demo"))
        engine.send(Paint("job", Request(PROMPT, seed=8, steps=1), str(tmp_path)))
        last = heard(engine, *events.TERMINAL)[-1]
        assert isinstance(last, JobEvent)
        assert isinstance(last.event, ImageSaved)
    finally:
        kill(engine)
        engine.log.unlink()
