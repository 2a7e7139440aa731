"""Opening a picture: which program on which desktop, what to offer over SSH, and real programs started for real."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.request import RequestError
from tui import openers
from tui.openers import Launch, OpenPlan, Remote, StartFile, check_openable, plan_open, run_plan

# The plans, too: on Windows an absolute path has a drive.
pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts and POSIX paths")

PICTURE = Path("/pictures/a.png")
X11 = {"DISPLAY": ":0"}
WAYLAND = {"WAYLAND_DISPLAY": "wayland-0"}
SSH = {"SSH_CONNECTION": "198.51.100.7 50514 203.0.113.5 22", "SSH_TTY": "/dev/pts/0", "USER": "ann"}
FORWARDED = {**SSH, "DISPLAY": "localhost:10.0"}
WSL1, WSL2 = "4.4.0-19041-Microsoft", "5.15.167.4-microsoft-standard-WSL2"
WSL = {"WSL_DISTRO_NAME": "Ubuntu", **X11, **WAYLAND}
OPEN = Launch(("/usr/bin/open", "/pictures/a.png"))
XDG_OPEN = Launch(("/usr/bin/xdg-open", "/pictures/a.png"))
GIO = Launch(("/usr/bin/gio", "open", "/pictures/a.png"))
WSLVIEW = Launch(("/usr/bin/wslview", "/pictures/a.png"))
EXPLORER = Launch(("/usr/bin/explorer.exe",), ("/usr/bin/wslpath", "-w", "/pictures/a.png"), ignore_exit_code=True)

# A name -> how scp's argument for it must read once the shell on the person's side has taken its quotes away.
STRANGE_NAMES = {
    "a b.png": "a\\ b.png",
    'it\'s "x".png': 'it\\\'s\\ \\"x\\".png',
    "a;rm -rf $HOME `id` !!.png": "a\\;rm\\ -rf\\ \\$HOME\\ \\`id\\`\\ \\!\\!.png",
    "-rf.png": "-rf.png",
    "[1]*?{}\\.png": "\\[1\\]\\*\\?\\{\\}\\\\.png",
    "two\nlines!.png": "two\\\nlines\\!.png",
    "bell\x07 100%.png": "bell\\\x07\\ 100%.png",
    "byte-\udcff.png": "byte-\udcff.png",
    "Bär 熊 🐻.png": "Bär\\ 熊\\ 🐻.png",
}


def which(programs: str) -> Callable[[str], str | None]:
    """A PATH that holds these programs, in /usr/bin."""
    return lambda name: f"/usr/bin/{name}" if name in programs.split() else None


def remote_plan(path: Path, env: dict[str, str], hostname: str = "gpu") -> Remote:
    plan = plan_open(path, env, "linux", which(""), hostname=hostname)
    assert isinstance(plan, Remote)
    return plan


def words_of(line: str, shell: str = "sh") -> list[str]:
    """The arguments that `shell` makes of a command line, the command's name left out."""
    command, _, arguments = line.partition(" ")
    function = f"{command}() {{ printf '%s\\0' \"$@\"; }}; {command} {arguments}"
    printed = subprocess.run([shell, "-c", function], stdout=subprocess.PIPE, check=True).stdout
    return os.fsdecode(printed).split("\0")[:-1]


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a little viewer: it records its arguments, then does what the test says."""

    def make(then: str) -> Path:
        viewer = tmp_path / "bin" / "viewer"
        viewer.parent.mkdir(exist_ok=True)
        viewer.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > "{tmp_path}/argv"\n{then}\n', "utf-8")
        viewer.chmod(0o755)
        return viewer

    return make


def recorded(tmp_path: Path) -> list[str]:
    return os.fsdecode((tmp_path / "argv").read_bytes()).split("\0")[:-1]


@pytest.mark.parametrize(
    ("platform", "env", "release", "programs", "expected"),
    [
        pytest.param("win32", {}, "10", "", StartFile(PICTURE), id="Windows"),
        pytest.param("darwin", {}, "23.1.0", "xdg-open", OPEN, id="macOS"),
        pytest.param("linux", WSL, WSL1, "wslview explorer.exe wslpath xdg-open", WSLVIEW, id="WSL1"),
        pytest.param("linux", WSL, WSL2, "wslview explorer.exe wslpath xdg-open", WSLVIEW, id="WSL2"),
        pytest.param("linux", {}, WSL1, "explorer.exe wslpath", EXPLORER, id="WSL1 without wslview"),
        pytest.param("linux", WSL, WSL2, "explorer.exe wslpath xdg-open", EXPLORER, id="WSL2 without wslview"),
        pytest.param("linux", WSL, "6.6.0-own", "explorer.exe wslpath", EXPLORER, id="WSL2 with a kernel of one's own"),
        pytest.param("linux", WSL, WSL2, "xdg-open", XDG_OPEN, id="WSL2 without Windows programs"),
        pytest.param("linux", {**WSL, **FORWARDED}, WSL2, "wslview xdg-open", "SSH session", id="WSL2 over SSH"),
        pytest.param("linux", {}, WSL2, "xdg-open", "no desktop", id="a container on WSL2"),
        pytest.param("linux", X11, "6.1", "xdg-open gio wslview", XDG_OPEN, id="X11"),
        pytest.param("linux", WAYLAND, "6.1", "xdg-open gio", XDG_OPEN, id="Wayland"),
        pytest.param("freebsd14", X11, "14.1", "xdg-open", XDG_OPEN, id="FreeBSD"),
        pytest.param("linux", X11, "6.1", "gio", GIO, id="X11 without xdg-open"),
        pytest.param("linux", X11, "6.1", "", "Neither xdg-open nor gio", id="X11 with neither"),
        pytest.param("linux", {"DISPLAY": ""}, "6.1", "xdg-open", "no desktop", id="no display"),
        pytest.param("linux", SSH, "6.1", "xdg-open", "SSH session", id="SSH"),
        pytest.param("linux", {**SSH, **X11}, "6.1", "xdg-open", "SSH session", id="SSH, a display of the server's"),
        pytest.param("linux", {**SSH, **WAYLAND}, "6.1", "xdg-open", "SSH session", id="SSH, Wayland of the server's"),
        pytest.param("linux", {"SSH_TTY": "/dev/pts/1", **X11}, "6.1", "xdg-open", "SSH session", id="SSH_TTY alone"),
        pytest.param("linux", FORWARDED, "6.1", "xdg-open", "not switched on", id="SSH, forwarded"),
        pytest.param("darwin", SSH, "23.1.0", "", "SSH session", id="macOS over SSH"),
        pytest.param("win32", SSH, "10", "", "SSH session", id="Windows over SSH"),
    ],
)
def test_each_desktop_has_its_way(
    platform: str, env: dict[str, str], release: str, programs: str, expected: OpenPlan | str
) -> None:
    plan = plan_open(PICTURE, env, platform, which(programs), release=release)
    if isinstance(expected, str):
        assert isinstance(plan, Remote)
        assert expected in plan.reason
        assert plan.path == PICTURE
    else:
        assert plan == expected
    own = plan_open(PICTURE, env, platform, which(f"{programs} feh"), release=release, user_command="feh -F")
    assert own == Launch(("/usr/bin/feh", "-F", "/pictures/a.png"))  # the person's own choice is taken everywhere


@pytest.mark.parametrize(
    ("platform", "env", "expected"),
    [
        ("linux", FORWARDED, XDG_OPEN),
        ("linux", {**SSH, "DISPLAY": "gpu.example:11"}, XDG_OPEN),
        ("linux", {**SSH, **X11}, Remote),  # the server's own display
        ("linux", SSH, Remote),
        ("darwin", FORWARDED, Remote),
        ("win32", FORWARDED, Remote),
    ],
)
def test_a_forwarded_display_is_used_where_the_person_allows_it(
    platform: str, env: dict[str, str], expected: OpenPlan | type[Remote]
) -> None:
    plan = plan_open(PICTURE, env, platform, which("xdg-open wslview"), release=WSL2, use_forwarded_display=True)
    assert plan == expected or type(plan) is expected


@pytest.mark.parametrize("name", ["$(calc).png", "`calc`.png", 'a".png', "a\u201d;calc.png", "a'.png", "a&b.png"])
def test_wslview_gets_no_name_that_powershell_would_read_as_code(name: str) -> None:
    path = PICTURE.with_name(name)
    plan = plan_open(path, WSL, "linux", which("wslview explorer.exe wslpath"), release=WSL2)
    assert plan == Launch(("/usr/bin/explorer.exe",), ("/usr/bin/wslpath", "-w", str(path)), ignore_exit_code=True)
    assert plan_open(path, WSL, "linux", which("wslview xdg-open"), release=WSL2) == Launch(
        ("/usr/bin/xdg-open", str(path))
    )


@pytest.mark.parametrize(
    ("command", "platform", "argv"),
    [
        ("feh", "linux", ["feh", "PATH"]),
        ("feh -F {} --title={}", "linux", ["feh", "-F", "PATH", "--title=PATH"]),
        ("feh --title 'my picture' # 1", "linux", ["feh", "--title", "my picture", "#", "1", "PATH"]),
        ("feh '; rm' $HOME", "linux", ["feh", "; rm", "$HOME", "PATH"]),
        (r'"C:\Program Files\view.exe" /open {}', "win32", [r"C:\Program Files\view.exe", "/open", "PATH"]),
    ],
)
def test_the_persons_own_viewer_gets_the_path(command: str, platform: str, argv: list[str]) -> None:
    path = Path("/my pictures/it's {}; -x.png")
    plan = plan_open(path, X11, platform, lambda name: name, user_command=command)
    assert plan == Launch(tuple(word.replace("PATH", str(path)) for word in argv))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("feh 'unclosed", "feh 'unclosed.* cannot be read: no closing quotation"),
        ("feh \\", "cannot be read: no escaped character"),
        ("nonsense {}", "the viewer 'nonsense' was not found; give"),
        ("{}", "the viewer '{}' was not found"),
        ("''", "the viewer '' was not found"),
    ],
)
def test_a_bad_viewer_command_is_refused_in_one_sentence(command: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        plan_open(PICTURE, X11, "linux", which("feh"), user_command=command)
    assert caught.value.field == "opener"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [None, "", "  "])
def test_no_viewer_command_means_the_desktops_own(command: str | None) -> None:
    assert plan_open(PICTURE, X11, "linux", which("xdg-open"), user_command=command) == XDG_OPEN


def test_a_relative_path_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not absolute"):
        plan_open(Path("a.png"), X11, "linux", which("xdg-open"))


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (SSH, "scp ann@203.0.113.5:/pictures/a.png ."),
        ({**SSH, "LOGNAME": "bob"}, "scp bob@203.0.113.5:/pictures/a.png ."),
        ({"SSH_CONNECTION": "::1 50514 2001:db8::1 22"}, "scp '[2001:db8::1]:/pictures/a.png' ."),
        ({**SSH, "SSH_CONNECTION": "10.0.0.2 50514 10.0.0.1 2222"}, "scp -P 2222 ann@10.0.0.1:/pictures/a.png ."),
        ({**SSH, "SSH_CONNECTION": "UNKNOWN 65535 UNKNOWN 65535"}, "scp ann@gpu:/pictures/a.png ."),
        ({**SSH, "SSH_CONNECTION": "1.2.3.4 5"}, "scp ann@gpu:/pictures/a.png ."),
        ({"USER": "DOMAIN\\ann"}, "scp 'DOMAIN\\ann@gpu:/pictures/a.png' ."),
        ({}, "scp gpu:/pictures/a.png ."),
    ],
)
def test_the_scp_line_names_user_server_and_port(env: dict[str, str], line: str) -> None:
    assert remote_plan(PICTURE, env).scp == line


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("gpu.example.org", "scp ann@gpu.example.org:/pictures/a.png ."),
        ("bob@gpu", "scp bob@gpu:/pictures/a.png ."),
        ("[2001:db8::7]", "scp 'ann@[2001:db8::7]:/pictures/a.png' ."),
    ],
)
def test_behind_a_jump_host_the_person_says_the_name(host: str, line: str) -> None:
    env = {**SSH, "SSH_CONNECTION": "10.0.0.2 50514 10.0.0.1 2222"}
    plan = plan_open(PICTURE, env, "linux", which(""), host=host)
    assert isinstance(plan, Remote)
    assert plan.scp == line


def test_user_and_host_can_be_given() -> None:
    plan = plan_open(PICTURE, {"USER": "ann"}, "linux", which(""), hostname="gpu.example", user="bob")
    assert isinstance(plan, Remote)
    assert plan.scp == "scp bob@gpu.example:/pictures/a.png ."


@pytest.mark.parametrize(("name", "escaped"), STRANGE_NAMES.items())
@pytest.mark.parametrize("shell", [shell for shell in ("sh", "bash", "zsh") if shutil.which(shell)])
def test_what_is_offered_can_be_pasted_into_a_shell(name: str, escaped: str, shell: str) -> None:
    path = Path("/my pictures", name)
    kitty = remote_plan(path, {**SSH, "TERM": "xterm-kitty"})
    iterm = remote_plan(path, {**SSH, "LC_TERMINAL": "iTerm2"})
    assert kitty.hint is not None
    assert iterm.hint is not None
    for line in (kitty.scp, kitty.hint, iterm.hint):
        assert line.isprintable()  # one line, no control character, and UTF-8 can hold it
    assert words_of(kitty.scp, shell) == [f"ann@203.0.113.5:/my\\ pictures/{escaped}", "."]
    assert words_of(kitty.hint, shell) == ["icat", str(path)]
    assert words_of(iterm.hint, shell) == [str(path)]


def test_no_hint_for_a_terminal_that_is_not_known_to_show_pictures() -> None:
    assert remote_plan(PICTURE, {**SSH, "TERM": "xterm-256color"}).hint is None


@pytest.mark.parametrize("name", ["a.png", "-rf.PNG", *STRANGE_NAMES])
def test_a_picture_that_is_there_is_openable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        Path(tmp_path, name).touch()
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert check_openable(Path(name)) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "there is no file '.*gone.png'; was it moved or deleted"),
        ("folder.png", "there is no file"),
        ("pipe.png", "there is no file"),
        ("a.txt", r"'.*a.txt' is not a picture; only .png is opened"),
        ("png", "is not a picture"),
        ("a.png\n", r"'.*a.png\\n' is not a picture"),
        ("a.txt/b.png", "there is no file"),
        ("n" * 300 + ".png", "cannot be looked at: File name too long"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.txt").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match=message) as caught:
        check_openable(tmp_path / name)
    assert caught.value.field == "open"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a.png", *STRANGE_NAMES])
def test_the_viewer_gets_the_exact_path(tmp_path: Path, program: Callable[[str], Path], name: str) -> None:
    viewer = program("exit 0")
    plan = plan_open(tmp_path / name, {}, "linux", lambda _: str(viewer), user_command="viewer -F {}")
    assert isinstance(plan, Launch)
    assert run_plan(plan) is None
    assert recorded(tmp_path) == ["-F", str(tmp_path / name)]


def test_a_viewer_that_fails_at_once_is_reported(
    tmp_path: Path, program: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    viewer = program("echo words; echo errors >&2; exit 3")
    sentence = run_plan(Launch((str(viewer), "/a b.png")))
    assert sentence == f"viewer ended at once with exit code 3; run it yourself to see why: {viewer} '/a b.png'"
    assert run_plan(Launch((str(viewer), "/a.png"), ignore_exit_code=True)) is None
    assert recorded(tmp_path) == ["/a.png"]
    assert run_plan(Launch((str(program("kill -9 $$")),))) == (
        f"viewer ended at once with signal 9; run it yourself to see why: {viewer}"
    )
    assert capfd.readouterr() == ("", "")


def test_a_viewer_that_stays_is_left_alone_and_reaped_when_it_ends(
    program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openers, "GRACE_SECONDS", 0.2)
    assert run_plan(Launch((str(program("exec sleep 60")),))) is None
    (viewer,) = (child for child in psutil.Process().children() if child.name() == "sleep")
    assert os.getsid(viewer.pid) == viewer.pid  # a session of its own: Ctrl+C here does not reach it
    viewer.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(viewer.pid) and time.monotonic() < deadline:  # a zombie exists
        time.sleep(0.01)
    assert not psutil.pid_exists(viewer.pid)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("/no/such/viewer", "/a.png"), "viewer could not be started: No such file or directory."),
        (("/etc/passwd", "/a.png"), "passwd could not be started: Permission denied."),
        (("/bin/sh", "a\0b"), "sh could not be started: embedded null byte."),
    ],
)
def test_a_viewer_that_cannot_be_started_is_reported(argv: tuple[str, ...], message: str) -> None:
    assert run_plan(Launch(argv)) == message


def test_explorer_gets_the_path_as_windows_calls_it(tmp_path: Path, program: Callable[[str], Path]) -> None:
    explorer = program("exit 1")
    wslpath = ("/bin/sh", "-c", 'printf "%s\\n" "$2"', "wslpath", "-w", "C:\\my pictures\\it's.png")
    assert run_plan(Launch((str(explorer),), path_command=wslpath, ignore_exit_code=True)) is None
    assert recorded(tmp_path) == ["C:\\my pictures\\it's.png"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo C:; exit 1", "sh could not say what Windows calls the picture (exit code 1)"),
        ("exit 0", "sh could not say what Windows calls the picture (exit code 0)"),
        ("exec sleep 60", "sh did not answer"),
    ],
)
def test_a_wslpath_that_fails_is_reported(
    program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    monkeypatch.setattr(openers, "WSLPATH_SECONDS", 1.0)
    plan = Launch((str(program("exit 1")),), path_command=("/bin/sh", "-c", script), ignore_exit_code=True)
    assert run_plan(plan) == f"viewer could not be started: {message}."
    assert not (tmp_path / "argv").exists()


def test_windows_opens_the_file_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(os, "startfile", opened.append, raising=False)
    assert run_plan(StartFile(PICTURE)) is None
    assert opened == ["/pictures/a.png"]

    def no_program(path: str) -> None:
        raise OSError(22, "No application is associated with the specified file for this operation")

    monkeypatch.setattr(os, "startfile", no_program)
    sentence = "Windows could not open the picture: No application is associated with the specified file"
    assert str(run_plan(StartFile(PICTURE))).startswith(sentence)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"LD_LIBRARY_PATH": "/bundle", "LD_LIBRARY_PATH_ORIG": "/cuda"}, "/cuda"),
        ({"LD_LIBRARY_PATH": "/bundle", "APPDIR": "/tmp/.mount_t2i"}, "none"),
        ({"LD_LIBRARY_PATH": "/cuda"}, "/cuda"),  # the person's own
        ({}, "none"),
    ],
)
def test_a_bundles_libraries_are_kept_from_the_viewer(
    tmp_path: Path,
    program: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    expected: str,
) -> None:
    for name in ("LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG", "APPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    viewer = program(f'printf "%s" "${{LD_LIBRARY_PATH-none}} ${{LD_LIBRARY_PATH_ORIG-}}" > {tmp_path}/libraries')
    assert run_plan(Launch((str(viewer),))) is None
    assert (tmp_path / "libraries").read_text() == f"{expected} "


def test_nothing_a_viewer_writes_reaches_the_terminal(tmp_path: Path, program: Callable[[str], Path]) -> None:
    viewer = program(f"echo words; echo errors >&2; (echo tty > /dev/tty) || touch {shlex.quote(str(tmp_path))}/no-tty")
    app = (
        "import fcntl, sys, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "open('/dev/tty').close()\n"  # the app itself has a terminal
        "from tui.openers import Launch, run_plan\n"
        "sys.exit(run_plan(Launch((sys.argv[1], '/a.png'))))\n"
    )
    terminal, side = os.openpty()
    try:
        arguments = [sys.executable, "-c", app, str(viewer)]
        root = Path(__file__).parent.parent
        subprocess.run(arguments, cwd=root, stdin=side, stdout=side, stderr=side, start_new_session=True, check=True)
        assert (tmp_path / "no-tty").exists()
        os.set_blocking(terminal, False)
        with pytest.raises(BlockingIOError):
            os.read(terminal, 1000)
    finally:
        os.close(terminal)
        os.close(side)


def test_openers_imports_nothing_heavy() -> None:
    code = "import sys, tui.openers; print(*{'torch', 'textual', 'numpy', 'PIL'} & set(sys.modules))"
    root = Path(__file__).parent.parent
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
