"""The bench for a card, rehearsed on the CPU: what it measures, what it leaves out, and what a fault costs it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.bench.gpu.__main__ import main
from tests.bench.gpu.bench import Bench, OutOfTimeError, Worker
from tests.bench.gpu.parts import PARTS, chosen


@pytest.mark.usefixtures("own_folders")
def test_memory_bits_and_transfer_are_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parts, kept = ["memory", "bits", "transfer"], tmp_path / "kept"
    options = ["--minutes", "30", "--output", str(tmp_path), "--keep", str(kept)]
    assert main(["--rehearse", *options, *parts]) == 0
    records = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text("utf-8").splitlines()]
    told = {part: [record for record in records if record["part"] == part] for part in parts}
    painted = [record for record in told["memory"] if "predicted" in record]
    assert {record["precision"] for record in painted} == {"int8", "fp8"}
    assert any(record["streamed_bytes_per_step"] for record in painted)
    assert all(record["out_of_memory"] == record["retries"] == 0 for record in painted)
    assert [len(record["digests"]) for record in told["bits"][:2]] == [1, 1]
    assert all(record["warm_load"] > 0 for record in told["transfer"][:2])
    assert (kept / "cache").is_dir()
    assert not list((kept / "cache" / "weights").rglob("*.safetensors"))  # nothing was converted


def test_what_fits_is_taken_from_the_most_important_on() -> None:
    everything, whole = list(PARTS), sum(part.seconds for part in PARTS.values())
    assert whole <= 8 * 60
    assert chosen(everything, whole) == (everything, [])
    taken, left_out = chosen(everything, whole - 1)
    assert (taken, left_out) == (everything[:-1], everything[-1:])
    assert chosen(["rivals", "memory"], PARTS["memory"].seconds) == (["memory"], ["rivals"])
    assert chosen(everything, 1) == ([], everything)


def test_a_measurement_that_hangs_or_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    bench = Bench("cpu", tmp_path, tmp_path, rehearse=True, deadline=time.monotonic() + 120)
    try:
        assert "KeyError" in bench.work("no such thing")["error"]
        assert bench.work("machine")["cores"]
        assert bench.worker is not None
        assert bench.worker.ask("host", {"steps": 10**9}, 0.5) == {"error": "no answer in 0 seconds"}
        assert bench.work("machine")["cores"]
        bench.deadline = time.monotonic()
        with pytest.raises(OutOfTimeError, match="no time was left for paint 8GiB"):
            bench.work("paint", vram="8GiB")
    finally:
        bench.end_worker()


def test_a_worker_that_is_gone_is_said(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "log")
    worker.end()
    assert "the process ended with" in worker.ask("machine", {"device": "cpu"}, 10)["error"]
