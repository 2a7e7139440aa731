"""The app over a slow line, measured: `python -m tests.bench.link [--quick] [--only PART]`.

A pseudo-terminal with a rate, a round trip and a freeze in between, and an emulator of a terminal at the far end; no
sshd. Bytes are those that reach the terminal. Run it on an idle machine.
"""

from __future__ import annotations

import random
import re
import statistics
import time

import psutil
from rich.color import ColorSystem
from rich.console import Console
from textual.geometry import Size

from engine import folders
from engine.events import Preview
from tests.bench.terminal import forget, run
from tests.links import Linked
from tui.display.cells import Cells
from tui.history import History
from tui.widgets.picture import strips

SSH = {"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22"}
COLOURS = {"256": {"COLORTERM": ""}, "true": {"COLORTERM": "truecolor"}}
SIZES = ((80, 24), (120, 40), (200, 60))
START = {(80, 24): "8 k", (120, 40): "15 k", (200, 60): "30 k"}
APP = ("-m", "tui", "--images", "off")
PREVIEW = ("--preview", "low")
CANCEL = re.compile("cancelling|cancelled")
LETTERS = "bcdefghijklm"  # each of its own, so that one is seen to have come
FROZEN_PICTURE = {"chosen": {"steps": 20, "width": 128, "height": 128}, "seed": None, "count": 100}


def main() -> None:
    """Measure everything and print tables."""
    run(
        __doc__,
        {
            "frame": lambda few: frame_cost(10 if few else 40),
            "bytes": lambda few: count_bytes(5 if few else 10),
            "generate": lambda few: command_line(),
            "lines": lambda few: lines(1 if few else 3),
            "freeze": lambda few: freeze(5 if few else 30),
            "local": lambda few: local(40 if few else 150),
        },
    )


def ready(
    size: tuple[int, int] = (80, 24), colours: str = "256", *flags: str, rate: int = 0, trip: float = 0
) -> Linked:
    """The app, started over SSH and at rest."""
    forget()
    terminal = Linked((*APP, *flags), size, rate=rate, round_trip=trip, environment=COLOURS[colours] | SSH)
    terminal.wait_to_see("ready")
    quiet(terminal)
    return terminal


def quiet(terminal: Linked) -> None:
    """Until nothing was painted for a while."""
    while time.monotonic() - terminal.last_write < 0.6:
        time.sleep(0.05)


def end(terminal: Linked) -> None:
    """Kill the app and wait for its end."""
    terminal.kill()
    terminal.exit_code()


def cost(terminal: Linked, data: bytes) -> int:
    """The bytes that follow what was typed."""
    before = terminal.bytes_read
    terminal.write(data)
    time.sleep(0.3)
    quiet(terminal)
    return terminal.bytes_read - before


def paint(terminal: Linked) -> None:
    """Begin a picture of a thousand steps."""
    terminal.write(b"a red circle\r")
    terminal.wait_to_see("s/step")
    time.sleep(1)


def frame_cost(times: int) -> None:
    """Processor time of a preview of which every half-block changes, against what Textual alone spends on its text."""
    chance = random.Random(1)
    print("\n| a frame of 64x28 half-blocks | strips | differences | Textual | ratio |")
    print("|---|---|---|---|---|")
    for depth in (ColorSystem.TRUECOLOR, ColorSystem.EIGHT_BIT):
        console = Console(color_system="truecolor" if depth is ColorSystem.TRUECOLOR else "256", force_terminal=True)
        cells = Cells(depth)
        cells.forget(120, 40)
        taken: list[tuple[float, float, float]] = []
        for _ in range(times):
            began = time.process_time()
            noise = Preview(64, 56, chance.randbytes(3 * 64 * 56))
            lines = strips(noise, Size(64, 28), few_colors=depth is ColorSystem.EIGHT_BIT)
            made = time.process_time()
            cells.update([(row, 5, line) for row, line in enumerate(lines)], (0, 0))
            ours = time.process_time()
            for line in lines:
                line.render(console)
            taken.append((made - began, ours - made, time.process_time() - ours))
        making, ours, theirs = (1000 * min(column) for column in zip(*taken, strict=True))
        print(f"| {depth.name} | {making:.1f} | {ours:.1f} | {theirs:.1f} ms | {ours / theirs:.2f} |", flush=True)


def count_bytes(seconds: int) -> None:
    """What is sent for what is done, at three sizes."""
    print("\n| bytes | start until ready | letter | focus | idle | denoising a second | gallery | resize |")
    print("|---|---|---|---|---|---|---|---|")
    for size, colours in [*((size, "256") for size in SIZES), (SIZES[1], "true")]:
        terminal = ready(size, colours, *PREVIEW)
        start = terminal.bytes_read
        letters = [cost(terminal, letter.encode()) for letter in LETTERS[:5]]
        focus = cost(terminal, b"\x1b[O\x1b[I")
        before = terminal.bytes_read
        time.sleep(seconds)
        idle = terminal.bytes_read - before
        terminal.write(b"\x15")
        paint(terminal)
        before, began = terminal.bytes_read, time.monotonic()
        time.sleep(seconds)
        rate = (terminal.bytes_read - before) / (time.monotonic() - began)
        terminal.write(b"\x03")
        terminal.wait_to_see("cancelled")
        cost(terminal, b"\x1b")
        gallery = cost(terminal, b"l")
        cost(terminal, b"\x1b")
        before = terminal.bytes_read
        terminal.resize(size[0] - 2, size[1] - 1)
        time.sleep(0.5)
        quiet(terminal)
        figures = [start, max(letters), focus, idle, round(rate), gallery, terminal.bytes_read - before]
        print(f"| {size[0]}x{size[1]} {colours} | {' | '.join(f'{each:,}' for each in figures)} |", flush=True)
        end(terminal)
    print("| wanted | 8 k, 15 k, 30 k | 60 | 0 | 0 | 2,500; 120x40 true 6,000 | | |")


def command_line() -> None:
    """What `t2i generate` sends while it paints, over SSH."""
    terminal = Linked(("-m", "tui", "generate", "-p", "a red circle", "--steps", "1000"), environment=SSH)
    terminal.wait_to_see("s/step")
    before, began = terminal.bytes_read, time.monotonic()
    time.sleep(5)
    rate = (terminal.bytes_read - before) / (time.monotonic() - began)
    end(terminal)
    print(f"\n| t2i generate, bytes a second while denoising | {rate:,.0f} | a few hundred |", flush=True)


def echo(terminal: Linked, letters: str) -> list[float]:
    """Seconds from each key but the first until its letter is seen, with what was typed before it."""
    taken = []
    terminal.write(b"\x15")
    time.sleep(1)
    typed = ""
    for letter in letters:
        typed += letter
        began = time.monotonic()
        terminal.write(letter.encode())
        while typed not in terminal.shown():
            time.sleep(0.002)
            assert time.monotonic() - began < 60, terminal.shown()
        taken.append(time.monotonic() - began)
        time.sleep(0.17)
    return taken[1:]  # one letter alone is somewhere on the screen


def lines(times: int) -> None:
    """Echo, age of the screen and Ctrl+C on slow lines."""
    print("\n| line | echo idle: median, worst | denoising: median, worst | behind | Ctrl+C until cancelling |")
    print("|---|---|---|---|---|")
    for rate, trip, size, colours in (
        (0, 0.0, (80, 24), "256"),
        (256_000, 0.15, (80, 24), "256"),
        (64_000, 0.15, (80, 24), "256"),
        (64_000, 0.4, (80, 24), "256"),
        (64_000, 0.15, (120, 40), "true"),
    ):
        terminal = ready(size, colours, *PREVIEW, rate=rate, trip=trip)
        idle = echo(terminal, LETTERS)
        terminal.write(b"\x15")
        paint(terminal)
        time.sleep(3)
        terminal.behind = 0.0
        busy = [seconds for _ in range(times) for seconds in echo(terminal, LETTERS)]
        behind = terminal.behind
        began = time.monotonic()
        terminal.write(b"\x03")
        terminal.wait(lambda terminal=terminal: CANCEL.search(terminal.shown()))  # type: ignore[misc]
        cancelled = time.monotonic() - began
        name = f"{rate // 1000 or 'no limit,'} kbit/s" if rate else "no limit"
        print(
            f"| {name}, {1000 * trip:.0f} ms, {size[0]}x{size[1]} {colours} | {spread(idle)} | {spread(busy)} "
            f"| {behind:.2f} s | {cancelled:.2f} s |",
            flush=True,
        )
        end(terminal)
    print("| wanted at 64 kbit/s, 150 ms | | 0.4 s, 1.5 s | 1 s | 1.5 s |")


def spread(seconds: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(seconds):.2f}, {max(seconds):.2f} s"


def freeze(seconds: int) -> None:
    """A line that freezes while a hundred pictures wait, and is then cut."""
    forget()
    history = History.open(folders.state_dir())
    history.save("parameters", FROZEN_PICTURE)
    history.close()
    terminal = Linked((*APP, *PREVIEW), (120, 40), environment=COLOURS["true"] | SSH)
    terminal.wait_to_see("ready")
    terminal.write(b"a red circle\r")
    folder = folders.default_output_dir()

    def pictures() -> int:
        return len(list(folder.glob("*.png")))

    terminal.wait(lambda: pictures() > 1)
    before = pictures()
    time.sleep(seconds)
    flowing = pictures() - before
    terminal.frozen = True
    before = pictures()
    time.sleep(seconds)
    frozen = pictures() - before
    processes = [psutil.Process(terminal.pid), *terminal.children()]
    terminal.close()
    began = time.monotonic()
    terminal.exit_code()
    _, alive = psutil.wait_procs(processes, timeout=20)
    gone = time.monotonic() - began
    history = History.open(folders.state_dir())
    left = history.adopt()
    history.close()
    waiting = len(left.jobs) if left is not None else 0
    print(f"\n| pictures in {seconds} s: line flows, frozen | {flowing}, {frozen} | same |")
    print(f"| then cut: app and engine gone | {gone:.2f} s, {len(alive)} left | 3 s, 0 |")
    print(f"| pictures made and waiting | {pictures()} + {waiting} = {pictures() + waiting} | 100 |", flush=True)


def local(times: int) -> None:
    """From a key to its letter on a terminal without a line in between, and the app's processor time."""
    forget()
    terminal = Linked((*APP, *PREVIEW), environment=COLOURS["true"])
    terminal.wait_to_see("ready")
    paint(terminal)
    app = psutil.Process(terminal.pid)
    used, began = sum(app.cpu_times()[:2]), time.monotonic()
    time.sleep(5)
    share = (sum(app.cpu_times()[:2]) - used) / (time.monotonic() - began)
    seconds: list[float] = []
    while len(seconds) < times:
        seconds += echo(terminal, LETTERS)
    end(terminal)
    p99 = sorted(seconds)[round(0.99 * len(seconds)) - 1]
    print(f"\n| local, key to paint: median, p99 | {1000 * statistics.median(seconds):.0f}, {1000 * p99:.0f} ms | |")
    print(f"| local, processor of the app while denoising | {100 * share:.0f} % of a core | |", flush=True)


if __name__ == "__main__":
    main()
