"""Models from the model hub: what is offered, what of it is here already, and bringing the rest.

Files lie in the hub library's own cache, so that a model which diffusers or another program brought is not brought
again, and the other way round. Lists, tokens and proxies are the library's; `engine.library.transfer` says why the
bytes are not. The library is imported when it is needed: it takes half a second.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from engine.families.all import sources
from engine.families.sources import HUB, Repository, Source
from engine.files import PUBLIC, write_whole
from engine.folders import APP, shown_path
from engine.library.transfer import (
    HubFile,
    Listing,
    PullProgress,
    Transfer,
    connection_errors,
    length,
    present_bytes,
    reason,
)
from engine.request import RequestError
from engine.text import size
from engine.untrusted import MAX_INDEX_BYTES, is_plain_name, read_file, read_object
from engine.untrusted.headers import read_header

__all__ = ["SOURCES", "Prepared", "PullProgress", "Source", "delete", "found_in_cache", "prepare", "pull"]

SOURCES = sources()
TICK_SECONDS = 0.2  # between two reports
MAX_REFERENCE_BYTES = 1024
OTHERS_BYTES = 16 * 2**20  # a larger file that a source does not bring is somebody else's


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a pull will do, for the person to see first."""

    source: Source
    listings: tuple[Listing, ...]
    folder: Path  # the hub library's cache
    here_bytes: int  # of the model, partial files included
    download_bytes: int

    @property
    def licence(self) -> str:
        return self.source.licence


def prepare(name: str) -> Prepared:
    """Ask the hub what there is to bring, and look what is here; brings nothing.

    What is complete in the cache is asked for no more: it works offline, and without access to a gated repository.
    Raises `RequestError`: no such source, the hub cannot be reached or refuses, the disk has too little room.
    """
    source, cache = _source(name), _cache()
    listings = tuple(_listing(source, repository, cache) for repository in source.repositories)
    here = sum(_complete_bytes(listing) for listing in listings)
    wanted = sum(file.size for listing in listings for file in listing.files)
    present = sum(present_bytes(listing, file) for listing in listings for file in listing.files)
    if wanted > present:
        _check_room(name, cache, wanted - present)
    return Prepared(source, listings, cache, here + present, wanted - present)


def pull(
    prepared: Prepared, *, check: Callable[[], None] = lambda: None
) -> Generator[PullProgress, None, Path | dict[str, Path]]:
    """Bring what is missing; reports progress at once and then about five times a second.

    Returns the model's folder, by part where the source has several repositories. What `check` raises, and closing the
    generator, stop the download; what arrived stays for the next pull. Raises `RequestError` with what to do.
    """
    here = sum(_complete_bytes(listing) for listing in prepared.listings)
    transfer = Transfer(prepared.listings, here, partial(_explained, prepared.source, prepared.folder))
    try:
        yield transfer.progress()
        transfer.start()
        while not transfer.finished.wait(TICK_SECONDS):
            check()
            yield transfer.progress()
        transfer.raise_error()
    finally:
        transfer.leave()
    for listing in prepared.listings:
        if listing.files:
            _name_commit(listing)
        for tokenizer, check_tokenizer in listing.repository.checks:
            check_tokenizer(listing.snapshot / tokenizer)
    yield transfer.progress()
    return _by_part({listing.repository: listing.snapshot for listing in prepared.listings})


def found_in_cache(name: str) -> Path | dict[str, Path] | None:
    """A complete copy in the hub's cache, whoever brought it; by part where the source has several repositories."""
    cache = _cache()
    found = {repository: _complete_snapshot(repository, cache) for repository in _source(name).repositories}
    complete = {repository: snapshot for repository, snapshot in found.items() if snapshot}
    return _by_part(complete) if len(complete) == len(found) else None


def delete(name: str) -> int:
    """Remove a source from the hub's cache, partial files included; the bytes that this freed.

    Raises `RequestError` where other programs keep weights in the same place, or a file cannot be removed.
    """
    source, cache = _source(name), _cache()
    places = {repository: cache / _local(repository) for repository in source.repositories}
    places = {repository: place for repository, place in places.items() if place.is_dir()}
    if not places:
        return 0
    for repository, place in places.items():
        _check_ours(repository, place)

    _quiet_library()
    from huggingface_hub import scan_cache_dir

    scan = scan_cache_dir(cache)
    names = {place.name for place in places.values()}
    revisions = [revision for repo in scan.repos if repo.repo_path.name in names for revision in repo.revisions]
    strategy = scan.delete_revisions(*(revision.commit_hash for revision in revisions))
    freed = int(strategy.expected_freed_size)
    freed += sum(length(path) or 0 for place in places.values() for path in place.glob("blobs/*.incomplete"))
    strategy.execute()
    try:
        for place in places.values():  # what the library's scan passes over: partial files without a snapshot
            if place.exists():
                shutil.rmtree(place)
    except OSError as error:
        raise RequestError(
            "model", f"{shown_path(error.filename or cache)} cannot be deleted: {error.strerror}.", machine=True
        ) from None
    return freed


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    near = get_close_matches(name.lower(), SOURCES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "known names:"
    raise RequestError("model", f"{name[:80]!r} cannot be downloaded; {hint} ({', '.join(SOURCES)})")


def _by_part(snapshots: dict[Repository, Path]) -> Path | dict[str, Path]:
    if len(snapshots) == 1:
        return next(iter(snapshots.values()))
    return {repository.part: snapshot for repository, snapshot in snapshots.items()}


# The cache


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _local(repository: Repository) -> str:
    return "models--" + repository.id.replace("/", "--")


def _matches(repository: Repository, path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in repository.files)


def _complete_bytes(listing: Listing) -> int:
    """The size of what needs no download."""
    if listing.files:
        return 0
    paths = (path for path in listing.snapshot.rglob("*") if path.is_file())
    brought = (path for path in paths if _matches(listing.repository, path.relative_to(listing.snapshot).as_posix()))
    return sum(length(path) or 0 for path in brought)


def _complete_snapshot(repository: Repository, cache: Path) -> Path | None:
    """A snapshot that has every file which is needed, in its full length: the current one first."""
    place = cache / _local(repository)
    current = ""
    with suppress(OSError, ValueError):
        current = read_file(place / "refs" / "main", MAX_REFERENCE_BYTES).decode().strip()
    for snapshot in sorted(place.glob("snapshots/*"), key=lambda path: (path.name != current, path.name)):
        if all(any(_is_whole(snapshot / path) for path in entry.split("|")) for entry in repository.needed):
            return snapshot
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file is there, with as many bytes as its header says, and with the shards that it names."""
    try:
        if path.name.endswith(".safetensors.index.json"):
            shards = set(read_object(path, MAX_INDEX_BYTES)["weight_map"].values())
            return bool(shards) and all(is_plain_name(name) and _is_whole(path.parent / name) for name in shards)
        if path.suffix == ".safetensors":
            read_header(path)
        return path.is_file()
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):  # a RequestError is a ValueError
        return False


def _name_commit(listing: Listing) -> None:
    """Say which commit is `main`, as others look for it."""
    reference = listing.snapshot.parent.parent / "refs" / "main"
    try:
        write_whole(reference, listing.snapshot.name.encode(), mode=PUBLIC)  # the cache is other programs', too
    except OSError as error:
        raise _disk_error(error, reference) from None


def _check_room(name: str, cache: Path, wanted: int) -> None:
    """There must be room for the rest and some more: a full disk is bad for everything else on it."""
    wanted += min(2**30, 64 * 2**20 + wanted // 20)
    place = next((place for place in (cache, *cache.parents) if place.exists()), cache)
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        return
    if free < wanted:
        raise RequestError(
            "model",
            f"{name} needs {size(wanted)} of room for what is still to come, the disk of {shown_path(cache)} has "
            f"{size(free)}; free some, or let HF_HOME name a folder on another disk.",
            machine=True,
        )


def _check_ours(repository: Repository, place: Path) -> None:
    for snapshot in place.glob("snapshots/*"):
        for path in snapshot.rglob("*"):
            name, count = path.relative_to(snapshot).as_posix(), length(path) or 0
            if count > OTHERS_BYTES and path.is_file() and not _matches(repository, name):
                raise RequestError(
                    "model",
                    f"{shown_path(place)} also has {name} ({size(count)}), which another program brought; if all of it "
                    f"may go: hf cache rm model/{repository.id}",
                )


# The hub


def _quiet_library() -> None:
    """Its warnings would go to stderr; what matters of them is raised."""
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity(logging.ERROR)


def _listing(source: Source, repository: Repository, cache: Path) -> Listing:
    """What is complete here, or what the hub has of a repository now; and whether it would give it to us."""
    if snapshot := _complete_snapshot(repository, cache):
        return Listing(repository, snapshot)
    _quiet_library()
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url

    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        info = HfApi(library_name=APP).model_info(repository.id, files_metadata=True, timeout=timeout)
        files = tuple(_listed(sibling) for sibling in info.siblings or () if _matches(repository, sibling.rfilename))
        if info.sha is None or not re.fullmatch("[0-9a-f]{40}", info.sha):
            raise ValueError(info.sha)
        if info.gated and files:  # the list is for everybody, the files are not
            url = hf_hub_url(repository.id, files[0].path, revision=info.sha, endpoint=constants.ENDPOINT)
            get_hf_file_metadata(url, timeout=timeout, library_name=APP)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RequestError(
            "model",
            f"what answers at {constants.ENDPOINT} is not the model hub: the login page of a network, or a wrong "
            "HF_ENDPOINT?",
            machine=True,
        ) from None
    except Exception as error:
        raise _explained(source, cache, error, repository) from None
    names = {file.path for file in files}
    missing = [entry for entry in repository.needed if names.isdisjoint(entry.split("|"))]
    if missing:
        raise RequestError(
            "model", f"{repository.page} has no {missing[0].split('|')[0]}: it is not what it was.", machine=True
        )
    return Listing(repository, cache / _local(repository) / "snapshots" / info.sha, files)


def _listed(sibling: Any) -> HubFile:
    """Raises ValueError for what must not become a path or a name on the disk."""
    path, etag = sibling.rfilename, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    parts = PurePosixPath(path).parts
    if path.startswith("/") or any(part == ".." or set(part) & set("\\:\0") for part in parts):
        raise ValueError(path)
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) or type(sibling.size) is not int or sibling.size < 0:
        raise ValueError(etag)
    return HubFile(path, sibling.size, etag)


def _explained(source: Source, cache: Path, error: Exception, repository: Repository) -> Exception:
    """What a person can do about an error of the hub, of the connection or of the disk; other errors as they are."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, RequestError):
        return error
    if isinstance(error, HfHubHTTPError):
        sentence = _refusal(source, repository, error)
    elif isinstance(error, OfflineModeIsEnabled):
        sentence = (
            f"{source.name} is not complete in {shown_path(cache)}, and HF_HUB_OFFLINE forbids to bring the rest; "
            "unset it and pull again."
        )
    elif isinstance(error, connection_errors()):
        sentence = (
            f"the model hub ({constants.ENDPOINT}) cannot be reached: {reason(error)}; look at the network, and at "
            f"HTTPS_PROXY if there is a proxy, or copy {shown_path(cache / _local(repository))} from a computer that "
            "has it."
        )
    elif isinstance(error, OSError):
        return _disk_error(error, cache)
    else:
        return error
    return RequestError("model", sentence, machine=True)


def _refusal(source: Source, repository: Repository, error: Any) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status, token = error.response.status_code, get_token()
    tokens = f"{HUB}/settings/tokens"
    gated = isinstance(error, GatedRepoError)
    if status == 401 and token and not gated:
        which = "in HF_TOKEN" if os.environ.get("HF_TOKEN") else "which 'hf auth login' saved"
        return (
            f"the hub does not know the token {which}; make a read token at {tokens}, then log in with it: "
            "hf auth login, or HF_TOKEN=..."
        )
    if gated or (status in (401, 403) and source.gated):
        beginning = f"{repository.id} is for accounts that accepted its licence: open {repository.page} while logged in"
        if token:
            return (
                f"{beginning} with the account of your token, accept the licence, and pull again; a fine-grained token "
                f"also needs the permission to read gated repositories ({tokens})."
            )
        return (
            f"{beginning}, accept the licence, make a read token at {tokens}, then log in with it: hf auth login, or "
            "HF_TOKEN=..."
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return f"the hub has no {repository.page}, or does not show it to you."
    if status == 429 or status >= 500:
        return f"the hub is overloaded or out of order (HTTP {status}); try again later."
    return f"the hub refuses {repository.page} (HTTP {status}): {reason(error)}"


def _disk_error(error: OSError, place: Path) -> RequestError:
    where = shown_path(error.filename or place)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        sentence = f"the disk of {where} is full; what arrived is kept: free some room and pull again."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        sentence = f"{where} cannot be written: {error.strerror}; let HF_HOME name a folder of yours."
    else:
        sentence = f"{where} cannot be written: {error.strerror or reason(error)}."
    return RequestError("model", sentence, machine=True)
