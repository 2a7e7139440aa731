"""What is alive on a device: live storages, counted operation by operation, and the highest sum of them.

Costs about 0.1 ms an operation, so it runs where memory is predicted (on torch's meta device), simulated, tested and
measured, and not in an ordinary run. It does not see what an operation allocates and frees inside itself: the
scratch of convolutions above all, which is what a plan's allowance is for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.quantization.fp8 import widening_scratch


class Ledger(TorchDispatchMode):
    """While open, counts the bytes of every storage on `device_type` that an operation of this thread makes.

    `limit_bytes`: raise `torch.OutOfMemoryError` where the sum passes it, as a card that is full does.
    """

    def __init__(self, device_type: str, limit_bytes: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.limit_bytes = limit_bytes
        self.live_bytes = 0
        self.peak_bytes = 0
        self._live: dict[int, weakref.ref[Any]] = {}
        self._known: list[Tensor] = []  # kept alive, so that no other storage gets their addresses
        self._ignored: set[int] = set()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave these out (weights), and every view of them."""
        for tensor in tensors:
            self._known.append(tensor)
            self._ignored.add(tensor.untyped_storage()._cdata)

    def restart(self) -> None:
        """Look for the highest sum from now on."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._count(result)
        elif isinstance(result, (tuple, list)):
            for part in result:
                if isinstance(part, Tensor):
                    self._count(part)
        return result

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._ignored:
            return
        size = storage.nbytes()
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

        def gone(_: object) -> None:
            del self._live[key]
            self.live_bytes -= size

        self._live[key] = weakref.ref(storage, gone)
        if self.limit_bytes is not None and self.live_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(f"{self.live_bytes} bytes would be live, {self.limit_bytes} are allowed")


class FusedAttention(TorchFunctionMode):
    """Attention on the meta device takes the memory of a fused kernel: output and log-sum-exp.

    There `scaled_dot_product_attention` falls apart into matrix products with all scores in fp32, nine times the
    memory that the kernels of cards and processors take.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
            if given["query"].is_meta:
                return _attention_memory(given["query"], given["value"])
        return func(*args, **kwargs)


def _attention_memory(query: Tensor, value: Tensor) -> Tensor:
    """[B, H, N, D], laid out as the kernels do it, with the log-sum-exp [B, H, N] alive beside it for a moment."""
    batch, heads, tokens, _ = query.shape
    log_sum_exp = query.new_empty((batch, heads, tokens), dtype=torch.float32)
    output = query.new_empty((batch, tokens, heads, value.shape[-1])).transpose(1, 2)
    del log_sum_exp
    return output


@contextmanager
def counted(device_type: str, limit_bytes: int | None = None) -> Iterator[Ledger]:
    """A ledger that is open, with attention accounted as a fused kernel where the device is meta."""
    scratch = widening_scratch()
    with FusedAttention(), Ledger(device_type, limit_bytes) as ledger:
        ledger.ignore([scratch])
        yield ledger
