"""The decoder's memory by itself, workspaces of convolutions included."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from typing import Any

import torch

from engine import Request
from engine.memory.driver import process_bytes
from engine.memory.enforce import card_is_full
from engine.memory.placement import Placement
from engine.precision import BF16
from engine.sampling.decode import decode, smaller_tiles
from tests.bench.gpu.card import CardGauge, peak_bytes, restart_peaks, synchronize
from tests.bench.gpu.pictures import OUT_OF_MEMORY, nothing, opened
from tests.bench.models import Sampler


def decode_peaks(spec: dict[str, Any]) -> dict[str, Any]:
    """The decoder's peaks at several sizes, whole and in bands, against prediction and allowance."""
    device = spec["device"]
    gauge = CardGauge(device)
    rows: list[dict[str, Any]] = []
    with opened(spec, "auto") as engine, ExitStack() as stack:
        runtime = engine.runtime()
        target, planner = runtime.target, runtime.planner
        units = runtime.components.component("vae", BF16).units
        # The CPU computes with host copies where they lie; a card gets its own.
        here = Placement(kept=frozenset(unit.name for unit in units), in_place=not target.is_card)
        loan = stack.enter_context(runtime.components.lend("vae", BF16, here, nothing))
        for _ in loan.load():
            pass
        resident = sum(unit.nbytes for unit in units)
        model = engine.source
        card = stack.enter_context(Sampler(gauge))
        for side in spec["sides"]:
            size = model.size(Request("any", width=side, height=side).resolved(model.defaults))
            tiles = smaller_tiles(0, size)
            for tile in [0, *tiles[:1]]:
                predicted = planner.needs.activations.decode(BF16, size, tile)
                allowance = planner.needs.allowance("decode", predicted, loan.dtype)
                row: dict[str, Any] = {"side": side, "tile": tile, "activation_bytes": predicted}
                row["predicted"] = resident + predicted + allowance
                tokens = torch.randn(size.shape).to(device)
                gc.collect()
                if target.is_card:
                    torch.cuda.empty_cache()
                restart_peaks(device)
                card.restart()
                start = time.perf_counter()
                try:
                    given = (model.family.networks, loan.module, tokens, size, nothing)
                    decode(*given, tile=tile, device=loan.device, dtype=loan.dtype)
                except Exception as error:
                    if not card_is_full(error):
                        raise
                    row["error"] = OUT_OF_MEMORY
                synchronize(device)
                row["seconds"] = time.perf_counter() - start
                row["measured"] = peak_bytes(device, card, target.context_bytes)
                if target.is_card:
                    row["allocated"] = torch.cuda.max_memory_allocated(device) - resident  # scratch included
                    row["reserved"] = torch.cuda.max_memory_reserved(device)
                rows.append(row)
        used = process_bytes(loan.device) if target.is_card else None
        return {"rows": rows, "context_bytes": target.context_bytes, "process_bytes": used, "gauge": gauge.source}
