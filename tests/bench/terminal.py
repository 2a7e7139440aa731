"""How the app feels, measured in a real pseudo-terminal: `python -m tests.bench.terminal [--quick]`.

First paint against an empty Textual app, key press to paint while a picture is being made, the live plan, the memory's
curve, bytes a second, time to leave, and what kills of the engine's process do. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import compileall
import os
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from engine import Engine, Request
from engine.images.metadata import read_record
from engine.memory_watch import SAMPLE_SECONDS
from engine.process import (
    EngineProcess,
    Foresee,
    Foreseen,
    JobEvent,
    LoadEvent,
    Message,
    ModelLoaded,
    ModelOpened,
    OpenModel,
)
from tests.terminals import ROOT, Terminal

EMPTY_APP = """
from textual.app import App
from textual.widgets import Static
class Empty(App):
    def compose(self):
        yield Static("pictures")
Empty().run()
"""
APP = ("-m", "tui")
LONG = {"chosen": {"steps": 1000, "width": 256, "height": 256}, "seed": None, "count": 1}
PHASES = ("load", "encode", "denoise", "decode", "save")


def main() -> None:
    """Measure everything and print a table."""
    run(
        __doc__,
        {
            "paint": lambda few: first_paint(3 if few else 11),
            "keys": lambda few: key_presses(40 if few else 200),
            "plan": lambda few: live_plan(30 if few else 300),
            "watch": lambda few: watching_memory(5 if few else 30),
            "bytes": lambda few: bytes_a_second(3 if few else 10),
            "leave": lambda few: leaving(1 if few else 5),
            "kills": lambda few: asyncio.run(kills(10 if few else 50)),
        },
    )


def run(about: str | None, parts: Mapping[str, Callable[[bool], None]]) -> None:
    """Run the parts that the command line asks for, in folders of their own; each is told whether to repeat less."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", choices=[*parts], help="one part")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
            os.environ[f"TEXTTOIMAGETOOL_{name}_DIR"] = str(Path(scratch) / name.lower())
        for name, part in parts.items():
            if arguments.only in (None, name):
                part(arguments.quick)


def first_paint(times: int) -> None:
    """From the start of the process to the first screen, ours and an empty app's in turns."""
    for package in ("engine", "tui", "themes"):  # as pip does when it installs
        compileall.compile_dir(ROOT / package, quiet=1)
    seconds: dict[str, list[float]] = {"empty": [], "t2i": []}
    for turn in range(times + 1):
        for name, command in (("empty", ("-c", EMPTY_APP)), ("t2i", APP)):
            began = time.perf_counter()
            terminal = Terminal(command)
            terminal.wait_for(b"pictures")
            if turn:  # the first fills the disk's cache
                seconds[name].append(time.perf_counter() - began)
            terminal.kill()
            terminal.exit_code()
    empty, ours = (statistics.median(values) for values in seconds.values())
    report("first paint, t2i against an empty Textual app", f"{ours:.2f} / {empty:.2f} s = {ours / empty:.2f}", "1.5")


def forget() -> None:
    """Nothing waits from a run before, and the next picture is a long one."""
    from engine import folders
    from tui.history import History

    history = History.open(folders.state_dir())
    history.adopt()
    for job in history.queue():
        history.remove(job.id)
    history.save("parameters", LONG)
    history.save("draft", "")
    history.close()


def long_job(*flags: str) -> Terminal:
    """The app in the middle of a picture of 1000 steps."""
    forget()
    terminal = Terminal((*APP, *flags))
    terminal.wait_to_see("ready")
    terminal.write(b"a red circle\r")
    terminal.wait_to_see("s/step")
    return terminal


def key_presses(times: int) -> None:
    """From a letter's byte to the letter on the screen, while both cores paint."""
    terminal = long_job("--preview", "low")
    letters, milliseconds = random.Random(1), []
    typed = ""
    for number in range(times + 5):
        if number % 40 == 0:
            terminal.write(b"\x15")  # delete to the start of the line
            time.sleep(0.3)
            typed = ""
        letter = letters.choice(string.ascii_uppercase.replace("A", ""))
        typed += letter
        wanted = typed[-5:]
        began = time.perf_counter()
        terminal.write(letter.encode())
        while wanted not in terminal.shown():
            time.sleep(0.0005)
            assert time.perf_counter() - began < 20, "the letter is not painted"
        if number >= 5:
            milliseconds.append(1000 * (time.perf_counter() - began))
        time.sleep(letters.uniform(0.02, 0.15))
    terminal.kill()
    terminal.exit_code()
    ordered = sorted(milliseconds)
    p99 = ordered[max(0, round(0.99 * len(ordered)) - 1)]
    report(
        f"key press to paint in a 1000-step picture, {len(ordered)} presses",
        f"median {statistics.median(ordered):.0f}, p99 {p99:.0f}, max {ordered[-1]:.0f} ms",
        "p99 100 ms",
    )


def live_plan(times: int) -> None:
    """From a change to the engine's answer, while it is idle; sizes and step counts were measured once before."""
    for model, simulate, sizes in (("demo", False, (128, 192)), ("flux.1-dev", True, (768, 1024))):
        engine = EngineProcess()
        engine.send(OpenModel(model, simulate=simulate, vram="12GiB" if simulate else "auto"))
        _hear(engine, ModelLoaded)
        milliseconds = []
        for number in range(-len(sizes), times):
            size = sizes[number % len(sizes)]
            words = f"a red circle and {number} blue squares"
            request = Request(words, steps=4 + number % 30, width=size, height=size)
            began = time.perf_counter()
            engine.send(Foresee(number, request))
            _hear(engine, Foreseen)
            if number >= 0:
                milliseconds.append(1000 * (time.perf_counter() - began))
        engine.stop()
        ordered = sorted(milliseconds)
        p99 = ordered[max(0, round(0.99 * len(ordered)) - 1)]
        figure = f"median {statistics.median(ordered):.0f}, p99 {p99:.0f} ms"
        report(f"a change of prompt and steps to its plan, {model}, {times} changes", figure, "p99 150 ms")


def _hear(engine: EngineProcess, kind: type) -> None:
    while not isinstance(engine.receive(120), kind):
        pass


def watching_memory(times: int) -> None:
    """What the samples of the memory's curve cost: the thread's own time in a second of work."""
    with Engine.open("demo", device="cpu") as engine:
        engine.plan(Request("a red circle"))
        look, began = engine.runtime().memory_use, time.thread_time()
        for _ in range(100 * times):
            look()
        each = (time.thread_time() - began) / (100 * times)
    share = 100 * each / SAMPLE_SECONDS
    report("a sample of memory", f"{1e6 * each:.0f} microseconds, {share:.2f} % of one core's time", "1 %")


def bytes_a_second(seconds: int) -> None:
    """What goes over the line at 80x24 while idle, and while a picture is made with a preview of 32x16 cells."""
    forget()
    terminal = Terminal((*APP, "--preview", "low"))
    terminal.wait_to_see("ready")
    time.sleep(2)
    before = terminal.bytes_read
    time.sleep(seconds)
    report(f"bytes written while idle, {seconds} s", f"{terminal.bytes_read - before}", "0")
    terminal.kill()
    terminal.exit_code()
    for name, environment in (("local", {}), ("ssh", {"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22"})):
        os.environ.update(environment)
        terminal = long_job("--preview", "low")
        time.sleep(1)
        before, began = terminal.bytes_read, time.perf_counter()
        time.sleep(seconds)
        rate = (terminal.bytes_read - before) / (time.perf_counter() - began) / 1000
        report(f"written while denoising, preview 32x16, {name}", f"{rate:.1f} kB/s", "45 kB/s")
        terminal.kill()
        terminal.exit_code()
        for variable in environment:
            del os.environ[variable]


def leaving(times: int) -> None:
    """Quit while denoising, and kill the app: how long it, and how long the engine, is there afterwards."""
    quits, orphans = [], []
    for _ in range(times):
        terminal = long_job()
        began = time.perf_counter()
        terminal.write(b"\x11")
        terminal.exit_code()
        quits.append(time.perf_counter() - began)
        terminal = long_job()
        engines = terminal.children()
        began = time.perf_counter()
        terminal.kill()
        terminal.exit_code()
        _, alive = psutil.wait_procs(engines, timeout=20)
        assert not alive
        orphans.append(time.perf_counter() - began)
    report("quit while denoising", f"median {statistics.median(quits):.2f}, max {max(quits):.2f} s", "2 s")
    report("kill of the app, until the engine has gone", f"max {max(orphans):.2f} s", "3 s")


async def kills(times: int) -> None:
    """Kill the engine's process again and again, in every phase, and count what comes of it."""
    from tests.apps import running, until

    chance = random.Random(2)
    outcomes: collections.Counter[str] = collections.Counter()
    phases: collections.Counter[str] = collections.Counter()
    forget()
    async with running(preview="low") as (app, pilot):
        session, wanted, pids = app.session, "", set[int]()
        receive = session.receive

        def kill(pid: int) -> None:
            """Where it still runs."""
            nonlocal wanted
            if app.client.pid == pid:
                wanted = ""  # once a picture
                phases[session.progress.running or "save"] += 1
                psutil.Process(pid).kill()

        def receive_and_kill(message: Message) -> str:
            said = receive(message)
            phase = getattr(message.event, "phase", None) if isinstance(message, JobEvent | LoadEvent) else None
            loads = isinstance(message, ModelOpened) and wanted == "load"
            pid = app.client.pid
            if (loads or phase == wanted) and pid is not None and pid not in pids and session.running is not None:
                pids.add(pid)
                delay = chance.uniform(0, {"load": 2.0, "denoise": 1.0}.get(wanted, 0.0))
                app.set_timer(delay, lambda: kill(pid)) if delay else kill(pid)
            return said

        session.receive = receive_and_kill  # type: ignore[method-assign]
        for number in range(times):
            wanted = PHASES[number % len(PHASES)]
            session.parameters.write("steps", "150" if wanted == "denoise" else "2")
            session.parameters.write("size", "256x256")
            if wanted == "load":
                app.client.stop()
                session.engine_state = "gone"
            before, killed = len(session.results), sum(phases.values())
            prompt = f"a red circle, number {number}"
            app.main.prompt.put(prompt)
            await pilot.press("enter")
            await until(pilot, lambda before=before: len(session.results) > before)  # type: ignore[misc]
            wanted = ""
            job = session.results[0]
            outcomes["kills"] += sum(phases.values()) - killed
            outcomes["pictures"] += job.state == "done"
            outcomes["failed with a message"] += job.state == "failed" and bool(job.message)
            outcomes["lost"] += job.state not in ("done", "failed") or (job.state == "failed" and not job.message)
            session.parameters.write("steps", "1")
            app.main.prompt.put("a white star")
            await pilot.press("enter")
            await until(pilot, lambda before=before: len(session.results) > before + 1)  # type: ignore[misc]
            outcomes["recoveries"] += session.results[0].state == "done"
        folder, last = app.output_folder, app.client.pid
    left = [pid for pid in {*pids, *([last] if last else [])} if psutil.pid_exists(pid)]
    pictures = [read_record(path) for path in folder.glob("*.png")]  # raises for half a picture
    figures = [f"{outcomes['kills']} kills", f"{outcomes['recoveries']} of {times} recoveries"]
    figures += [f"{outcomes[name]} {name}" for name in ("pictures", "failed with a message", "lost")]
    report(
        f"kills of the engine ({', '.join(f'{phase} {phases[phase]}' for phase in PHASES)})",
        ", ".join([*figures, f"{len(left)} stray", f"{len(pictures)} whole files"]),
        f"{times} recoveries, 0 lost, 0 stray",
    )


def report(what: str, figure: str, target: str) -> None:
    """A line of the table."""
    print(f"| {what} | {figure} | {target} |", flush=True)


if __name__ == "__main__":
    main()
