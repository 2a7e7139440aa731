"""Where pictures go: whole or not at all, never over another one, never lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import engine.folders
from engine.files import Temporary
from engine.folders import cache_dir, config_dir, default_output_dir, shown_path, state_dir
from engine.images.metadata import Record, read_record
from engine.images.save import Destination, file_name, plan_output, save_image
from engine.request import Request, RequestError

POSIX = os.name == "posix"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes outside its own folder; and none leaves a temporary file anywhere."""
    for name in ("STATE", "CACHE", "CONFIG", "OUTPUT"):
        monkeypatch.setenv(f"TEXTTOIMAGETOOL_{name}_DIR", str(tmp_path / "own" / name.lower()))
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    yield
    assert [path for path in tmp_path.rglob("*") if "tmp" in path.name and path.is_file()] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def record_of(prompt: str = "a red circle", seed: int = 42) -> Record:
    request = Request(prompt=prompt, steps=4, seed=seed, width=64, height=64, precision="fp32")
    return Record(request, "demo", "ab" * 32, {"engine": "0.1.0"}, {"denoise": 1.5}, "cpu", {})


def colour(value: int = 200) -> Image.Image:
    return Image.new("RGB", (64, 64), (value, 10, 20))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(path: Path, seed: int = 42, value: int = 200) -> None:
    """The file at `path` is a finished picture of this colour with the record of this seed."""
    with Image.open(path) as image:
        assert image.convert("RGB").getpixel((63, 63)) == (value, 10, 20)
    assert read_record(path).request.seed == seed


def refusal(output: Path | None, count: int = 1) -> str:
    """What the one sentence that refuses `output` says after the path."""
    with pytest.raises(RequestError) as caught:
        plan_output(output, count)
    assert caught.value.field == "output"
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert message.endswith(".")
    shown = shown_path(default_output_dir() if output is None else output)
    assert message.startswith(shown + " ")
    return message.removeprefix(shown)


# Where to


def test_the_default_folder_is_made(tmp_path: Path) -> None:
    assert plan_output(None, 3) == Destination(tmp_path / "own" / "output")
    assert names(tmp_path / "own" / "output") == []


def test_an_existing_folder_is_used_whatever_its_name(tmp_path: Path) -> None:
    for name in ("pictures", "pictures.png", "pictures.jpg", "赤"):
        (tmp_path / name).mkdir()
        assert plan_output(tmp_path / name, 5) == Destination(tmp_path / name)
        assert names(tmp_path / name) == []


def test_a_png_path_is_one_file(folder: Path) -> None:
    assert plan_output(folder / "out.png", 1) == Destination(folder / "out.png", is_file=True)
    assert plan_output(folder / "out.PNG", 1) == Destination(folder / "out.PNG", is_file=True)
    assert names(folder) == []
    assert "2 pictures" in refusal(folder / "out.png", 2)


def test_relative_paths_and_the_home_folder_become_absolute(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan_output(Path("pictures"), 1).path == folder
    assert plan_output(Path("out.png"), 1).path == tmp_path / "out.png"
    monkeypatch.setenv("HOME" if POSIX else "USERPROFILE", str(tmp_path))
    assert plan_output(Path("~/pictures"), 1).path == folder


def test_what_cannot_work_is_refused_before_anything_runs(tmp_path: Path, folder: Path) -> None:
    (folder / "file").write_text("x")
    assert "create the folder first" in refusal(folder / "missing")
    assert "create it first" in refusal(folder / "missing" / "out.png")
    assert "end the name with .png" in refusal(folder / "out.jpg")
    assert "is a file" in refusal(folder / "file")
    assert refusal(folder / "file" / "out.png")
    assert refusal(folder / "file" / "below")
    assert refusal(folder / ("x" * 300 + ".png"))
    assert refusal(folder / ("x" * 300))
    assert "not a path" in refusal(folder / "nul\0.png")
    assert "create the folder first" in refusal(folder / "evil\x1b[2J")
    assert names(folder) == ["file"]


@pytest.mark.skipif(not POSIX, reason="pipes have no path on Windows")
def test_a_pipe_is_not_replaced_by_a_picture(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert "not an ordinary file" in refusal(folder / "pipe.png")


def test_a_file_in_place_of_the_default_folder_is_called_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pictures").write_text("x")
    monkeypatch.setenv("TEXTTOIMAGETOOL_OUTPUT_DIR", str(folder / "pictures"))
    assert "is a file, and pictures go into a folder" in refusal(None)


@pytest.mark.skipif(not POSIX, reason="links need a right of their own on Windows")
@pytest.mark.parametrize("there", [True, False])
def test_a_picture_is_written_through_a_link_and_the_link_stays(folder: Path, tmp_path: Path, there: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target.png", folder / "link.png"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(Path("..") / "elsewhere" / "target.png")
    destination = plan_output(link, 1)
    assert save_image(colour(), record_of(), destination) == (link, None)
    assert link.is_symlink()
    assert_whole(target)
    assert names(folder) == ["link.png"]
    assert names(tmp_path / "elsewhere") == ["target.png"]


@pytest.mark.parametrize("number", ["9" * 9, "9" * 18, "1" + "0" * 9])
def test_a_number_beyond_what_we_write_is_not_ours(folder: Path, number: str) -> None:
    (folder / f"{number}_seed1.png").write_bytes(b"whose")
    (folder / "000041_seed1.png").write_bytes(b"ours")
    for expected in ("000042", "000043"):
        path, _ = save_image(colour(), record_of(), Destination(folder))
        assert path.name.startswith(expected)


def test_a_default_folder_that_cannot_be_made_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("x")
    monkeypatch.setenv("TEXTTOIMAGETOOL_OUTPUT_DIR", str(folder / "file" / "pictures"))
    assert "choose another folder" in refusal(None)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which even root cannot write")
def test_a_folder_that_takes_no_files_is_refused() -> None:
    assert "cannot be written to" in refusal(Path("/proc/self"))
    assert "cannot be written to" in refusal(Path("/proc/self/out.png"))


@pytest.mark.skipif(not POSIX, reason="Windows has no such permissions")
def test_a_folder_without_permission_is_refused() -> None:
    """Root is stopped by no permission, so root becomes nobody for the moment."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # its parents are open to all, unlike those of pytest's own folders
        os.chmod(name, 0o555)
        os.seteuid(user or 65534)
        try:
            assert "permission denied" in refusal(Path(name))
        finally:
            os.seteuid(user)


def test_folders_can_be_moved_and_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (state_dir, cache_dir, config_dir, default_output_dir):
        moved = kind()
        assert moved.parent == tmp_path / "own"
        variable = f"TEXTTOIMAGETOOL_{moved.name.upper()}_DIR"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(variable, "relative")
        assert kind() == tmp_path / "relative"
        for value in ("", None):
            monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
            assert kind().is_absolute()
            assert "texttoimagetool" in str(kind()).lower()
    assert not (tmp_path / "own").exists()
    assert engine.folders.APP == "texttoimagetool"


# Names


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red circle", "000123_seed42_a-red-circle.png"),
        ("A Red  Circle, above: a/blue\\square!", "000123_seed42_a-red-circle-above-a-blue-square.png"),
        ("../../etc/passwd", "000123_seed42_etc-passwd.png"),
        (".hidden", "000123_seed42_hidden.png"),
        ("CON", "000123_seed42_con.png"),
        ("Äpfel & Öl, 赤い円", "000123_seed42_äpfel-öl-赤い円.png"),
        ("नमस्ते", "000123_seed42_नमस्ते.png"),
        ("\u202e\x1b[2J\n\0evil\ufeff", "000123_seed42_2j-evil.png"),
        ("🔴 !!!", "000123_seed42.png"),
        ("x" * 10_000, f"000123_seed42_{'x' * 40}.png"),
        ("ab " * 100, "000123_seed42_ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-ab-a.png"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_a_name_tells_what_is_inside(prompt: str, name: str) -> None:
    assert file_name(123, record_of(prompt)) == name


@pytest.mark.parametrize("prompt", ["赤" * 60, "𐐀" * 60, "é" * 60, "ﷺ" * 900])
def test_names_are_short_enough_for_every_file_system(folder: Path, prompt: str) -> None:
    name = file_name(10**6, record_of(prompt, seed=2**64 - 1))
    assert len(name.encode()) <= 143
    path, notice = save_image(colour(), record_of(prompt), Destination(folder))
    assert notice is None
    assert_whole(path)


def test_a_prompt_that_the_locale_cannot_spell_is_left_out_of_the_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii"))
    assert file_name(1, record_of("赤い円")) == "000001_seed42.png"
    assert file_name(1, record_of("red")) == "000001_seed42_red.png"


# Saving


def test_pictures_in_a_folder_are_numbered_on(folder: Path) -> None:
    for name in ("20240101_holiday.png", "000007_seed1_old.png", "000009_seed1.txt", "notes.txt", "999999.png"):
        (folder / name).write_bytes(b"x")
    destination = plan_output(folder, 2)
    first, notice = save_image(colour(), record_of(), destination)
    assert (first, notice) == (folder / "000008_seed42_a-red-circle.png", None)
    second, _ = save_image(colour(100), record_of(), destination)
    assert second.name == "000009_seed42_a-red-circle.png"
    assert_whole(first)
    assert_whole(second, value=100)
    assert len(names(folder)) == 7


def test_a_number_is_not_used_again_while_a_later_one_exists(folder: Path) -> None:
    destination = Destination(folder)
    paths = [save_image(colour(), record_of(), destination)[0] for _ in range(3)]
    paths[0].unlink()
    assert save_image(colour(), record_of(), destination)[0].name.startswith("000004_")


def test_numbers_go_on_beyond_six_digits(folder: Path) -> None:
    (folder / "999999_seed1.png").write_bytes(b"x")
    assert [save_image(colour(), record_of(), Destination(folder))[0].name[:8] for _ in range(2)] == [
        "1000000_",
        "1000001_",
    ]


def test_a_temporary_file_of_a_crashed_process_only_costs_its_number(folder: Path) -> None:
    left = folder / ".t2i-000001.tmp"
    left.write_bytes(b"half a pic")
    path, notice = save_image(colour(), record_of(), Destination(folder))
    assert (path.name[:6], notice) == ("000002", None)
    assert left.read_bytes() == b"half a pic"
    left.unlink()


def test_a_named_file_is_replaced_whole(folder: Path) -> None:
    destination = plan_output(folder / "out.png", 1)
    for value in (100, 200):
        assert save_image(colour(value), record_of(), destination) == (folder / "out.png", None)
        assert_whole(folder / "out.png", value=value)
    assert names(folder) == ["out.png"]


def save_many(folder: Path, seed: int, count: int, ready: Any) -> None:
    ready.wait(60)
    for _ in range(count):
        save_image(colour(seed), record_of(seed=seed), Destination(folder))


def assert_numbered(folder: Path, expected: dict[int, int]) -> None:
    """`expected` pictures of each seed, each whole, and no number given twice."""
    numbers = [name[:6] for name in names(folder)]
    assert len(numbers) == len(set(numbers)) == sum(expected.values())
    found = [read_record(folder / name).request.seed or 0 for name in names(folder)]
    assert {seed: found.count(seed) for seed in expected} == expected
    for name, seed in zip(names(folder), found, strict=True):
        assert_whole(folder / name, seed=seed, value=seed)


def test_threads_that_save_at_once_get_their_own_numbers(folder: Path) -> None:
    ready = threading.Barrier(4)
    threads = [threading.Thread(target=save_many, args=(folder, seed, 6, ready)) for seed in (1, 1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_numbered(folder, {1: 12, 2: 6, 3: 6})


def test_processes_that_save_at_once_get_their_own_numbers(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    processes = [context.Process(target=save_many, args=(folder, seed, 8, ready)) for seed in (1, 1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_numbered(folder, {1: 16, 2: 8})


def before_first(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[Path], None]) -> list[Path]:
    """Let `action` happen just before the first `os.<name>`, as another process might; says where it did."""
    real: Callable[..., Any] = getattr(os, name)
    done: list[Path] = []

    def wrapper(*arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(Path(arguments[-1] if name == "link" else arguments[0]))
            action(done[0])
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, wrapper)
    return done


def test_a_number_that_another_finishes_first_is_left_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rival(_: Path) -> None:
        save_image(colour(1), record_of(seed=1), Destination(folder))

    done = before_first(monkeypatch, "open", rival)
    save_image(colour(2), record_of(seed=2), Destination(folder))
    assert done == [folder / ".t2i-000001.tmp"]
    assert names(folder) == ["000001_seed1_a-red-circle.png", "000002_seed2_a-red-circle.png"]
    assert_whole(folder / names(folder)[0], seed=1, value=1)
    assert_whole(folder / names(folder)[1], seed=2, value=2)


def test_a_file_that_takes_the_very_name_is_not_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rival(path: Path) -> None:
        path.write_text("mine")

    done = before_first(monkeypatch, "link", rival)
    path, notice = save_image(colour(), record_of(), Destination(folder))
    assert done == [folder / "000001_seed42_a-red-circle.png"]
    assert done[0].read_text() == "mine"
    assert (path.name, notice) == ("000002_seed42_a-red-circle.png", None)
    assert_whole(path)


def no_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_file_system_without_hard_links_will_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    ready = threading.Barrier(3)
    threads = [threading.Thread(target=save_many, args=(folder, seed, 6, ready)) for seed in (1, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_numbered(folder, {1: 12, 2: 6})
    last = max(int(path.name[:6]) for path in folder.glob("*.png"))  # one who is overtaken leaves a number out
    taken = folder / f"{last + 1:06d}_seed42_a-red-circle.png"
    real_open = os.open

    def rival_open(path: Any, flags: int, *mode: int) -> int:
        if Path(path) == taken and not taken.exists():
            taken.write_text("mine")
        return real_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", rival_open)
    path, notice = save_image(colour(), record_of(), Destination(folder))
    assert taken.read_text() == "mine"
    assert (path.name, notice) == (f"{last + 2:06d}_seed42_a-red-circle.png", None)


# Failing


def assert_rescued(path: Path, notice: str | None, rescue: Path, reason: str, value: int = 200) -> None:
    assert path.parent == rescue
    assert notice is not None
    assert notice.isprintable()
    assert reason in notice.rpartition("(")[2].partition(")")[0]
    assert path.name in notice
    assert notice.endswith(".")
    assert_whole(path, value=value)
    if POSIX:
        assert path.stat().st_mode & 0o077 == 0


def test_a_picture_whose_folder_is_gone_is_kept_in_the_state_folder(tmp_path: Path, folder: Path) -> None:
    destinations = [plan_output(folder, 1), plan_output(folder / "out.png", 1)]
    folder.rmdir()
    for value, destination in enumerate(destinations):
        path, notice = save_image(colour(value), record_of(), destination)
        assert_rescued(path, notice, tmp_path / "own" / "state" / "rescued", "no such file", value)
    folder.write_text("now a file")
    for value, destination in enumerate(destinations, start=5):
        path, notice = save_image(colour(value), record_of(), destination)
        assert_rescued(path, notice, tmp_path / "own" / "state" / "rescued", "not a directory", value)
    assert len(names(tmp_path / "own" / "state" / "rescued")) == 4
    assert folder.read_text() == "now a file"


def test_a_picture_is_kept_in_the_temporary_folder_when_the_state_folder_fails_too(
    tmp_path: Path, folder: Path
) -> None:
    destination = plan_output(folder, 1)
    shutil.rmtree(folder)
    (tmp_path / "own").write_text("a file where the state folder should be")
    path, notice = save_image(colour(), record_of(), destination)
    assert_rescued(path, notice, tmp_path / "system", "no such file")


def test_only_when_every_place_fails_is_there_an_error(tmp_path: Path, folder: Path) -> None:
    destination = plan_output(folder, 1)
    shutil.rmtree(folder)
    (tmp_path / "own").write_text("x")
    (tmp_path / "system").rmdir()
    (tmp_path / "system").write_text("x")
    with pytest.raises(OSError, match=r"could not be saved to .*pictures.*no such file"):
        save_image(colour(), record_of(), destination)


def test_a_folder_in_the_place_of_the_named_file_is_left_alone(tmp_path: Path, folder: Path) -> None:
    destination = plan_output(folder / "out.png", 1)
    (folder / "out.png").mkdir()
    path, notice = save_image(colour(), record_of(), destination)
    assert_rescued(path, notice, tmp_path / "own" / "state" / "rescued", "is a directory" if POSIX else "denied")
    assert names(folder) == ["out.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_leaves_the_old_picture_and_no_half_of_the_new_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    destination = Destination(folder / "out.png", is_file=True) if named else Destination(folder)
    before, _ = save_image(colour(1), record_of(), destination)
    real_open = os.open

    def open_on_full_disk(path: Any, flags: int, *mode: int) -> int:
        descriptor = real_open(path, flags, *mode)
        if Path(path).parent == folder and flags & os.O_CREAT:
            full = real_open("/dev/full", os.O_WRONLY)
            os.dup2(full, descriptor)
            os.close(full)
        return descriptor

    monkeypatch.setattr(os, "open", open_on_full_disk)
    assert "no space left" in refusal(folder)
    path, notice = save_image(colour(), record_of(), destination)
    assert_rescued(path, notice, tmp_path / "own" / "state" / "rescued", "no space left on device")
    assert names(folder) == [before.name]
    assert_whole(before, value=1)


@pytest.mark.parametrize("named", [False, True])
def test_a_disk_that_fills_up_only_when_written_out_is_a_full_disk(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Network disks say so at fsync."""
    destination = Destination(folder / "out.png", is_file=True) if named else Destination(folder)
    real_fsync, calls = os.fsync, iter(range(1000))

    def fsync(descriptor: int) -> None:
        if next(calls) == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path, notice = save_image(colour(), record_of(), destination)
    assert_rescued(path, notice, tmp_path / "own" / "state" / "rescued", os.strerror(errno.ENOSPC).lower())
    assert names(folder) == []
    assert next(calls) > 1


@pytest.mark.skipif(not POSIX, reason="limits on file sizes are a POSIX thing")
def test_a_write_that_the_system_cuts_short_leaves_nothing_anywhere(tmp_path: Path, folder: Path) -> None:
    """A real limit, in a process of its own: no file may grow beyond 100 bytes."""
    code = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_images_save import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "tempfile.tempdir = str(Path(sys.argv[1]).parent / 'system')\n"
        "try: save_image(colour(), record_of(), Destination(Path(sys.argv[1])))\n"
        "except OSError as error: print(error)"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(folder), str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "file too large" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert (tmp_path / "own" / "state" / "rescued").is_dir()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("links", [False, True])
def test_an_interrupt_while_saving_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, named: bool, links: bool
) -> None:
    destination = Destination(folder / "out.png", is_file=True) if named else Destination(folder)
    interrupted = []

    def interrupt(*_: object) -> None:
        interrupted.append(names(folder))
        raise KeyboardInterrupt

    for place in ("fsync", "replace") if named or not links else ("fsync", "link"):
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "link", no_links)
            patch.setattr(os, place, interrupt)
            with pytest.raises(KeyboardInterrupt):
                save_image(colour(), record_of(), destination)
    assert len(interrupted) == 2
    assert all(any(name.endswith(".tmp") for name in seen) for seen in interrupted)
    assert names(folder) == []


def test_a_picture_that_cannot_be_encoded_touches_no_file(folder: Path) -> None:
    (folder / "out.png").write_bytes(b"old")
    with pytest.raises(OSError, match="PNG"):
        save_image(Image.new("F", (8, 8)), record_of(), Destination(folder / "out.png", is_file=True))
    assert names(folder) == ["out.png"]
    assert (folder / "out.png").read_bytes() == b"old"


def test_what_a_kill_left_behind_is_removed_and_what_somebody_writes_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    left, older, other = folder / ".t2i-0123456789abcdef.tmp", folder / ".t2i-000007.tmp", folder / "notes.txt"
    for path in (left, older, other):
        path.write_bytes(b"half a picture")
    an_hour_ago = time.time() - 3700
    os.utime(older, (an_hour_ago, an_hour_ago))  # of a version that had no locks
    with Temporary(folder) as written:
        plan_output(folder, 1)
        assert set(folder.iterdir()) == {written.path, other}
