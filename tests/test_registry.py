"""The list of the person's models: one bad entry is one line, and whoever adds at the same time, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from engine.folders import state_dir
from engine.library import catalog, inventory, registry
from engine.library.registry import Registered, Registry
from engine.request import RequestError

ROOT = Path(__file__).parent.parent
BAD = {
    "no path": {},
    "a number": 7,
    "a list": [["x"]],
    "a path that is none": {"path": 7},
    "a path with half a pair": {"path": "/a/\ud83d"},
    "a path with a NUL": {"path": "/a\0b"},
    "parts that are none": {"path": "/a", "parts": [1]},
    "a part that is none": {"path": "/a", "parts": {"vae": None}},
    "half a pair \ud83d": {"path": "/a"},
    "pulled": {"path": "/a", "pulled": "yes"},
}


def file() -> Path:
    return state_dir() / registry.FILE


@pytest.fixture
def with_bad_entries(own_folders: Path) -> None:
    state_dir().mkdir()
    sound = {"path": str(catalog.DEMO_FOLDER)}
    values = {"models": {**BAD, "sound": sound}, "loose": ["/somewhere", 7, "\ud83d"]}
    file().write_text(json.dumps(values), "utf-8")


@pytest.mark.usefixtures("with_bad_entries")
def test_a_bad_entry_is_one_line_and_is_kept() -> None:
    listed = {model.name: model for model in inventory.listed()}
    assert listed["sound"].here
    for name in BAD:
        shown = name.encode("ascii", "backslashreplace").decode()
        assert "cannot be read" in listed[shown].warning
        assert listed[shown].can_remove
        assert len(listed[shown].warning) <= 400
        with pytest.raises(RequestError, match="cannot be read: mend it"):
            catalog.open_model(name)
    inventory.add(catalog.DEMO_FOLDER, "another")
    kept = json.loads(file().read_text("utf-8"))
    assert {name: kept["models"][name] for name in BAD} == BAD
    assert {"sound", "another"} == kept["models"].keys() - BAD.keys()
    assert kept["loose"] == ["/somewhere", 7, "\ud83d"]
    inventory.remove("half a pair \\ud83d")
    inventory.add(catalog.DEMO_FOLDER, "pulled")  # takes the place of the bad one
    assert registry.read().broken.keys() == BAD.keys() - {"half a pair \ud83d", "pulled"}


@pytest.mark.usefixtures("with_bad_entries")
def test_models_list_goes_on_after_a_bad_entry() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from engine.cli.commands import main; sys.exit(main())",
        "models",
        "list",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    assert "sound" in run.stdout
    assert "half a pair" in run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are not UTF-8")
def test_a_path_that_is_no_text_is_a_path_all_the_same(own_folders: Path) -> None:
    odd = Path(os.fsdecode(b"/models/\xff"))
    registry.write(Registry({"odd": Registered("odd", odd, {"vae": odd})}, (odd,)))
    assert registry.read() == Registry({"odd": Registered("odd", odd, {"vae": odd})}, (odd,))


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"models": [], "loose": []}', b"\xff", b"1" * 5000])
def test_where_a_model_is_missed_a_damaged_list_is_the_reason(own_folders: Path, content: bytes) -> None:
    state_dir().mkdir()
    file().write_bytes(content)
    for look in (catalog.open_model, inventory.show):
        with pytest.raises(RequestError, match=r"'mine' is not found: .*models\.json.* is damaged; mend it") as refused:
            look("mine")
        assert len(str(refused.value)) <= 400
    assert catalog.open_model("demo").has_weights
    with pytest.raises(RequestError, match="is damaged"):
        inventory.add(catalog.DEMO_FOLDER, "mine")
    assert file().read_bytes() == content


def test_of_several_that_add_at_once_none_is_lost(own_folders: Path) -> None:
    """Processes, and threads within one of them, as the app and its downloads are."""
    code = (
        "import sys; from pathlib import Path; from engine.library import registry\n"
        "from engine.library.registry import Registered\n"
        "for n in range(10): registry.change(lambda r: r.with_model(Registered(f'{sys.argv[1]}-{n}', Path('/m'))))"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in "abc"]

    def add(name: str) -> None:
        for model in [Registered(f"{name}-{number}", Path("/m")) for number in range(10)]:
            registry.change(partial(Registry.with_model, model=model))

    threads = [Thread(target=add, args=(name,)) for name in "de"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0, 0]
    assert registry.read().models.keys() == {f"{name}-{number}" for name in "abcde" for number in range(10)}


def test_models_added_at_once_without_a_name_get_different_ones(own_folders: Path, tmp_path: Path) -> None:
    places = []
    for name in "ab":
        (tmp_path / name).mkdir()
        places.append(tmp_path / name / "same")
        shutil.copytree(catalog.DEMO_FOLDER, places[-1])
    threads = [Thread(target=inventory.add, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {model.path for model in registry.read().models.values()} == {*places}


def test_a_lock_that_is_never_let_go_is_said(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LOCK_SECONDS", 0.0)
    with registry.changing(), pytest.raises(RequestError, match=r"another program has kept .*models\.lock"):
        registry.change(lambda known: known)
    registry.change(lambda known: known.with_loose([Path("/m")]))
    assert registry.read().loose == (Path("/m"),)
