"""From chunks to the arrays a runner reads."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import numpy as np

from musespark.engine.kv_cache import BlockTable
from musespark.engine.request import Request
from musespark.engine.runner import NO_PAGE, Batch, Float32, Int32
from musespark.engine.scheduler import Chunk


def images_in(chunk: Chunk) -> Iterator[tuple[int, int, int]]:
    """(image, start, end) for each image with rows in the chunk; positions [start, end) are the part inside it."""
    for image, (start, end) in enumerate(chunk.sequence.request.image_spans):
        if start < chunk.end and end > chunk.start:
            yield image, max(start, chunk.start), min(end, chunk.end)


def build_batch(chunks: list[Chunk], features: Callable[[Request, int], Float32], hidden_size: int) -> Batch:
    """`features(request, i)` gives the encoded image i (num_tokens, hidden_size)."""
    token_ids: list[int] = []
    positions: list[int] = []
    query_start = [0]
    embed_rows: list[int] = []
    embeds: list[Float32] = []
    logit_rows: list[int] = []
    for chunk in chunks:
        request = chunk.sequence.request
        first_row = query_start[-1] - chunk.start  # row of the batch = first_row + position
        token_ids += chunk.sequence.tokens(chunk.start, chunk.end)
        token_ids += chunk.draft
        positions += range(chunk.start, chunk.end + len(chunk.draft))
        for image, start, end in images_in(chunk):
            embed_rows += range(first_row + start, first_row + end)
            offset = request.image_spans[image][0]
            embeds.append(features(request, image)[start - offset : end - offset])
        query_start.append(len(token_ids))
        if chunk.samples:
            logit_rows += range(len(token_ids) - 1 - len(chunk.draft), len(token_ids))
    tables = [chunk.sequence.table for chunk in chunks]
    return Batch(
        token_ids=np.array(token_ids, dtype=np.int32),
        positions=np.array(positions, dtype=np.int64),
        query_start=np.array(query_start, dtype=np.int32),
        full_block_table=_rectangle([table.full for table in tables]),
        sliding_block_table=_rectangle([table.sliding for table in tables]),
        embed_rows=np.array(embed_rows, dtype=np.int32),
        embeds=np.concatenate(embeds) if embeds else np.empty((0, hidden_size), dtype=np.float32),
        logit_rows=np.array(logit_rows, dtype=np.int32),
    )


def probe_batch(token_id: int, table: BlockTable, hidden_size: int) -> Batch:
    """One token at position 0 of an otherwise empty sequence."""
    return Batch(
        token_ids=np.array([token_id], dtype=np.int32),
        positions=np.zeros(1, dtype=np.int64),
        query_start=np.array([0, 1], dtype=np.int32),
        full_block_table=_rectangle([table.full]),
        sliding_block_table=_rectangle([table.sliding]),
        embed_rows=np.empty(0, dtype=np.int32),
        embeds=np.empty((0, hidden_size), dtype=np.float32),
        logit_rows=np.zeros(1, dtype=np.int32),
    )


def _rectangle(rows: list[array[int]]) -> Int32:
    longest = max(map(len, rows))
    table = array("i")
    for row in rows:
        table += row
        table += array("i", [NO_PAGE]) * (longest - len(row))
    return np.frombuffer(table, dtype=np.int32).reshape(len(rows), longest)
