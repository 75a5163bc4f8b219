"""Native runners over small networks of the torch reference."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from musespark.engine.native import NativeRunner
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.network import Network
from tests.engine.batches import Stream, batch_of, pages_for, random_ids, reference_logits

__all__ = ["Stream", "batch_of", "native", "open_native", "pages_for", "random_ids", "reference_logits"]


def native(network: Network, **options: Any) -> NativeRunner:
    """The network's weights in a native runner: float32, 16 pages and one thread unless said otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "checkpoint", network.config, network.state_dict())
        return open_native(Path(folder) / "checkpoint", **options)


def open_native(folder: Path, **options: Any) -> NativeRunner:
    defaults = {"precision": "float32", "num_full_pages": 16, "num_sliding_pages": 16, "num_threads": 1}
    return NativeRunner(open_checkpoint(folder), **(defaults | options))
