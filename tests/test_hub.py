"""Models from the hub: the real library against a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cancel import CancelledError
from engine.families.flux1.tokenizers import check_clip, check_t5
from engine.families.sources import Repository, Source
from engine.library import hub, transfer
from engine.request import RequestError

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARD = "transformer/model-00001-of-00002.safetensors"


def weights(count: int, seed: int) -> bytes:
    """A safetensors file with one tensor of so many bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + hashlib.shake_256(bytes([seed])).digest(count)


FILES = {
    "model_index.json": b'{"_class_name": "FluxPipeline"}',
    "README.md": b"not asked for",
    "transformer/config.json": b"{}",
    "transformer/model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    SHARD: weights(600_000, 1),
    "transformer/model-00002-of-00002.safetensors": weights(200_000, 2),
    "whole.safetensors": weights(50_000, 3),
}
WANTED = [path for path in FILES if "/" in path or path == "model_index.json"]
TOTAL = sum(len(FILES[path]) for path in WANTED)
TINY = Repository(
    "someone/tiny",
    ("model_index.json", "transformer/*.json", "transformer/*.safetensors"),
    ("model_index.json", "transformer/config.json", "transformer/model.safetensors.index.json"),
)


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES), repr=False)
    gated: bool = False
    tokens: dict[str, bool] = field(default_factory=dict)  # known ones; True: of an account that accepted the licence
    page: bytes | None = None  # answers everything
    missing: bool = False
    cuts: list[int] = field(default_factory=list)  # how many bytes the next answers with SHARD send before they end
    fails: list[int] = field(default_factory=list)  # states of the next answers with SHARD
    held: Event | None = None  # an answer with SHARD is cut only when this is set
    ranges: bool = True
    lengths: bool = True
    sent: Callable[[bytes], bytes] = lambda data: data  # what comes in SHARD's place
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list, repr=False)  # method, path, headers
    url: str = ""

    def asked_for(self, path: str) -> list[dict[str, str]]:
        """The headers of the requests that got a file's content."""
        return [headers for method, asked, headers in self.asked if method == "GET" and asked.endswith("/" + path)]


def listed(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_name(data)}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def handler(state: Hub, storage: list[str]) -> type[BaseHTTPRequestHandler]:
    """Answers as the hub does (`storage` holds the address of the other server), or as what it forwards to."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/api/agent-harnesses":  # the library's own, once a process
                self.answer(404)
                return
            state.asked.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if state.page is not None:
                self.answer(200, state.page)
            elif not storage:
                self.content(path.removeprefix("/storage/"))
            elif state.missing:
                self.answer(404, said={"X-Error-Code": "RepoNotFound"})
            elif token and token not in state.tokens:
                self.answer(401, said={"X-Error-Message": "Invalid credentials in Authorization header"})
            elif path == f"/api/models/{TINY.id}":
                siblings = [listed(name, data) for name, data in state.files.items()]
                info = {"id": TINY.id, "sha": COMMIT, "gated": "auto" if state.gated else False, "siblings": siblings}
                self.answer(200, json.dumps(info).encode())
            elif state.gated and not state.tokens.get(token):
                self.answer(403 if token else 401, said={"X-Error-Code": "GatedRepo"})
            elif match := re.fullmatch(f"/{TINY.id}/resolve/({COMMIT}|main)/(.+)", path):
                self.resolve(match[2])
            else:
                self.answer(404, said={"X-Error-Code": "EntryNotFound"})

        def resolve(self, name: str) -> None:
            data = state.files[name]
            said = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_name(data)}"'}
            if name.endswith(".safetensors"):
                said |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
                self.answer(302, said={"Location": f"{storage[0]}/storage/{name}", **said})
            else:
                self.content(name, said)

        def content(self, name: str, known: Mapping[str, str] | None = None) -> None:
            said = dict(known or {})
            if not state.lengths:
                said["Content-Length"] = ""
            data = state.files[name]
            if name == SHARD:
                data = state.sent(data)
                if state.fails:
                    self.answer(state.fails.pop(0))
                    return
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "") if state.ranges else "")
            first = int(match[1]) if match else 0
            if match and first >= len(data):
                self.answer(416)
                return
            if match:
                said["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            cut = state.cuts.pop(0) if name == SHARD and state.cuts else None
            self.answer(206 if match else 200, data[first:], said, cut)

        def answer(
            self, status: int, data: bytes = b"", said: Mapping[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), "Connection": "close", **(said or {})}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[:cut])
                self.wfile.flush()
                if cut is not None and state.held:
                    state.held.wait(20)
            self.close_connection = True

    return Handler


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository, which the library asks, with an empty cache in `tmp_path`."""
    state, storage = Hub(), [""]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(state, place)) for place in (storage, [])]
    for each in servers:
        each.daemon_threads = True
        Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
    state.url, storage[0] = (f"http://127.0.0.1:{each.server_address[1]}" for each in servers)
    use_hub(monkeypatch, state.url, tmp_path / "cache")
    monkeypatch.setitem(hub.SOURCES, "tiny", Source("tiny", (TINY,), "Tiny is free.", TOTAL))
    monkeypatch.setattr(transfer, "PAUSES_SECONDS", (0.01,) * 3)
    yield state
    for each in servers:
        each.shutdown()
        each.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What the library reads from the environment when it is first imported; nobody's token is sent."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def pulled(name: str = "tiny", **options: Any) -> tuple[Any, list[hub.PullProgress]]:
    """A pull from the beginning to the end: its result, and what it reported."""
    steps, reports = hub.pull(hub.prepare(name), **options), []
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as end:
            return end.value, reports


def is_right(folder: Path) -> bool:
    """Whether a folder holds the wanted files, all of them, and no others."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {*files} == {*WANTED} and all(path.read_bytes() == FILES[name] for name, path in files.items())


def partial_file(cache: Path, data: bytes = FILES[SHARD]) -> Path:
    return cache / "models--someone--tiny" / "blobs" / f"{hashlib.sha256(data).hexdigest()}.incomplete"


def test_a_model_comes_whole_with_progress_up_to_the_last_byte(
    server: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared = hub.prepare("tiny")
    assert (prepared.licence, prepared.here_bytes, prepared.download_bytes) == ("Tiny is free.", 0, TOTAL)
    assert prepared.folder == tmp_path / "cache"
    assert not list(tmp_path.iterdir()), "nothing is written before the pull"

    folder, reports = pulled()
    assert is_right(folder)
    assert {report.total_bytes for report in reports} == {TOTAL}
    done = [report.done_bytes for report in reports]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == TOTAL
    assert hub.found_in_cache("tiny") == folder
    assert capfd.readouterr() == ("", "")


def test_the_hub_library_finds_what_was_pulled(server: Hub) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

    folder, _ = pulled()
    assert Path(snapshot_download(TINY.id, local_files_only=True)) == folder
    assert Path(hf_hub_download(TINY.id, SHARD, local_files_only=True)) == folder / SHARD
    scan = scan_cache_dir(folder.parents[2])
    assert not scan.warnings
    assert scan.size_on_disk == TOTAL
    assert not list(folder.parent.parent.rglob("*.incomplete"))


def test_what_the_hub_library_brought_is_not_brought_again(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download

    for path in WANTED:
        last = hf_hub_download(TINY.id, path)
        assert (hub.found_in_cache("tiny") is None) == (path != WANTED[-1])
    asked = len(server.asked)
    folder, reports = pulled()
    assert last.startswith(str(folder))
    assert [report.done_bytes for report in reports] == [TOTAL, TOTAL]
    assert len(server.asked) == asked, "what is complete needs no network"


def test_only_what_is_missing_comes(server: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(TINY.id, SHARD)
    server.asked.clear()
    prepared = hub.prepare("tiny")
    assert (prepared.here_bytes, prepared.download_bytes) == (len(FILES[SHARD]), TOTAL - len(FILES[SHARD]))
    folder, reports = pulled()
    assert is_right(folder)
    assert reports[0].done_bytes == len(FILES[SHARD])
    assert not server.asked_for(SHARD)


def test_a_token_goes_to_the_hub_and_to_nobody_else(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.gated, server.tokens = True, {"mine": True}
    monkeypatch.setenv("HF_TOKEN", "mine")
    folder, _ = pulled()
    assert is_right(folder)
    to_storage = [headers for _, path, headers in server.asked if path.startswith("/storage/")]
    to_hub = [headers for _, path, headers in server.asked if not path.startswith("/storage/")]
    assert len(to_storage) == 2
    assert not any("authorization" in headers for headers in to_storage)
    assert all(headers["authorization"] == "Bearer mine" for headers in to_hub)


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(server: Hub) -> None:
    server.cuts = [100_000, 50_000, 100_000, 100_000, 100_000]  # more than it tries where nothing arrives
    folder, reports = pulled()
    assert is_right(folder)
    assert reports[-1].done_bytes == TOTAL
    from_storage = [headers.get("range") for headers in server.asked_for(f"storage/{SHARD}")]
    assert from_storage == [None, *(f"bytes={first}000-" for first in (100, 150, 250, 350, 450))]


def test_an_overloaded_hub_is_asked_again(server: Hub) -> None:
    server.fails = [503, 429]
    folder, _ = pulled()
    assert is_right(folder)


def test_a_server_that_knows_no_ranges_sends_the_file_again(server: Hub) -> None:
    server.cuts, server.ranges = [100_000], False
    folder, reports = pulled()
    assert is_right(folder)
    assert reports[-1].done_bytes == TOTAL


def test_after_too_many_breaks_it_says_so_and_the_next_pull_goes_on(server: Hub, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(RequestError, match="broke off 4 times") as refused:
        pulled()
    assert refused.value.machine
    assert "98 KiB of 586 KiB, is kept: pull again to go on" in str(refused.value)
    assert partial_file(tmp_path / "cache").stat().st_size == 100_000
    server.cuts = []
    assert hub.prepare("tiny").here_bytes >= 100_000
    folder, _ = pulled()
    assert is_right(folder)
    assert server.asked_for(f"storage/{SHARD}")[-1]["range"] == "bytes=100000-"


@pytest.mark.parametrize("cancel", [CancelledError, KeyboardInterrupt])
def test_a_cancelled_pull_stops_and_the_next_one_goes_on(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancel: type[BaseException]
) -> None:
    monkeypatch.setattr(transfer, "LEAVE_SECONDS", 0.1)
    server.cuts, server.held = [300_000], Event()
    seen = 0

    def check() -> None:
        if seen == TOTAL - len(FILES[SHARD]) + 300_000:
            raise cancel

    def watch() -> None:
        nonlocal seen
        for report in hub.pull(hub.prepare("tiny"), check=check):
            seen = report.done_bytes

    with pytest.raises(cancel):
        watch()
    assert partial_file(tmp_path / "cache").is_file()
    assert hub.found_in_cache("tiny") is None
    server.held.set()

    folder, after = pulled()
    assert is_right(folder)
    assert after[0].done_bytes > TOTAL - len(FILES[SHARD])
    assert server.asked_for(f"storage/{SHARD}")[-1]["range"] == "bytes=300000-"


def test_closing_the_generator_stops_the_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LEAVE_SECONDS", 0.1)
    server.cuts, server.held = [300_000], Event()
    steps = hub.pull(hub.prepare("tiny"))
    next(steps)
    next(steps)
    steps.close()
    server.held.set()
    for thread in threading.enumerate():
        if thread.name == "pull":
            thread.join(20)
    assert hub.found_in_cache("tiny") is None


def test_what_an_older_library_left_is_gone_on_with(server: Hub, tmp_path: Path) -> None:
    partial = partial_file(tmp_path / "cache")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(FILES[SHARD][:250_000])
    folder, reports = pulled()
    assert reports[0].done_bytes == 250_000
    assert is_right(folder)
    assert server.asked_for(f"storage/{SHARD}")[0]["range"] == "bytes=250000-"


@pytest.mark.parametrize("rubbish", [b"x" * 250_000, b"x" * 700_000, b"x" * len(FILES[SHARD])])
def test_a_partial_file_that_is_no_beginning_is_thrown_away(server: Hub, tmp_path: Path, rubbish: bytes) -> None:
    partial = partial_file(tmp_path / "cache")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(rubbish)
    folder, reports = pulled()
    assert is_right(folder)
    assert reports[-1].done_bytes == TOTAL


def test_a_file_that_comes_damaged_is_brought_again_once(server: Hub) -> None:
    answers = iter([FILES[SHARD][:-1] + b"?"])
    server.sent = lambda data: next(answers, data)
    folder, _ = pulled()
    assert is_right(folder)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (lambda data: data[:-1] + b"?", "came damaged twice"),
        (lambda data: data + b"more", r"has 600\d\d\d bytes in the hub's list, and 600\d\d\d came"),
        (lambda _: b"<html>log in</html>", r"has 600\d\d\d bytes in the hub's list, and 19 came"),
    ],
)
def test_a_file_that_is_not_the_listed_one_is_refused(server: Hub, sent: Callable[[bytes], bytes], said: str) -> None:
    server.sent = sent
    with pytest.raises(RequestError, match=said) as refused:
        pulled()
    assert SHARD in str(refused.value)
    assert hub.found_in_cache("tiny") is None


def test_more_bytes_than_listed_are_refused_where_no_length_is_said(server: Hub, tmp_path: Path) -> None:
    server.sent, server.lengths = lambda data: data + b"more", False
    with pytest.raises(RequestError, match="and more came"):
        pulled()
    assert partial_file(tmp_path / "cache").stat().st_size == 0
    server.sent = lambda data: data
    assert is_right(pulled()[0])


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (
            None,
            [
                "open https://huggingface.co/someone/tiny while logged in, accept the licence",
                "make a read token at https://huggingface.co/settings/tokens",
                "hf auth login, or HF_TOKEN=...",
            ],
        ),
        (
            "stranger",
            ["open https://huggingface.co/someone/tiny while logged in with the account of your token", "fine-grained"],
        ),
        ("wrong", ["the hub does not know the token in HF_TOKEN", "https://huggingface.co/settings/tokens"]),
    ],
)
def test_a_gated_repository_says_how_to_get_in(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, words: list[str]
) -> None:
    server.gated, server.tokens = True, {"stranger": False}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RequestError) as refused:
        hub.prepare("tiny")
    assert refused.value.machine
    assert [word for word in words if word not in str(refused.value)] == []
    assert not (tmp_path / "cache").exists()


def test_access_that_is_withdrawn_in_between_says_so(server: Hub) -> None:
    prepared = hub.prepare("tiny")
    server.gated = True
    with pytest.raises(RequestError, match="accept the licence"):
        list(hub.pull(prepared))


def test_a_repository_that_is_gone_is_named(server: Hub) -> None:
    server.missing = True
    with pytest.raises(RequestError, match=r"no https://huggingface\.co/someone/tiny, or does not show it"):
        hub.prepare("tiny")


def test_a_repository_that_lost_a_part_is_not_brought(server: Hub) -> None:
    del server.files["transformer/config.json"]
    with pytest.raises(RequestError, match=r"has no transformer/config\.json"):
        hub.prepare("tiny")


@pytest.mark.parametrize("page", [b"<html>Welcome to the hotel</html>", b"[]", b'{"id": "someone/tiny"}'])
def test_something_else_in_the_hubs_place_is_told(server: Hub, page: bytes) -> None:
    server.page = page
    with pytest.raises(RequestError, match="is not the model hub"):
        hub.prepare("tiny")


@pytest.mark.parametrize("path", ["transformer/../../../escaped.json", "transformer/..\\..\\escaped.json"])
def test_a_list_that_points_outside_is_refused(server: Hub, tmp_path: Path, path: str) -> None:
    server.files[path] = b"{}"
    with pytest.raises(RequestError, match="is not the model hub"):
        hub.prepare("tiny")
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_full_disk_is_told_before_the_first_byte(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(RequestError, match=r"tiny needs 65 MiB .* has 1 MiB; free some") as refused:
        hub.prepare("tiny")
    assert refused.value.machine
    assert not server.asked_for(SHARD)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' always full device")
def test_a_disk_that_fills_up_in_the_middle_is_told(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "open_own", lambda *_: os.open("/dev/full", os.O_RDWR))
    with pytest.raises(RequestError, match="is full; what arrived is kept") as refused:
        pulled()
    assert refused.value.machine


@pytest.mark.skipif(os.name != "posix", reason="links need no right here, and there are pipes")
@pytest.mark.parametrize("kind", ["file", "lock", "pipe"])
def test_nothing_is_received_through_a_link_or_a_pipe(server: Hub, tmp_path: Path, kind: str) -> None:
    own = tmp_path / "diary.txt"
    own.write_text("not yours")
    partial = partial_file(tmp_path / "cache")
    lock = tmp_path / "cache" / ".locks" / "models--someone--tiny" / f"{partial.stem}.lock"
    for folder in (partial.parent, lock.parent):
        folder.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(partial)
    else:
        (partial if kind == "file" else lock).symlink_to(own)
    with pytest.raises(RequestError, match=r"link|ordinary|device"):
        pulled()
    assert own.read_text() == "not yours"
    assert not server.asked_for(SHARD)


def test_a_cache_that_cannot_be_written_is_named(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RequestError, match="cannot be written") as refused:
        pulled()
    assert refused.value.machine
    assert str(tmp_path) in str(refused.value)


def test_offline_a_complete_model_is_there_and_another_is_explained(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE forbids") as refused:
        hub.prepare("tiny")
    assert refused.value.machine
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder, _ = pulled()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pulled()[0] == folder


def test_without_a_network_a_complete_model_is_there_and_another_is_explained(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = pulled()
    use_hub(monkeypatch, "http://127.0.0.1:1", tmp_path / "cache")
    assert pulled()[0] == folder
    use_hub(monkeypatch, "http://127.0.0.1:1", tmp_path / "empty")
    with pytest.raises(RequestError, match=r"\(http://127\.0\.0\.1:1\) cannot be reached: .*HTTPS_PROXY") as refused:
        hub.prepare("tiny")
    assert refused.value.machine


def test_a_truncated_file_makes_a_copy_incomplete_and_comes_again(server: Hub) -> None:
    folder, _ = pulled()
    blob = (folder / SHARD).resolve()
    blob.write_bytes(FILES[SHARD][:1000])
    assert hub.found_in_cache("tiny") is None
    assert is_right(pulled()[0])


def test_where_there_are_no_links_files_lie_in_the_snapshot(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(1314, "a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    folder, _ = pulled()
    assert is_right(folder)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not list((folder.parent.parent / "blobs").iterdir()), "nothing is there twice"
    assert hub.prepare("tiny").download_bytes == 0
    assert hub.delete("tiny") == TOTAL


def test_delete_frees_everything(server: Hub, tmp_path: Path) -> None:
    assert hub.delete("tiny") == 0
    pulled()
    partial_file(tmp_path / "cache", b"of another commit").write_bytes(b"x" * 1000)
    assert hub.delete("tiny") == TOTAL + 1000
    assert hub.found_in_cache("tiny") is None
    assert not (tmp_path / "cache" / "models--someone--tiny").exists()


def test_delete_removes_what_a_cancelled_pull_left(server: Hub, tmp_path: Path) -> None:
    partial = partial_file(tmp_path / "cache")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 1000)
    assert hub.delete("tiny") == 1000
    assert not partial.parent.parent.exists()


def test_delete_leaves_what_another_program_brought(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download

    folder, _ = pulled()
    hf_hub_download(TINY.id, "whole.safetensors")
    monkeypatch.setattr(hub, "OTHERS_BYTES", 10_000)
    with pytest.raises(RequestError, match=r"also has whole\.safetensors \(49 KiB\).*hf cache rm model/someone/tiny"):
        hub.delete("tiny")
    assert (folder / "whole.safetensors").read_bytes() == FILES["whole.safetensors"]
    assert hub.found_in_cache("tiny") == folder


def test_several_repositories_come_by_part(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tuple(
        Repository(TINY.id, (pattern,), (needed,), part=part)
        for part, pattern, needed in (("a", "model_index.json", "model_index.json"), ("b", "transformer/*", SHARD))
    )
    monkeypatch.setitem(hub.SOURCES, "tiny", Source("tiny", parts, "", TOTAL))
    folders, reports = pulled()
    assert {*folders} == {"a", "b"}
    assert reports[-1].done_bytes == reports[-1].total_bytes == TOTAL
    assert hub.found_in_cache("tiny") == folders


@pytest.mark.parametrize(("check", "said"), [(check_clip, "the CLIP tokenizer"), (check_t5, "the T5 tokenizer")])
def test_tokenizers_are_checked_after_a_pull(
    server: Hub, monkeypatch: pytest.MonkeyPatch, check: Callable[[Path], None], said: str
) -> None:
    server.files["tokenizer/tokenizer.json"] = b'{"model": {"type": "WordLevel", "vocab": {}}}'
    checks = (("tokenizer", check),)
    repository = Repository(TINY.id, ("tokenizer/*",), ("tokenizer/tokenizer.json",), checks=checks)
    monkeypatch.setitem(hub.SOURCES, "tiny", Source("tiny", (repository,), "", 1))
    with pytest.raises(RequestError, match=said):
        pulled()


def test_an_unknown_name_comes_with_the_nearest_one() -> None:
    for ask in (hub.prepare, hub.found_in_cache, hub.delete):
        with pytest.raises(RequestError, match=r"did you mean 'flux\.1-schnell'\?") as refused:
            ask("FLUX.1-schnel")
        assert not refused.value.machine


def test_of_flux_the_diffusers_layout_comes_and_nothing_twice() -> None:
    shards = [f"transformer/diffusion_pytorch_model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    shards += [f"text_encoder_2/model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    wanted = [
        *"model_index.json scheduler/scheduler_config.json vae/config.json transformer/config.json".split(),
        *"tokenizer/vocab.json tokenizer/merges.txt tokenizer/special_tokens_map.json".split(),
        *"tokenizer_2/tokenizer.json tokenizer_2/spiece.model text_encoder/model.safetensors".split(),
        *"text_encoder/config.json text_encoder_2/config.json text_encoder_2/model.safetensors.index.json".split(),
        *"transformer/diffusion_pytorch_model.safetensors.index.json vae/diffusion_pytorch_model.safetensors".split(),
        *shards,
    ]
    unwanted = "flux1-dev.safetensors ae.safetensors README.md LICENSE.md dev_grid.jpg .gitattributes".split()
    unwanted += ["transformer/diffusion_pytorch_model.bin", "text_encoder_3/model.safetensors"]
    for name in ("flux.1-schnell", "flux.1-dev"):
        (repository,) = hub.SOURCES[name].repositories
        taken = [path for path in wanted + unwanted if any(fnmatchcase(path, each) for each in repository.files)]
        assert taken == wanted
        assert all(set(entry.split("|")) & set(wanted) for entry in repository.needed)
    assert hub.SOURCES["flux.1-dev"].approximate_bytes - hub.SOURCES["flux.1-schnell"].approximate_bytes == 20_459_520
    assert all(source.licence and source.name == name for name, source in hub.SOURCES.items())


def test_the_environment_decides_where_from_and_where_to(server: Hub, tmp_path: Path) -> None:
    code = """
import sys
from engine.library import hub
from engine.families.sources import Repository, Source
hub.SOURCES["tiny"] = Source("tiny", (Repository("someone/tiny", ("*.safetensors",), ("whole.safetensors",)),), "", 1)
assert "huggingface_hub" not in sys.modules
for report in hub.pull(hub.prepare("tiny")):
    pass
assert not {"torch", "transformers", "tokenizers"} & set(sys.modules)
print(report.done_bytes, hub.found_in_cache("tiny"))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.stderr == ""
    total = sum(len(data) for path, data in FILES.items() if path.endswith(".safetensors"))
    snapshot = tmp_path / "home" / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    assert ran.stdout.split() == [str(total), str(snapshot)]
