"""Types of the extension module that csrc/bindings.cpp defines."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

def build_info() -> dict[str, Any]: ...
def page_bytes(text: dict[str, Any], kv_precision: str) -> tuple[int, int]: ...

class StartedImage:
    @property
    def progress(self) -> float: ...

class Model:
    def __init__(
        self,
        text: dict[str, Any],
        vision: dict[str, Any] | None,
        fetch: Callable[[str], tuple[str, np.ndarray, np.ndarray | None, int]],
        precision: str,
        kv_precision: str,
        num_full_pages: int,
        num_sliding_pages: int,
        num_threads: int,
        isa: str,
    ) -> None: ...
    def forward(
        self,
        token_ids: Int32,
        positions: Int64,
        query_start: Int32,
        full_block_table: Int32,
        sliding_block_table: Int32,
        embed_rows: Int32,
        embeds: Float32,
        logit_rows: Int32,
        logits: Float32,
    ) -> None: ...
    def start_image(self, patches: Float32, rows: int, columns: int, features: Float32) -> StartedImage: ...
    def continue_image(self, image: StartedImage, budget_s: float) -> bool: ...
    def close(self) -> None: ...
    @property
    def isa(self) -> Literal["avx512", "avx512_base", "avx2", "portable"]: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class kernels:  # a submodule; single kernels, for the tests
    @staticmethod
    def product(weights: Float32, format: str, x: Float32, out: Float32, num_threads: int, isa: str) -> None: ...
    @staticmethod
    def int8_product(weights: npt.NDArray[np.int8], scales: Float32, x: Float32, out: Float32, isa: str) -> None: ...
    @staticmethod
    def int4_product(
        words: npt.NDArray[np.uint8], format: str, scales: Float32, x: Float32, out: Float32, isa: str
    ) -> None: ...
    @staticmethod
    def map(name: str, x: Float32, isa: str) -> None: ...
    class Attention:  # keys and values (L, K, d) in pages: "float32", "bf16" or "int8"
        def __init__(self, keys: Float32, values: Float32, format: str, num_threads: int, isa: str) -> None: ...
        def run(self, queries: Float32, first: Int64, end: Int64, out: Float32) -> None:
            """queries (T, H, d), of which t sees keys first[t]:end[t], both ascending, to out (T, H, d)."""

    @staticmethod
    def count_tasks(counts: Int64, num_threads: int, loops: int) -> None: ...
