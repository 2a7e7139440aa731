"""The app in a real pseudo-terminal: dropped connections, kills, quitting."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from engine import folders
from tui.history import Adopted, History

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are POSIX's", allow_module_level=True)

from tests.links import Kitty, Linked
from tests.terminals import Terminal

PROMPT = "a red circle above a blue square"
SSH = {"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22"}
APP = ("-m", "tui", "--preview", "off")


def left_behind() -> Adopted:
    """What the next start would offer."""
    history = History.open(folders.state_dir())
    left = history.adopt()
    history.close()
    assert left is not None
    return left


def denoising() -> tuple[Terminal, psutil.Process]:
    """The app in the middle of a long picture, a second one waiting, a third half typed; and its engine."""
    history = History.open(folders.state_dir())
    history.save("parameters", {"chosen": {"steps": 1000, "width": 256, "height": 256}, "seed": None, "count": 1})
    history.save("draft", "")
    history.close()
    terminal = Terminal(APP)
    terminal.wait_for(b"pictures")
    terminal.write(PROMPT.encode() + b"\r")
    terminal.wait_to_see("s/step")
    engine = next(child for child in terminal.children() if "spawn_main" in " ".join(child.cmdline()))
    terminal.write(b" at sunset\r and more")
    terminal.wait_to_see("and more")
    terminal.wait(lambda: [row for row in drafts() if row.endswith("and more")])
    return terminal, engine


def drafts() -> list[str]:
    """All drafts in the file, of living sessions too."""
    import sqlite3

    with sqlite3.connect(folders.state_dir() / "history.sqlite3") as db:
        return [str(value).strip('"') for (value,) in db.execute("SELECT value FROM saved WHERE key = 'draft'")]


def check_what_is_left(engine: psutil.Process) -> None:
    gone, _ = psutil.wait_procs([engine], timeout=30)
    assert gone
    left = left_behind()
    assert [job.request.prompt for job in left.jobs] == [PROMPT, PROMPT + " at sunset"]
    assert left.draft == PROMPT + " at sunset and more"
    assert left.values["parameters"]["chosen"]["steps"] == 1000
    assert not list(folders.default_output_dir().glob("*.png"))


def test_a_dropped_connection_loses_nothing() -> None:
    terminal, engine = denoising()
    terminal.close()
    assert terminal.exit_code() in (129, -signal.SIGHUP)
    check_what_is_left(engine)


def test_a_kill_loses_nothing_and_takes_the_engine_along() -> None:
    terminal, engine = denoising()
    terminal.kill()
    assert terminal.exit_code() == -signal.SIGKILL
    check_what_is_left(engine)


@pytest.mark.parametrize("how", [b"\x11", signal.SIGTERM, signal.SIGHUP], ids=["ctrl+q", "SIGTERM", "SIGHUP"])
def test_quitting_while_it_denoises_leaves_the_terminal_as_it_was(how: bytes | signal.Signals) -> None:
    terminal, engine = denoising()
    if isinstance(how, bytes):
        terminal.write(how)
    else:
        terminal.kill(how)
    assert terminal.exit_code() == (0 if isinstance(how, bytes) else 128 + how)
    assert b"\x1b[?1049l" in terminal.tail  # back on the shell's screen
    assert b"\x1b[?25h" in terminal.tail  # with its cursor
    check_what_is_left(engine)


TAKEN = {b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?7l"}
GIVEN_BACK = {b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?7h", b"\x1b[?1000l", b"\x1b[?1003l", b"\x1b[?1006l"}
STUCK = """
import sys, time
from tui.app import T2IApp
from tui.launch import main
T2IApp.action_help = lambda app: time.sleep(60)
sys.exit(main(["--preview", "off"]))
"""


@pytest.mark.parametrize("how", [None, signal.SIGTERM], ids=["hang-up", "SIGTERM"])
def test_an_app_that_is_stuck_ends_all_the_same(how: signal.Signals | None) -> None:
    terminal = Terminal(("-c", STUCK))
    terminal.wait_to_see("ready")
    terminal.write(b"a red circle")
    terminal.wait_to_see("a red circle")
    terminal.wait(lambda: "a red circle" in drafts())
    engine = next(child for child in terminal.children() if "spawn_main" in " ".join(child.cmdline()))
    terminal.write(b"\x1bOP")  # F1
    terminal.wait_until_quiet()
    if how is None:
        terminal.close()
        assert terminal.exit_code() == 128 + signal.SIGHUP
    else:
        terminal.kill(how)
        assert terminal.exit_code() == 128 + how
        terminal.wait(lambda: terminal.modes() >= GIVEN_BACK)
    gone, _ = psutil.wait_procs([engine], timeout=30)
    assert gone
    assert left_behind().draft == "a red circle"


def test_pictures_go_on_behind_a_frozen_line_and_a_cut_one_ends_everything() -> None:
    history = History.open(folders.state_dir())
    history.save("parameters", {"chosen": {"steps": 2, "width": 64, "height": 64}, "seed": None, "count": 100})
    history.close()
    folder = folders.default_output_dir()
    terminal = Linked(("-m", "tui"), (120, 40), buffer=2000, environment=SSH)
    terminal.wait_to_see("ready")
    engine = next(child for child in terminal.children() if "spawn_main" in " ".join(child.cmdline()))
    terminal.write(PROMPT.encode() + b"\r")
    terminal.wait(lambda: list(folder.glob("*.png")))
    terminal.frozen = True
    before = len(list(folder.glob("*.png")))
    terminal.wait(lambda: len(list(folder.glob("*.png"))) >= before + 5)
    terminal.close()
    assert terminal.exit_code() == 128 + signal.SIGHUP
    gone, _ = psutil.wait_procs([engine], timeout=30)
    assert gone
    made, left = list(folder.glob("*.png")), left_behind()
    assert len(made) + len(left.jobs) in (100, 101), "a picture that was saved as all ended is in both"
    assert left.draft == PROMPT


def test_a_terminal_that_freezes_while_it_is_sent_pictures_stops_nothing() -> None:
    pytest.importorskip("textual_image", reason="the optional extra [images]")
    history = History.open(folders.state_dir())
    history.save("parameters", {"chosen": {"steps": 2, "width": 64, "height": 64}, "seed": None, "count": 100})
    history.close()
    folder = folders.default_output_dir()
    terminal = Kitty(
        ("-m", "tui", "--images", "on"),
        (120, 40),
        buffer=2000,
        environment=SSH | {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"},
    )
    terminal.wait_to_see("ready")
    terminal.write(PROMPT.encode() + b"\r")
    terminal.wait(lambda: len(list(folder.glob("*.png"))) > 2)
    terminal.write(b"\x1bOQ")
    terminal.wait_to_see("F2 Prompt")
    terminal.write(b"l")
    terminal.wait_to_see("Esc Back")
    terminal.write(b"v")
    terminal.wait(lambda: b"a=p" in terminal.pictures)  # all of it, and then its place
    terminal.wait_to_see("\U0010eeee")
    terminal.write(6 * b"\x1b[C")
    terminal.wait(lambda: not terminal.on_their_way)
    terminal.frozen = True
    before = len(list(folder.glob("*.png")))
    terminal.wait(lambda: len(list(folder.glob("*.png"))) >= before + 5)
    terminal.frozen = False
    terminal.wait(lambda: b"a=d" in terminal.pictures)
    terminal.write(b"\x1b\x1b\x11")
    assert terminal.exit_code() == 0


def test_a_window_that_is_resized_and_back_at_once_is_painted_again() -> None:
    terminal = Terminal(APP, (100, 30))
    terminal.wait_to_see("ready")
    terminal.wait_until_quiet()
    before = terminal.shown()
    terminal.resize(60, 20)
    terminal.resize(100, 30)
    terminal.wait(lambda: terminal.shown() == before)
    terminal.kill()
    terminal.exit_code()


SHELL = ("-c", "import os; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])")


@pytest.mark.parametrize("how", [b"\x1a", signal.SIGTSTP, signal.SIGSTOP], ids=["ctrl+z", "SIGTSTP", "SIGSTOP"])
def test_suspending_gives_the_terminal_to_the_shell_and_fg_paints_it_anew(how: bytes | signal.Signals) -> None:
    history = History.open(folders.state_dir())
    history.save("draft", "a red circle")
    history.close()
    shell = Terminal(SHELL, PS1="shell> ")
    shell.wait_for(b"shell> ")
    shell.write(f"{sys.executable} {' '.join(APP)}\r".encode())
    shell.wait_for(b"a red circle")
    shell.wait_until_quiet()  # the answer to a question would be the shell's after a SIGSTOP
    app = next(child for child in shell.children() if "tui" in child.cmdline())
    if isinstance(how, bytes):
        shell.write(how)
    else:
        app.send_signal(how)
    shell.wait_for(b"Stopped")
    raw, shown = (False, True) if how != signal.SIGSTOP else (True, False)  # of which no program is told
    assert (b"\x1b[?1049h" in shell.modes(), b"\x1b[?25h" in shell.modes()) == (raw, shown)
    shell.write(b"echo in the sh''ell\r")
    shell.wait_for(b"in the shell")
    shell.write(b"fg\r")
    shell.wait_for(b"pictures")
    shell.wait(lambda: {b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?2004h"} <= shell.modes())
    shell.write(b" at sunset")
    shell.wait_to_see("at sunset")
    shell.write(b"\x11")
    shell.wait_for(b"shell> ")
    assert left_behind().draft == "a red circle at sunset"
    shell.write(b"exit\r")
    assert shell.exit_code() == 0


def in_a_shell() -> tuple[Terminal, psutil.Process, list[object]]:
    """A shell without a line editor, the app in it, with its engine, and how the terminal was before."""
    shell = Terminal(("-c", "import os; os.execvp('sh', ['sh', '-i'])"), PS1="shell> ")
    shell.wait_for(b"shell> ")
    before = shell.attributes()
    shell.write(f"{sys.executable} {' '.join(APP)}\r".encode())
    shell.wait_to_see("ready")
    shell.wait(lambda: shell.modes() >= TAKEN)
    shell.wait_until_quiet()  # the answer to a question would be the shell's after a kill
    app = next(child for child in shell.children() if "tui" in child.cmdline())
    return shell, app, before


def test_the_engine_puts_the_terminal_back_after_a_kill_of_the_app() -> None:
    shell, app, before = in_a_shell()
    assert shell.attributes() != before
    app.kill()
    shell.wait(lambda: shell.modes() >= GIVEN_BACK | {b"\x1b[?2004l"})
    shell.wait(lambda: shell.attributes() == before)
    shell.write(b"echo in the sh''ell\r")
    shell.wait_to_see("in the shell")
    shell.write(b"exit 0\r")
    assert shell.exit_code() == 0


def test_the_engine_leaves_a_terminal_alone_that_another_program_has() -> None:
    shell, app, _ = in_a_shell()
    engine = next(child for child in app.children() if "spawn_main" in " ".join(child.cmdline()))
    app.send_signal(signal.SIGSTOP)
    shell.wait_for(b"Stopped")
    shell.write(b"cat\n")  # the terminal is as the app left it
    shell.wait(lambda: [child for child in shell.children() if child.name() == "cat"])
    app.kill()
    gone, _ = psutil.wait_procs([engine], timeout=30)
    assert gone
    assert shell.modes() >= TAKEN
    shell.kill()
    shell.exit_code()


def test_ctrl_z_gives_the_shell_its_cursor_back_while_the_command_line_paints(tmp_path: Path) -> None:
    shell = Terminal(SHELL, PS1="shell> ")
    shell.wait_for(b"shell> ")
    command = f"{sys.executable} -m tui generate -p circle --steps 1000 --size 256x256 -o {tmp_path}"
    shell.write(f"{command}\r".encode())
    shell.wait_for(b"s/step")
    assert b"\x1b[?25l" in shell.modes()
    shell.write(b"\x1a")
    shell.wait_for(b"Stopped")
    assert b"\x1b[?25h" in shell.modes()
    shell.write(b"fg\r")
    shell.wait_for(b"s/step")
    assert b"\x1b[?25l" in shell.modes()
    shell.write(b"\x03")
    shell.wait_for(b"cancelled.")
    assert b"\x1b[?25h" in shell.modes()
    shell.write(b"exit\r")
    assert shell.exit_code() == 130  # of the last command


def test_an_app_without_a_terminal_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    import subprocess

    result = subprocess.run(
        [sys.executable, "-m", "tui"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: the app needs a terminal")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("term", ["dumb", "unknown", "DUMB"])
def test_a_terminal_that_shows_lines_alone_gets_a_sentence(term: str) -> None:
    terminal = Terminal(("-m", "tui"), TERM=term)
    assert terminal.exit_code() == 2
    terminal.wait(lambda: terminal.tail.endswith(b"\n"))
    said = terminal.tail.decode()
    assert said.startswith(f"error: a terminal of TERM={term} shows lines alone")
    assert "t2i generate" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--thme", "dark"), "--theme"),
        (("--output", "/no/such/folder"), "does not exist"),
        (("--fps", "900"), "1 to 60"),
        (("--color", "mauve"), "truecolor"),
    ],
)
def test_bad_flags_end_with_one_sentence(flags: tuple[str, ...], words: str) -> None:
    terminal = Terminal(("-m", "tui", *flags))
    assert terminal.exit_code() == 2
    terminal.wait(lambda: terminal.tail.endswith(b"\n"))
    said = terminal.tail.decode()
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
