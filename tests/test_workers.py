"""A few threads that share work on weights."""

from __future__ import annotations

import threading

import pytest
import torch

from engine.weights.workers import start_workers, workers


def weighing() -> int:
    return sum(thread.name.startswith("weights") for thread in threading.enumerate())


def test_each_computes_alone_and_who_started_them_as_before() -> None:
    usual = torch.get_num_threads()
    with workers(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == usual


def test_a_system_without_another_thread_is_told_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    before, usual, start = weighing(), torch.get_num_threads(), threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if weighing() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="new thread"):
        start_workers(2)
    assert weighing() == before
    assert torch.get_num_threads() == usual
