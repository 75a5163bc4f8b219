"""One prompt through the native runner, as a server would feed it: pieces that divide nothing, then single tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from musespark.conformance.prompts import images_of
from musespark.engine.native import NativeRunner
from musespark.engine.runner import PAGE_SIZE, Batch
from musespark.model.checkpoint import Checkpoint

PIECE = 45  # tokens; divides neither a page nor a window of the suite
NUM_SINGLE = 3  # tokens at the end that come alone, as decoding brings them


def run_in_pieces(checkpoint: Checkpoint, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits (P, V) float32. Raises ConfigError for a family that the runner does not run."""
    token_ids = given["token_ids"].astype(np.int32)
    num_pages = -(-len(token_ids) // PAGE_SIZE)
    runner = NativeRunner(
        checkpoint, precision="float32", num_full_pages=num_pages, num_sliding_pages=num_pages, num_threads=1
    )
    try:
        images = images_of(given)
        features = [runner.encode_image(image) for image in images]
        is_image = token_ids == runner.config.image_token_id if images else np.zeros(len(token_ids), bool)
        embeds = np.zeros((len(token_ids), runner.config.text.hidden_size), np.float32)
        if images:
            embeds[is_image] = np.concatenate(features)
        rows: dict[int, np.ndarray] = {}
        for start, end in _pieces(len(token_ids)):
            wanted = np.array([p for p in given["positions"].tolist() if start <= p < end], np.int64)
            batch = _batch(token_ids, start, end, num_pages, is_image, embeds, np.unique(wanted))
            rows |= dict(zip(np.unique(wanted).tolist(), runner.forward(batch), strict=True))
        return np.stack([rows[position] for position in given["positions"].tolist()])
    finally:
        runner.close()


def _pieces(num_tokens: int) -> list[tuple[int, int]]:
    together = max(1, num_tokens - NUM_SINGLE)
    starts = [*range(0, together, PIECE), *range(together, num_tokens)]
    return list(zip(starts, [*starts[1:], num_tokens], strict=True))


def _batch(
    token_ids: np.ndarray,
    start: int,
    end: int,
    num_pages: int,
    is_image: np.ndarray,
    embeds: np.ndarray,
    wanted: np.ndarray,
) -> Batch:
    """Tokens [start, end) of one sequence on pages 0, 1, 2, …"""
    table = np.arange(num_pages, dtype=np.int32)[None]
    here = np.flatnonzero(is_image[start:end])
    return Batch(
        token_ids=np.ascontiguousarray(token_ids[start:end]),
        positions=np.arange(start, end, dtype=np.int64),
        query_start=np.array([0, end - start], np.int32),
        full_block_table=table,
        sliding_block_table=table.copy(),
        embed_rows=here.astype(np.int32),
        embeds=np.ascontiguousarray(embeds[start:end][here]),
        logit_rows=(wanted - start).astype(np.int32),
    )
