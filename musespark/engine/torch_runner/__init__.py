"""TorchRunner: the networks of `model/network` behind the engine's Runner protocol, on a GPU, or on a CPU as oracle.

The only part of the engine that needs torch, so nothing imports this package at start-up. `layout.py` turns a batch
into one array of integers, `pages.py` holds K and V and attends to them, `experts.py` computes experts in groups,
`weights.py` reads a checkpoint, `graphs.py` records steps of a decode, and `runner.py` joins them.
"""

from musespark.engine.torch_runner.runner import DTYPES, TorchRunner, page_bytes, usable_device

__all__ = ["DTYPES", "TorchRunner", "page_bytes", "usable_device"]
