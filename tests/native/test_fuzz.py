"""Random wrong input: the native core refuses it or computes it, and never reads or writes elsewhere.

On the ordinary build this sees crashes and changed results; test_sanitizers.py runs it on a build in which every access
out of bounds ends the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import numpy as np
import pytest

from musespark.engine._native import kernels
from musespark.engine.native import NativeRunner, available_isas
from musespark.engine.runner import Batch
from tests.model.network.builders import picture, random_config, random_network
from tests.native.runners import Stream, batch_of, native, random_ids

SECONDS = float(os.environ.get("MUSESPARK_FUZZ_SECONDS", "2"))  # of each test
EDGES = [0, 1, 15, 16, 63, 64, 65, 4095, 2**31 - 1, 2**31, 2**32, 2**63 - 1]
VALUES = np.array([*EDGES, *(-value - 1 for value in EDGES)], np.int64)
FIELDS = [field.name for field in dataclasses.fields(Batch)]


@pytest.fixture(scope="module", params=["bf16", "int8"])
def runner(request: pytest.FixtureRequest) -> NativeRunner:
    network = random_network(random_config(5, layers=3, sliding_window=70))
    return native(network, precision="bf16", kv_precision=request.param, num_threads=2)


def good_batch(random: np.random.Generator) -> Batch:
    """One to three sequences that start anywhere, with pages of their own."""
    pages = random.permutation(15).tolist()
    streams = []
    for _ in range(random.integers(1, 4)):
        start, count = int(random.integers(150)), int(random.integers(1, 80))
        streams.append(Stream(random_ids(count), [pages.pop() for _ in range(start + count + 63 >> 6)], start=start))
    return batch_of(*streams)


def spoil(value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mostly another number in one or two places; else another length, order, type or shape."""
    kind = random.integers(10)
    if kind < 6 and value.size:
        value = value.copy()
        for _ in range(random.integers(1, 3)):
            value.flat[random.integers(value.size)] = random.choice(VALUES).astype(value.dtype)
        return value
    some = random.integers(len(value) + 1)
    return [value[:some], np.concatenate([value, value[:some]]), value[::-1], value.astype("u1"), value[None]][kind % 5]


def test_a_random_batch_is_computed_or_refused_and_changes_no_page_of_another(runner: NativeRunner) -> None:
    random = np.random.default_rng(0)
    witness = Stream(random_ids(64), [15])  # page 15 is in no good batch; bad ones that name it write to it by right
    expected = runner.forward(batch_of(witness))
    last = batch_of(Stream(random_ids(1, 2), [15], start=63))
    last_row = runner.forward(last)
    counts = {"computed": 0, "refused": 0}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        batch = good_batch(random)
        for name in random.choice(FIELDS, random.integers(1, 3)):
            batch = dataclasses.replace(batch, **{name: spoil(getattr(batch, name), random)})
        try:
            logits = runner.forward(batch)
        except (ValueError, TypeError):
            counts["refused"] += 1
        else:
            counts["computed"] += 1
            assert logits.shape == (len(batch.logit_rows), runner.config.text.vocab_size)
        if not (batch.full_block_table == 15).any() and not (batch.sliding_block_table == 15).any():
            assert np.array_equal(runner.forward(last), last_row)
        else:
            assert np.array_equal(runner.forward(batch_of(witness)), expected)
            runner.forward(last)
    assert min(counts.values()) > 10, counts


def test_random_images_are_encoded_or_refused(runner: NativeRunner) -> None:
    random = np.random.default_rng(1)
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        image = picture(*(2 * random.integers(1, 9, 2)).tolist())
        grid = tuple(random.choice([1, 2, 3, 16, -2, 0, 2**31, 2**62], 2).tolist())
        wrong = dataclasses.replace(image, grid=grid) if random.integers(2) else image
        wrong = dataclasses.replace(wrong, patches=spoil(image.patches, random)) if random.integers(2) else wrong
        with contextlib.suppress(ValueError, TypeError, MemoryError), np.errstate(invalid="ignore"):
            runner.encode_image(wrong)
        whole = runner.encode_image(image)
        pieces = runner.start_image(image)
        while pieces.run(budget_s=0.0) is None:
            pass
        features = pieces.run()
        assert features is not None
        assert np.array_equal(features, whole)


def test_attention_of_random_shapes_stays_within_them() -> None:
    """Head widths, heads, keys and windows of any size, on every instruction set and in every format."""
    random = np.random.default_rng(2)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        head_dim, num_kv_heads, group = 2 * random.integers(1, 70), random.integers(1, 4), random.integers(1, 12)
        num_keys = int(random.integers(1, 300)) if random.integers(4) else int(random.integers(1000, 2500))
        num_queries = int(random.integers(1, min(num_keys, 70) + 1))
        keys, values = (random.standard_normal((num_keys, num_kv_heads, head_dim), np.float32) for _ in "kv")
        queries = random.standard_normal((num_queries, num_kv_heads * group, head_dim), np.float32)
        last = np.arange(num_keys - num_queries + 1, num_keys + 1)
        first = np.maximum(last - random.integers(1, 200), 0)
        fmt, isa = random.choice(["float32", "bf16", "int8"]), random.choice(available_isas())
        out = np.full_like(queries, np.nan)
        attention = kernels.Attention(keys, values, str(fmt), int(random.integers(1, 4)), str(isa))
        attention.run(queries, first, last, out)
        assert np.isfinite(out).all()
        assert (np.abs(out) <= np.abs(values).max() * 1.05).all()
