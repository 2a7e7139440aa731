"""What of a step are products and attention, each timed alone: the rest of it is small kernels and the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from engine.quantization import fp8, int8
from engine.quantization.int8 import KERNELS
from tests.bench.gpu.card import milliseconds
from tests.bench.gpu.pictures import opened, request_of, step_seconds

Shape = tuple[int, int, int]  # tokens, in, out


def shapes(config: Mapping[str, Any], words: int, side: int) -> Counter[Shape]:
    """The products of one step, and how many there are of each."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    image = (side // 16) ** 2
    found: Counter[Shape] = Counter()
    for tokens in (image, words):
        for shape, count in (((width, width), 4), ((width, 4 * width), 1), ((4 * width, width), 1)):
            found[tokens, *shape] += config["num_layers"] * count
    for shape, count in (((width, width), 3), ((width, 4 * width), 1), ((5 * width, width), 1)):
        found[image + words, *shape] += config["num_single_layers"] * count
    return found


def products(spec: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step's products in bf16, FP8 and int8, of rounding for them, and of its attention."""
    device, config, side, words = spec["device"], spec["config"], spec["side"], spec["words"]
    place = torch.device(device)
    heads, dim = config["num_attention_heads"], config["attention_head_dim"]
    fp8_kernel = fp8.probe_kernel(place, torch.bfloat16)
    int8_kernel = int8.choose(device, heads * dim).kernel
    rows: list[dict[str, Any]] = []
    totals = dict.fromkeys(("bf16", "fp8", "fp8_rounding", "int8", "int8_rounding"), 0.0)
    with torch.no_grad():
        for (m, k, n), count in shapes(config, words, side).items():
            layer, x = fp8._probe_layer(k, n, m, place)
            layer.kernel = fp8_kernel
            dense = fp8.dequantize(layer.quantized, layer.scale, torch.bfloat16)
            row = {"bf16": milliseconds(device, partial(F.linear, x, dense, layer.bias))}
            if fp8_kernel == "scaled_mm":
                row["fp8_rounding"] = milliseconds(device, partial(fp8.rounded, x))
            row["fp8"] = milliseconds(device, partial(layer, x)) - row.get("fp8_rounding", 0.0)
            whole, kernel = int8._probe_layer(k, n, m, place)[0], KERNELS[int8_kernel]
            tokens = kernel.quantize(x[None])
            row["int8_rounding"] = milliseconds(device, partial(kernel.quantize, x[None]))
            row["int8"] = milliseconds(device, partial(kernel.linear, tokens, whole))
            rows.append({"tokens": m, "in": k, "out": n, "count": count, **row})
            for name, value in row.items():
                totals[name] += count * value
        size = 1, heads, (side // 16) ** 2 + words, dim
        query = torch.randn(size, device=place, dtype=torch.bfloat16)
        attention = milliseconds(device, lambda: F.scaled_dot_product_attention(query, query, query))
    blocks = config["num_layers"] + config["num_single_layers"]
    return {
        "kernels": {"fp8": fp8_kernel, "int8": int8_kernel},
        "rows": rows,
        "milliseconds": totals,
        "attention_milliseconds": blocks * attention,
    }


def step(spec: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step with everything resident."""
    with opened(spec, "auto") as engine:
        streamed = engine.plan(request_of(spec)).phases[1].streamed_bytes_per_step
        return {"milliseconds": 1000 * step_seconds(engine, request_of(spec)), "streamed_bytes_per_step": streamed}
