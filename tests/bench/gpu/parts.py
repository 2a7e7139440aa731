"""The parts of the bench, the most important first: what each measures, and how it is told."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from engine.text import size
from tests.bench import host
from tests.bench.gpu.bench import Bench

PRECISIONS = ("int8", "fp8")
DECODED_SIDES = (512, 768, 1024, 1280, 1536, 2048)
WORDS = 512


def memory(bench: Bench) -> None:
    """Targets: nothing is refused or tried again, peak / budget <= 1.00, each phase within 5 % of its prediction."""
    runs = [(precision, cap, bench.side) for precision in PRECISIONS for cap in bench.caps(precision)]
    runs.sort(key=lambda run: -_order(run[1]))
    if not bench.rehearse:
        runs += [(precision, runs[0][1], 1536) for precision in PRECISIONS]
    for precision, cap, side in runs:
        found = bench.work("paint", model=bench.model(precision), vram=cap, side=side, steps=3, precision=precision)
        bench.painted.append(found)
        if chosen := found.get("chosen_kernel", {}).get(precision):
            bench.kernel[precision] = chosen
        bench.tell("memory", f"{precision} {side}x{side} in {cap}: {budget_text(found)}", found)


def _order(cap: str) -> float:
    return float(cap.removesuffix("GiB").removesuffix("MiB")) if cap != "auto" else 1e9


def budget_text(found: dict[str, Any]) -> str:
    """Out of memory, peak / budget, each phase against its prediction, seconds a step; adds them to the record."""
    if "predicted" not in found:
        return ""
    measured = {phase: peak for phase, peak in found["measured"].items() if peak}
    texts = [f"{found['out_of_memory']} out of memory, {found['retries']} retries"]
    missed = bool(found["out_of_memory"] or found["retries"])
    if measured:
        peak = max(measured.values())
        found["peak_of_budget"] = peak / found["budget_bytes"]
        found["phase_errors"] = {phase: found["predicted"][phase] / peak - 1 for phase, peak in measured.items()}
        phases = ", ".join(f"{phase} {error:+.1%}" for phase, error in found["phase_errors"].items())
        missed |= found["peak_of_budget"] > 1 or max(map(abs, found["phase_errors"].values())) > 0.05
        texts.append(f"peak {size(peak)} = {found['peak_of_budget']:.3f} of the budget, predictions off by {phases}")
    if found["steps_seconds"]:
        texts.append(f"{found['steps_seconds'][-1]:.3f} s a step")
    texts.append(f"{size(found['streamed_bytes_per_step'])} streamed a step")
    return ", ".join(texts) + (" MISSED " if missed and measured else " ")


def bits(bench: Bench) -> None:
    """Target: the same latents at every budget."""
    for precision in PRECISIONS:
        runs = [
            found
            for found in bench.painted
            if (found["precision"], found["side"]) == (precision, bench.side) and found.get("latents")
        ]
        digests = sorted({found["latents"] for found in runs})
        record: dict[str, Any] = {"precision": precision, "caps": [run["vram"] for run in runs], "digests": digests}
        if len(runs) < 2:
            record["error"] = "fewer than two budgets gave latents"
        elif len(digests) > 1:
            record["error"] = "the latents are DIFFERENT"
        same = "are the same " if len(digests) == 1 else ""
        bench.tell("bits", f"{precision}: latents of {len(runs)} budgets {same}", record)


def step(bench: Bench) -> None:
    """A step beside the sum of its products and its attention; the rest is small kernels and the host."""
    config = bench.configs["transformer"]
    words = 40 if bench.rehearse else WORDS
    found = bench.work("products", config=config, side=bench.side, words=words)
    if "rows" not in found:
        bench.tell("step", "products: ", found)
        return
    for row in found["rows"]:
        times = ", ".join(
            f"{name} {row[name]:.3f} ms"
            for name in ("bf16", "fp8", "fp8_rounding", "int8", "int8_rounding")
            if name in row
        )
        bench.tell("step", f"{row['count']} x [{row['tokens']}, {row['in']}] -> {row['out']}: {times} ", row)
    total, attention = found["milliseconds"], found["attention_milliseconds"]
    for precision in PRECISIONS:
        spec: dict[str, Any] = {"side": bench.side, "steps": 6, "precision": precision, "vram": "auto"}
        ours = bench.work("step", model=bench.model(precision), **spec)
        text = f"{precision} ({found['kernels'][precision]}): "
        if "milliseconds" in ours:
            sums = total[precision] + attention
            rest = ours["milliseconds"] - sums - total[f"{precision}_rounding"]
            ours |= {"products": total[precision], "rounding": total[f"{precision}_rounding"], "attention": attention}
            ours["step_of_sum"] = ours["milliseconds"] / sums
            text += (
                f"a step {ours['milliseconds']:.0f} ms, products {total[precision]:.0f}, rounding "
                f"{total[f'{precision}_rounding']:.0f}, attention {attention:.0f}, the rest {rest:.0f}; "
                f"{ours['step_of_sum']:.2f} of products and attention "
            )
        bench.tell("step", text, ours)


def host_part(bench: Bench) -> None:
    """The host's side of a step, beside diffusers'; no card takes part."""
    answer = bench.work("host", steps=1 if bench.rehearse else 10)
    for found in answer.pop("records", []):
        bench.tell("host", f"{host.told(found)} ", found)
    if "error" in answer:
        bench.tell("host", "", answer)


def next_picture(bench: Bench) -> None:
    """Target: what a new prompt costs besides its steps is not loading from the disk."""
    for precision, cap in (
        (PRECISIONS[0], bench.caps(PRECISIONS[0])[0]),
        (PRECISIONS[1], bench.caps(PRECISIONS[1])[1]),
    ):
        spec: dict[str, Any] = {"vram": cap, "side": bench.side, "steps": 4, "precision": precision}
        found = bench.work("next_picture", model=bench.model(precision), **spec)
        text = f"{precision} in {cap}: "
        if "second" in found:
            first, second = found["first"], found["second"]
            phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in second["seconds_by_phase"].items())
            text += (
                f"first picture {first['seconds']:.1f} s, second picture, new prompt {second['seconds']:.1f} s, "
                f"{second['seconds'] - second['steps_seconds']:.1f} s of it no steps ({phases}), "
                f"{size(second['disk_bytes'])} from the disk, {size(second['moved_bytes'])} to the card "
            )
        bench.tell("next", text, found)


def overlap(bench: Bench) -> None:
    """Target: 0.95 of the smaller of copying and computing is hidden."""
    for cap in bench.caps("fp8")[1:3]:
        spec: dict[str, Any] = {"vram": cap, "side": bench.side, "steps": 6, "precision": "fp8"}
        found = bench.work("overlap", model=bench.model("fp8"), **spec)
        text = f"fp8 in {cap}: "
        if "hidden_share" in found:
            verdict = "" if found["hidden_share"] >= 0.95 else "MISSED "
            text += (
                f"compute {found['compute']:.3f} s, copies {found['copy']:.3f} s "
                f"({found['bytes_per_second'] / 1e9:.1f} GB/s), both {found['streamed']:.3f} s: "
                f"{found['hidden_share']:.3f} of the smaller is hidden {verdict}"
            )
        bench.tell("overlap", text, found)


def decode(bench: Bench) -> None:
    """Target: measured <= predicted, so that the allowance is enough, and not much more."""
    sides = (128,) if bench.rehearse else DECODED_SIDES
    found = bench.work("decode", model=bench.model("fp8"), sides=sides, vram="auto")
    rows = found.pop("rows", [])
    context = f"context {size(found.get('context_bytes', 0))}, by the driver {found.get('gauge')} "
    bench.tell("decode", context, found)
    for row in rows:
        side, tile = row["side"], row["tile"]
        text = f"{side}x{side} {f'tile {tile}' if tile else 'whole'}: predicted {size(row['predicted'])}, "
        if row["measured"]:
            row["of_predicted"] = row["measured"] / row["predicted"]
            text += f"measured {size(row['measured'])} = {row['of_predicted']:.3f} of it, "
        if "allocated" in row:
            text += f"{row['allocated'] / row['activation_bytes']:.2f} of the activations allocated, "
        bench.tell("decode", f"{text}{row['seconds']:.2f} s ", row)


def transfer(bench: Bench) -> None:
    """Target: 0.90 of plain reading, from the disk and from the page cache."""
    for precision in PRECISIONS:
        spec: dict[str, Any] = {"vram": "auto", "side": bench.side, "steps": 2, "precision": precision}
        found = bench.work("transfer", model=bench.model(precision), **spec)
        texts = [
            f"{source} {found[f'{source}_load'] / 1e9:.2f} of {found[f'{source}_read'] / 1e9:.2f} GB/s = "
            f"{found[f'{source}_ratio']:.2f}{'' if found[f'{source}_ratio'] >= 0.9 else ' MISSED'}"
            for source in ("cold", "warm")
            if f"{source}_ratio" in found
        ]
        bench.tell("transfer", f"{precision}, file to card beside plain reading: {', '.join(texts)} ", found)


def rivals(bench: Bench) -> None:
    """The same bf16 weights: all on the card, and in 12 GiB, the engine's ring against diffusers' groups."""
    spec: dict[str, Any] = {
        "model": bench.model("bf16"),
        "side": bench.side,
        "steps": 3 if bench.rehearse else 5,
        "precision": "bf16",
    }
    resident = bench.work("paint", vram="auto", **spec)
    if resident.get("streamed_bytes_per_step"):
        bench.tell("rivals", "the card has no room for the transformer in bf16 ", resident)
    else:
        theirs = bench.work("diffusers", way="resident", fresh=True, **spec)
        _compare(bench, "bf16, everything on the card, engine and diffusers", resident, theirs)
    cap = bench.caps("bf16")[0 if not bench.rehearse else -1]
    ours = bench.work("paint", vram=cap, fresh=True, **spec)
    theirs = bench.work("diffusers", vram=cap, way="group", fresh=True, **spec)
    if "error" in theirs:  # pinning all of the weights may have been too much for this machine's RAM
        bench.tell("rivals", f"diffusers' groups in {cap}: ", theirs)
        theirs = bench.work("diffusers", vram=cap, way="group, pinned as it goes", fresh=True, **spec)
    _compare(bench, f"bf16 in {cap}, engine and diffusers' groups with streams", ours, theirs)


def _compare(bench: Bench, what: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    sides = [statistics.median(found["steps_seconds"][1:]) for found in (ours, theirs) if _timed(found)]
    record: dict[str, Any] = {"ours": ours, "theirs": theirs}
    text = f"{what}: "
    if len(sides) == 2:
        record["ratio"] = sides[0] / sides[1]
        text += f"{sides[0]:.3f} and {sides[1]:.3f} s a step, ratio {record['ratio']:.3f} "
    else:
        record["error"] = ours.get("error") or theirs.get("error") or "no steps were timed"
    bench.tell("rivals", text, record)


def _timed(found: dict[str, Any]) -> bool:
    return "error" not in found and len(found.get("steps_seconds", ())) > 1


class Part(NamedTuple):
    """What is measured, and what it may take on a fast card with 16 cores and a disk of 1.3 GB/s."""

    run: Callable[[Bench], None]
    seconds: int


PARTS = {  # the most important first
    "memory": Part(memory, 165),  # 25 of them to write the weights
    "bits": Part(bits, 1),
    "step": Part(step, 40),
    "next": Part(next_picture, 35),
    "overlap": Part(overlap, 40),
    "decode": Part(decode, 25),
    "transfer": Part(transfer, 40),
    "host": Part(host_part, 15),
    "rivals": Part(rivals, 115),  # 20 of them to write the weights
}


def chosen(names: list[str], seconds: float) -> tuple[list[str], list[str]]:
    """The parts that fit, in their order, and those that are left out: from the first that does not fit on."""
    taken: list[str] = []
    for name in [name for name in PARTS if name in names]:
        if sum(PARTS[each].seconds for each in [*taken, name]) > seconds:
            break
        taken.append(name)
    return taken, [name for name in PARTS if name in names and name not in taken]
