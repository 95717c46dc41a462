"""Where the host waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


def waits(call: Callable[[], Any]) -> list[str]:
    """Where a call waited for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{found.filename}:{found.lineno}" for found in caught if "called a synchronizing" in str(found.message)]
