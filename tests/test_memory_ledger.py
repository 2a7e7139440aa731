"""The ledger counts what is alive, as the allocator itself does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from engine.memory.ledger import counted
from tests.peaks import peak_of

MIB = 2**20


def test_bytes_count_from_birth_to_death_and_views_count_once() -> None:
    with counted("cpu") as ledger:
        first = torch.ones(MIB, dtype=torch.uint8)
        assert ledger.live_bytes == MIB
        view = first[: MIB // 2].view(2, -1)
        assert ledger.live_bytes == MIB
        second = first.clone()
        assert ledger.live_bytes == 2 * MIB
        del first, second
        assert ledger.live_bytes == MIB, "the view keeps its storage"
        del view
        assert ledger.live_bytes == 0
        assert ledger.peak_bytes == 2 * MIB
        ledger.restart()
        assert ledger.peak_bytes == 0


def test_weights_that_are_ignored_do_not_count() -> None:
    layer = nn.Linear(256, 256, bias=False)
    x = torch.ones(1, 256)
    assert peak_of("cpu", layer.parameters(), lambda: layer(x).detach()) == 256 * 4


def test_a_full_card_refuses() -> None:
    with counted("cpu", limit_bytes=MIB), pytest.raises(torch.OutOfMemoryError):
        torch.zeros(2 * MIB, dtype=torch.uint8)


def test_the_ledger_agrees_with_the_allocator() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.LayerNorm(2048), nn.Linear(2048, 512)).eval()
    x = torch.randn(256, 512)

    def run() -> None:
        with torch.no_grad():
            F.softmax(net(x), dim=-1).sum(dim=0)

    run()  # what is allocated once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiler:
        run()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert peak_of("cpu", net.parameters(), run) == pytest.approx(peak, rel=0.01)


def test_attention_on_meta_takes_a_fused_kernels_memory() -> None:
    query = torch.empty(1, 4, 1024, 64, device="meta", dtype=torch.bfloat16)
    output, log_sum_exp = 4 * 1024 * 64 * 2, 4 * 1024 * 4

    def positional() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, query, query)

    def by_name() -> torch.Tensor:
        return F.scaled_dot_product_attention(query=query, key=query, value=query)

    for run in (positional, by_name):
        assert peak_of("meta", [query], run) == output + log_sum_exp
        assert run().shape == query.shape
