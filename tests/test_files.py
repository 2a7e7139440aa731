"""Files of our own: private, whole, on the disk when told, and never written through a link."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from engine.cli.repeat import recorded_model
from engine.errors_log import keep_traceback
from engine.files import Temporary, make_folder, open_own, remove_leftovers, write_whole
from engine.folders import cache_dir, config_dir, state_dir
from engine.images.save import Destination, save_image
from engine.jobs.latents import KeptLatents
from engine.library import registry
from engine.library.registry import Registered, Registry
from engine.memory.measure import _read as measured
from engine.process import _new_log
from engine.request import Request, RequestError
from tests.test_images_save import colour, record_of
from tui.history import History
from tui.trash import move_to_trash

posix = pytest.mark.skipif(os.name != "posix", reason="modes and links are POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def first_write_of_the_history() -> None:
    History.open(state_dir()).close()


FIRST: dict[str, Callable[[], object]] = {
    "the history": first_write_of_the_history,
    "the list of models": lambda: registry.write(Registry()),
    "the engine's log": _new_log,
    "the log of errors": lambda: keep_traceback(ValueError("something")),
    "a rescued picture": lambda: save_image(colour(), record_of(), Destination(Path("/nowhere/at/all"))),
    "a file of the cache": lambda: write_whole(cache_dir() / "plans" / "one.json", b"{}"),
}


@posix
@pytest.mark.unmeasured
@pytest.mark.parametrize("first", FIRST)
def test_folders_and_files_are_private_whoever_makes_them_first(first: str, own_folders: Path) -> None:
    before = os.umask(0)
    try:
        FIRST[first]()
    finally:
        os.umask(before)
    made = [path for root in (state_dir(), cache_dir()) if root.exists() for path in (root, *root.rglob("*"))]
    assert made
    assert {path: oct(mode(path)) for path in made if mode(path) & 0o077} == {}


@posix
@pytest.mark.unmeasured
def test_folders_of_ours_become_private_and_those_of_the_person_keep_their_mode(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (state_dir() / "logs", cache_dir()):
        folder.mkdir(parents=True)
    for folder in (state_dir(), state_dir() / "logs", cache_dir()):
        folder.chmod(0o755)
    make_folder(state_dir() / "logs")
    make_folder(cache_dir())
    assert (mode(state_dir()), mode(state_dir() / "logs"), mode(cache_dir())) == (0o755, 0o700, 0o755)
    monkeypatch.delenv("TEXTTOIMAGETOOL_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folders))
    if sys.platform == "linux":
        state_dir().mkdir(0o755)
        make_folder(state_dir())
        assert mode(state_dir()) == 0o700


@posix
def test_a_file_that_is_a_link_is_replaced_and_what_it_leads_to_is_not_touched(own_folders: Path) -> None:
    own = own_folders / "diary.txt"
    own.write_text("not yours")
    state_dir().mkdir()
    for name in ("error.log", "models.json", "history.sqlite3"):
        (state_dir() / name).symlink_to(own)
    assert keep_traceback(ValueError("something")) == state_dir() / "error.log"
    registry.write(Registry())
    History.open(state_dir()).close()
    assert own.read_text() == "not yours"
    assert "something" in (state_dir() / "error.log").read_text()
    (state_dir() / "link").symlink_to(own)
    with pytest.raises(OSError, match="it is a link"):
        open_own(state_dir() / "link", os.O_WRONLY | os.O_CREAT)


@posix
def test_a_pipe_is_no_file_of_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="device"):
        open_own(tmp_path / "pipe", os.O_WRONLY)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="no ordinary file"):
            open_own(tmp_path / "pipe", os.O_WRONLY)
    finally:
        os.close(reader)


@posix
def test_a_trash_folder_that_is_a_link_takes_no_picture(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".trash").symlink_to(tmp_path / "elsewhere")
    picture = tmp_path / "000001_seed1.png"
    picture.write_bytes(b"a picture")
    with pytest.raises(OSError, match="link to elsewhere"):
        move_to_trash(picture)
    assert picture.exists()
    assert not any((tmp_path / "elsewhere").iterdir())


def test_on_windows_a_file_that_is_about_to_get_its_name_is_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, left = tmp_path / f".t2i-{'0' * 16}.tmp", tmp_path / f".t2i-{'1' * 16}.tmp"
    for path, age in ((finished, 0), (left, 60)):
        path.write_bytes(b"whole")
        os.utime(path, (time.time() - age,) * 2)
    monkeypatch.setattr(sys, "platform", "win32")
    remove_leftovers(tmp_path)
    assert (finished.exists(), left.exists()) == (True, False)


@pytest.mark.parametrize(
    "name",
    [
        *(r"\\host\share\x", "//host/share/x", r"\/host/share/x", r"/\host\share\x"),
        *(r"\\?\UNC\host\x", r"\\.\pipe\x", r"\??\UNC\host\x", "/??/UNC/host/x"),
    ],
)
def test_a_picture_opens_no_network_share_in_any_spelling(name: str) -> None:
    with pytest.raises(RequestError, match="network share"):
        recorded_model(name)


@pytest.mark.parametrize("name", ["demo", "/models/flux", r"C:\models\flux", "C:/models", "a//b", r"\models\flux"])
def test_a_picture_may_name_models_of_this_machine(name: str) -> None:
    assert recorded_model(name) == name


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What decides over a power cut, in the order in which it is done."""
    done: list[str] = []

    def noted(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any) -> None:
            real(*arguments)
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            done.append("sync folder" if is_folder else name)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "link", "mkdir"):
        noted(name)
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_is_told(
    own_folders: Path, done: list[str]
) -> None:
    """What a power cut at any moment leaves is the old file or the new one."""
    folder = ["sync folder"] * (os.name == "posix")
    order = ["fsync", "replace", *folder]
    write_whole(state_dir() / "models.json", b"{}")
    assert done == ["mkdir", *folder, *order]
    done.clear()
    with Temporary(state_dir()) as temporary:  # as converted weights are written
        temporary.stream.write(b"weights")
        temporary.finish()
        temporary.replace(state_dir() / "weights")
    assert done == order


def test_a_picture_is_on_the_disk_before_it_is_told(tmp_path: Path, done: list[str]) -> None:
    folder = ["sync folder"] * (os.name == "posix")
    save_image(colour(), record_of(), Destination(tmp_path))
    assert done == ["fsync", "link", *folder]
    done.clear()
    save_image(colour(), record_of(), Destination(tmp_path / "out.png", is_file=True))
    assert done == ["fsync", "replace", *folder]


@pytest.fixture
def full_disk(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Full from then on; as on disks over the network, which say so when all is to be written."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_leaves_the_old_list_of_models(full_disk: Callable[[], None]) -> None:
    registry.write(Registry(loose=(Path("/old"),)))
    full_disk()
    with pytest.raises(RequestError, match=r"models\.json' cannot be written: No space left on device") as refused:
        registry.change(lambda known: known.with_model(Registered("new", Path("/new"))))
    assert refused.value.machine
    assert registry.read() == Registry(loose=(Path("/old"),))
    assert {path.name for path in state_dir().iterdir()} == {"models.json", "models.lock"}


def test_latents_that_cannot_be_kept_stop_nothing(full_disk: Callable[[], None]) -> None:
    import torch

    latents = KeptLatents(Request("a circle", seed=1))
    full_disk()
    latents.keep(torch.zeros(1, 4, 16))
    assert latents.find((1, 4, 16)) is None
    assert list(latents.path.parent.iterdir()) == []


HOLDING = """
import sys
from pathlib import Path
from engine.files import Temporary
with Temporary(Path(sys.argv[1])) as temporary:
    temporary.stream.write(b"half")
    print(temporary.path.name, flush=True)
    sys.stdin.read()
"""


def test_temporary_files_of_killed_processes_go_at_once_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "notes.tmp", tmp_path / "models.json", tmp_path / "tmp0a_b1c2d.tmp"]
    of_an_older_version = tmp_path / "tmp0a_b1c2e.tmp"
    for path in (*kept, of_an_older_version):
        path.write_bytes(b"half")
    os.utime(of_an_older_version, (time.time() - 3700,) * 2)
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": Path(__file__).parent.parent}
    with subprocess.Popen(command, **pipes) as living, subprocess.Popen(command, **pipes) as killed:
        assert living.stdout
        assert killed.stdout
        held, left = (tmp_path / pipe.readline().decode().strip() for pipe in (living.stdout, killed.stdout))
        os.utime(held, (time.time() - 3700,) * 2)  # a disk that takes long
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {held, left, *kept}
        killed.kill()
        killed.wait()
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {held, *kept}
        living.communicate()
    assert set(tmp_path.iterdir()) == {*kept}
    remove_leftovers(tmp_path / "missing")


def test_a_temporary_file_is_held_until_it_has_its_name(tmp_path: Path) -> None:
    with Temporary(tmp_path) as temporary:
        temporary.write(b"whole")
        remove_leftovers(tmp_path)
        temporary.replace(tmp_path / "models.json")
    assert (tmp_path / "models.json").read_bytes() == b"whole"
    assert [*tmp_path.iterdir()] == [tmp_path / "models.json"]


def test_a_name_that_a_living_process_has_is_taken(tmp_path: Path) -> None:
    with Temporary(tmp_path, name="0123456789abcdef"):
        remove_leftovers(tmp_path)
        with pytest.raises(FileExistsError):
            Temporary(tmp_path, name="0123456789abcdef")
    with Temporary(tmp_path, name="0123456789abcdef"):
        pass


@posix
def test_without_locks_only_age_tells_that_nobody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    young, old = tmp_path / ".t2i-0123456789abcdef.tmp", tmp_path / ".t2i-fedcba9876543210.tmp"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3700,) * 2)
    remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [young]


@pytest.mark.unmeasured
def test_a_start_cleans_every_folder_of_ours(own_folders: Path) -> None:
    state, cache = state_dir(), cache_dir()
    folders = (state, state / "rescued", state / "latents", cache / "plans", cache / "weights" / "index", config_dir())
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".t2i-0123456789abcdef.tmp").write_bytes(b"half")
    with Engine.open("demo"):
        assert list(own_folders.rglob("*.tmp")) == []


@posix
def test_empty_logs_of_engines_that_have_gone_are_removed_from_the_temporary_folder(
    own_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state_dir().write_text("no log can be kept here")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    logs = {
        "removed": (gone.pid, b"", 3700),
        "young": (gone.pid, b"", 0),
        "telling": (gone.pid, b"Segmentation fault", 3700),
        "alive": (os.getpid(), b"", 3700),
    }
    for name, (pid, content, age) in logs.items():
        path = tmp_path / f"tmp{name}-engine-20260101-000000-{pid}.log"
        path.write_bytes(content)
        os.utime(path, (time.time() - age,) * 2)
    new = _new_log()
    assert new.parent == tmp_path
    left = {path.name.partition("-")[0] for path in tmp_path.iterdir()} - {new.name.partition("-")[0]}
    assert left == {"tmpyoung", "tmptelling", "tmpalive"}


@posix
def test_a_plan_is_not_read_through_a_link_to_a_file(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write_whole(plan, b'{"activation_bytes": 7}')
    (tmp_path / "link.json").symlink_to(plan)
    assert (measured(plan), measured(tmp_path / "link.json")) == (7, None)
