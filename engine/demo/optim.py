"""What the training stages share: the Muon optimizer, weight averaging, two-process data parallelism."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


def orthogonalize(gradient: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix to `gradient` [m, n], by the quintic Newton-Schulz iteration.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.T if tall else x).to(gradient.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized, for weight matrices and convolutions (seen as [out, in * kh * kw])."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
                matrix = update.reshape(update.size(0), -1)
                scale = math.sqrt(max(1.0, matrix.size(0) / matrix.size(1)))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalize(matrix).view_as(p), alpha=-group["lr"] * scale)


class Average:
    """An exponential moving average of a module's parameters, with a warm-up so that early noise is forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module: Any = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, p in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(p, 1 - decay)


class Clock:
    """How much of a stage's time is used, and the learning-rate factor that follows from it."""

    def __init__(self, minutes: float, decay_from: float = 0.6, warmup_steps: int = 40) -> None:
        self.start, self.seconds = time.monotonic(), minutes * 60
        self.decay_from, self.warmup_steps = decay_from, warmup_steps

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the time is used; the same in all processes."""
        return min(1.0, float(mean_over_processes(torch.tensor((time.monotonic() - self.start) / self.seconds))))

    def rate(self, step: int, progress: float) -> float:
        """Warm up, hold, then fall linearly to 0 from `decay_from` on (never, where that is 1)."""
        fall = (1 - progress) / (1 - self.decay_from) if self.decay_from < 1 else 1.0
        return min((step + 1) / self.warmup_steps, 1.0, fall)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all training processes (itself when there is one)."""
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over processes in one message."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = mean_over_processes(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _worker(index: int, processes: int, port: int, stage: Callable[..., None], options: dict[str, Any]) -> None:
    torch.set_num_threads(1)  # two processes of one thread each outrun one process of two threads
    if processes > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=index, world_size=processes)
    torch.manual_seed(1000 + index)
    stage(**options)


def run_stage(stage: Callable[..., None], processes: int, **options: Any) -> None:
    """Run `stage(**options)` in `processes` processes that average their gradients."""
    if processes == 1:
        _worker(0, 1, 0, stage, options)
    else:
        port = 29500 + os.getpid() % 2000
        spawn(_worker, (processes, port, stage, options), nprocs=processes)
