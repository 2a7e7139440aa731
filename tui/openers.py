"""Opening a picture in the viewer that the person has: `plan_open` decides, `run_plan` does it.

A program is started from a list of arguments, never through a shell, and never on the app's terminal.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.folders import shown_path
from engine.request import RequestError

IMAGE_SUFFIXES = (".png",)  # what the engine saves
THIS_HOST = socket.gethostname()
GRACE_SECONDS = 1.5  # how long a program is watched for an early end
WSLPATH_SECONDS = 10.0

# wslview puts the name into a line of PowerShell, where quotes, $ and backticks would be code.
WSLVIEW_SAFE = re.compile(r"[\w ./+=@,-]+")
# scp reads wildcards in a remote path; before OpenSSH 9.0 the remote shell reads all of it. A backslash helps in both.
SCP_SPECIAL = re.compile(r"[^\w@%+=:,./\x80-\U0010ffff-]")


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a program."""

    argv: tuple[str, ...]  # the program's full path, then its arguments
    path_command: tuple[str, ...] = ()  # run first: it prints argv's last argument (wslpath, for Windows programs)
    ignore_exit_code: bool = False  # explorer.exe exits with 1 whatever happened (microsoft/WSL, issue 6565)


@dataclass(frozen=True, slots=True)
class StartFile:
    """Let Windows open the file with the program that it knows for it."""

    path: Path


@dataclass(frozen=True, slots=True)
class Remote:
    """No window can be opened where the person sits; what they can do instead. Every text is one line."""

    reason: str  # a sentence
    path: Path  # absolute
    scp: str  # for a shell on the person's own machine: fetches the picture into the current folder
    hint: str | None = None  # for a shell here: shows the picture in this very terminal


OpenPlan = Launch | StartFile | Remote


def check_openable(path: Path) -> Path:
    """`path` made absolute, if it is a picture that is there. Raises `RequestError`."""
    path = path.absolute()
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise RequestError("open", f"{shown_path(path)} is not a picture; only {', '.join(IMAGE_SUFFIXES)} is opened.")
    try:
        is_file = path.is_file()
    except OSError as error:
        raise RequestError("open", f"{shown_path(path)} cannot be looked at: {error.strerror}.") from None
    if not is_file:
        raise RequestError("open", f"there is no file {shown_path(path)}; was it moved or deleted?")
    return path


def plan_open(
    path: Path,
    env: Mapping[str, str],
    platform: str,
    which: Callable[[str], str | None],
    *,
    release: str = "",
    user_command: str | None = None,
    use_forwarded_display: bool = False,
    host: str | None = None,
    hostname: str = THIS_HOST,
    user: str | None = None,
) -> OpenPlan:
    """How to open the picture at `path` (absolute). Decides from its arguments alone, and runs nothing.

    `platform` is `sys.platform`, `release` is `platform.uname().release`. `user_command` is the person's own viewer,
    for instance `feh --fullscreen {}`; without `{}` the path comes last. `use_forwarded_display` allows windows on a
    display forwarded over SSH. `host` is what the person calls this machine for ssh (`name` or `user@name`), where what
    the connection says is of no use: behind a jump host. `hostname` and `user` stand in for what `env` does not say.

    Raises `RequestError` for a `user_command` that cannot be used.
    """
    if not path.is_absolute():
        raise ValueError(f"{path} is not absolute")
    if user_command and user_command.strip():
        return Launch(_user_argv(user_command, str(path), platform, which))
    plan = _viewer(path, env, platform, which, release, use_forwarded_display)
    if isinstance(plan, str):
        if user is None:
            user = env.get("LOGNAME") or env.get("USER") or env.get("USERNAME") or ""
        return Remote(plan, path, _scp_line(path, env, host, hostname, user), _terminal_hint(path, env))
    return plan


def this_user() -> str:
    """The account that this program runs as; "" where the system does not say."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return ""


def run_plan(plan: Launch | StartFile) -> str | None:
    """Open the picture. None: it is under way; otherwise a sentence that says why not.

    Waits up to `GRACE_SECONDS` to see whether the program fails at once (longer for wslpath): call it from a thread.
    """
    if isinstance(plan, StartFile):
        return _start_file(plan.path)
    program = Path(plan.argv[0]).name
    try:
        argv = [*plan.argv, _printed_line(plan.path_command)] if plan.path_command else [*plan.argv]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            start_new_session=True,  # no controlling terminal: it can neither write on ours nor take its Ctrl+C
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # the same, on Windows
            env=_own_environment(),
        )
    except (OSError, ValueError) as error:  # ValueError: a zero byte in an argument
        return f"{program} could not be started: {getattr(error, 'strerror', None) or error}."
    try:
        code = process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        threading.Thread(target=process.wait, name=f"reap {program}", daemon=True).start()
        return None
    if code == 0 or plan.ignore_exit_code:
        return None
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return f"{program} ended at once with {how}; run it yourself to see why: {' '.join(map(_quoted, argv))}"


def _viewer(
    path: Path,
    env: Mapping[str, str],
    platform: str,
    which: Callable[[str], str | None],
    release: str,
    use_forwarded_display: bool,
) -> Launch | StartFile | str:
    """The viewer of this desktop, or a sentence that says why there is none."""
    if any(env.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")):
        if platform in ("win32", "darwin") or not _display_is_forwarded(env):
            return "This is an SSH session: a window would open on the machine at the other end, if at all."
        if not use_forwarded_display:
            return "This is an SSH session, and windows over its forwarded display are not switched on."
    elif platform == "win32":
        return StartFile(path)
    elif platform == "darwin":
        return Launch(("/usr/bin/open", str(path)))
    elif ("microsoft" in release.lower() or env.get("WSL_DISTRO_NAME")) and (launch := _windows_viewer(path, which)):
        return launch
    elif not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        return "There is no desktop here to open a window on: neither DISPLAY nor WAYLAND_DISPLAY is set."
    if xdg_open := which("xdg-open"):
        return Launch((xdg_open, str(path)))
    if gio := which("gio"):
        return Launch((gio, "open", str(path)))
    return "Neither xdg-open nor gio is installed here; one of them finds the picture viewer (package xdg-utils)."


def _windows_viewer(path: Path, which: Callable[[str], str | None]) -> Launch | None:
    """How Linux inside Windows (WSL) asks Windows; None where it cannot (interop is off, or this is a container)."""
    if WSLVIEW_SAFE.fullmatch(str(path)) and (wslview := which("wslview")):
        return Launch((wslview, str(path)))
    if (explorer := which("explorer.exe")) and (wslpath := which("wslpath")):
        return Launch((explorer,), path_command=(wslpath, "-w", str(path)), ignore_exit_code=True)
    return None


def _display_is_forwarded(env: Mapping[str, str]) -> bool:
    """Whether DISPLAY names a host, as sshd writes it (`localhost:10.0`), and not a socket here (`:0`)."""
    return re.fullmatch(r"[^:/]+:\d+(\.\d+)?", env.get("DISPLAY", "")) is not None


def _user_argv(command: str, path: str, platform: str, which: Callable[[str], str | None]) -> tuple[str, ...]:
    """The person's own command, with `path` in place of `{}` or at its end. Raises `RequestError`."""
    lexer = shlex.shlex(command, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if platform == "win32":
        lexer.escape = ""  # a backslash is part of a path there
    try:
        program, *arguments = lexer
    except ValueError as error:
        raise RequestError(
            "opener", f"the viewer's command {shown_path(command)} cannot be read: {str(error).lower()}."
        ) from None
    found = which(program)
    if found is None:
        raise RequestError(
            "opener", f"the viewer {shown_path(program)} was not found; give a program on the PATH, or its full path."
        )
    if not any("{}" in argument for argument in arguments):
        arguments.append("{}")
    return (found, *(argument.replace("{}", path) for argument in arguments))


def _scp_line(path: Path, env: Mapping[str, str], named: str | None, hostname: str, user: str) -> str:
    """The command that fetches `path` from this machine, as far as this machine knows its own address."""
    host, port = named or hostname, "22"
    match env.get("SSH_CONNECTION", "").split():
        case [_, _, address, server_port] if not named:
            try:
                host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
                port = server_port
            except ValueError:  # "UNKNOWN", where sshd does not sit on a socket
                pass
    account = f"{user}@" if user and "@" not in host else ""
    remote_path = SCP_SPECIAL.sub(r"\\\g<0>", path.as_posix())
    command = "scp" if port == "22" else f"scp -P {_quoted(port)}"
    return f"{command} {_quoted(f'{account}{host}:{remote_path}')} ."


def _terminal_hint(path: Path, env: Mapping[str, str]) -> str | None:
    """The command that shows `path` in a terminal that can show pictures, where the environment names one."""
    if env.get("TERM") == "xterm-kitty":
        return f"kitten icat {_quoted(str(path))}"
    if env.get("LC_TERMINAL") == "iTerm2":
        return f"imgcat {_quoted(str(path))}"
    return None


def _quoted(text: str) -> str:
    """`text` as one word for a POSIX shell: on one line and printable, whatever bytes a file name holds."""
    if text.isprintable():
        return shlex.quote(text)
    # Inside double quotes bash expands `!`, even between single ones.
    octal = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and chr(byte) not in "%'\\!" else f"\\{byte:03o}"
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return f"\"$(printf '{octal}')\""


def _start_file(path: Path) -> str | None:
    startfile: Callable[[str], None] | None = getattr(os, "startfile", None)
    if startfile is None:
        return "Only Windows can open a file this way."
    try:
        startfile(str(path))
    except OSError as error:
        return f"Windows could not open the picture: {error.strerror or error}."
    return None


def _printed_line(command: tuple[str, ...]) -> str:
    """What `command` prints. Raises `OSError` where it fails, prints nothing or takes too long."""
    program = Path(command[0]).name
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=_own_environment(),
            timeout=WSLPATH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{program} did not answer") from None
    line = os.fsdecode(result.stdout).rstrip("\r\n")
    if result.returncode or not line:
        raise OSError(f"{program} could not say what Windows calls the picture (exit code {result.returncode})")
    return line


def _own_environment() -> dict[str, str]:
    """The environment as it was before a bundle (PyInstaller, AppImage) put its own libraries into it."""
    env = dict(os.environ)
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        if f"{name}_ORIG" in env:
            env[name] = env.pop(f"{name}_ORIG")
        elif getattr(sys, "frozen", False) or "APPDIR" in env:
            env.pop(name, None)
    return env
