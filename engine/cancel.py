"""Cancelling inside a step: one shared flag, polled between transformer blocks, layers and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class CancelledError(Exception):
    """Work was given up on request."""


class CancelFlag:
    """Set from any thread or signal handler; `check` raises in the thread that does the work.

    Plain bools: a lock would deadlock a signal handler that interrupts its own thread inside it.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._after_step = False
        self.is_leaving = False  # nobody waits for the picture any more, which does not mean that it is not wanted

    def set(self, after_step: bool = False) -> None:
        """Ask to stop: as soon as anything polls, or at the end of the step or phase that is running."""
        if after_step:
            self._after_step = True
        else:
            self._wanted = True

    def leave(self) -> None:
        """Ask to stop at once, for good."""
        self.is_leaving = True
        self._wanted = True

    def clear(self) -> None:
        self._wanted = self._after_step = False

    def check(self) -> None:
        """Raises `CancelledError` once the flag is set to stop at once."""
        if self._wanted:
            raise CancelledError

    def check_between_steps(self) -> None:
        """Raises `CancelledError` once the flag is set in either way; called where a step or a phase ends."""
        if self._wanted or self._after_step:
            raise CancelledError


@contextmanager
def cancellable(module: Any, check: Callable[[], None]) -> Iterator[None]:
    """While open, `check` runs before every block of a torch module: each entry of its ModuleLists, nested ones too."""
    from torch.nn import ModuleList

    def poll(*_: object) -> None:
        check()

    lists = [part for part in module.modules() if isinstance(part, ModuleList)]
    blocks = [block for blocks in lists for block in blocks if block is not None]  # diffusers' VAE keeps a None
    handles = [block.register_forward_pre_hook(poll) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
