"""What comes through the door is checked before anything is touched: no bad batch reaches outside the pages."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.engine import native as engine_native
from musespark.engine.native import NativeRunner, available_isas, build_info, page_bytes
from musespark.engine.runner import NO_PAGE, Batch
from musespark.errors import CheckpointError, ConfigError, EngineFailed
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.presets import preset
from tests.model.network.builders import picture, random_config, random_network
from tests.native.runners import Stream, batch_of, native, open_native, random_ids

CONFIG = random_config(3, layers=5, sliding_window=70, max_position_embeddings=400)
NETWORK = random_network(CONFIG)
WIDTH = CONFIG.text.hidden_size


def good() -> Batch:
    """Two sequences: 100 tokens from the start, and 3 tokens from position 130."""
    one, two = Stream(random_ids(100), [0, 1], [2, 3]), Stream(random_ids(3), [4, 5, 6], [7, 8, 9], start=130)
    return batch_of(one, two)


@pytest.fixture(scope="module")
def runner() -> NativeRunner:
    runner = native(NETWORK, num_full_pages=10, num_sliding_pages=10, num_threads=2)
    runner.forward(batch_of(Stream(random_ids(130, seed=9), [4, 5, 6], [7, 8, 9])))  # the past of the second sequence
    return runner


def with_entry(name: str, index: Any, value: int) -> Callable[[Batch], Batch]:
    def change(batch: Batch) -> Batch:
        array = getattr(batch, name).copy()
        array[index] = value
        return replace(batch, **{name: array})

    return change


def with_array(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Batch], Batch]:
    return lambda batch: replace(batch, **{name: make(getattr(batch, name))})


def with_features(rows: list[int], shape: tuple[int, int]) -> Callable[[Batch], Batch]:
    return lambda batch: replace(batch, embed_rows=np.array(rows, np.int32), embeds=np.zeros(shape, np.float32))


BAD = {
    "token below 0": (with_entry("token_ids", 5, -1), "token id -1 in row 5"),
    "token beyond the vocabulary": (with_entry("token_ids", 102, 97), "token id 97 in row 102"),
    "negative position": (with_array("positions", lambda p: p - 1), "positions of sequence 0 start at -1"),
    "gap in the positions": (with_entry("positions", 50, 51), "position 51 in row 50"),
    "position beyond the model": (with_entry("positions", slice(100, 103), 398), "sequence 1 start at 398"),
    "position near 2^63": (with_entry("positions", slice(100, 103), 2**63 - 3), "takes positions 0 to 399"),
    "full page out of range": (
        with_entry("full_block_table", (0, 1), 10),
        "full_block_table of sequence 0 holds page id 10",
    ),
    "full page missing": (
        with_entry("full_block_table", (1, 0), NO_PAGE),
        "full_block_table of sequence 1 holds page id -1",
    ),
    "sliding page out of range": (with_entry("sliding_block_table", (1, 2), 2**31 - 1), "page id 2147483647"),
    "sliding page missing": (with_entry("sliding_block_table", (1, 1), NO_PAGE), "sliding_block_table of sequence 1"),
    "page written by two sequences": (with_entry("full_block_table", (1, 2), 0), "page id 0 twice"),
    "page written twice by one": (with_entry("sliding_block_table", (0, 1), 2), "page id 2 twice"),
    "page written by another is seen": (with_entry("full_block_table", (1, 0), 1), "sees page id 1"),
    "table too narrow": (with_array("full_block_table", lambda t: t[:, :2].copy()), "2 columns, sequence 1 needs 3"),
    "table with a row too few": (with_array("full_block_table", lambda t: t[:1].copy()), "one row for each sequence"),
    "query_start not from 0": (with_entry("query_start", 0, 1), "query_start"),
    "query_start too long": (with_entry("query_start", 2, 104), "query_start"),
    "query_start going back": (with_array("query_start", lambda _: np.array([0, 104, 103], np.int32)), "no tokens"),
    "query_start negative": (with_array("query_start", lambda _: np.array([0, -5, 103], np.int32)), "no tokens"),
    "empty query_start": (with_array("query_start", lambda q: q[:0].copy()), "query_start"),
    "positions too few": (with_array("positions", lambda p: p[:-1].copy()), "one entry for each"),
    "logit row too large": (with_array("logit_rows", lambda _: np.array([103], np.int32)), "logit_rows"),
    "logit row negative": (with_array("logit_rows", lambda _: np.array([-1], np.int32)), "logit_rows"),
    "logit row twice": (with_array("logit_rows", lambda _: np.array([4, 4], np.int32)), "ascending"),
    "image row too large": (with_features([103], (1, WIDTH)), "embed_rows"),
    "image row twice": (with_features([4, 4], (2, WIDTH)), "ascending"),
    "features of another width": (with_features([4], (1, WIDTH + 1)), "embeds must be"),
    "features too few": (with_features([4, 5], (1, WIDTH)), "embeds must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_by_name_and_writes_nothing(runner: NativeRunner, name: str) -> None:
    before = runner.forward(good())
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        runner.forward(change(good()))
    # Only the second sequence: its past would show if the bad batch had been written in part.
    assert np.array_equal(
        runner.forward(batch_of(Stream(random_ids(3), [4, 5, 6], [7, 8, 9], start=130))), before[100:]
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("token_ids", np.int64), ("positions", np.int32), ("query_start", np.int64), ("full_block_table", np.int64)],
)
def test_arrays_of_another_type_are_refused_and_not_converted(runner: NativeRunner, name: str, dtype: type) -> None:
    with pytest.raises(TypeError):
        runner.forward(with_array(name, lambda array: array.astype(dtype))(good()))


def test_arrays_with_gaps_are_refused(runner: NativeRunner) -> None:
    with pytest.raises(TypeError):
        runner.forward(with_array("token_ids", lambda ids: np.repeat(ids, 2)[::2])(good()))


def test_the_last_position_of_the_model_is_taken(runner: NativeRunner) -> None:
    last = Stream([20], [0, 1, 2, 3, 4, 5, 6], start=399)
    assert np.isfinite(runner.forward(batch_of(last))).all()
    with pytest.raises(ValueError, match="positions"):
        runner.forward(batch_of(Stream([20, 21], [0, 1, 2, 3, 4, 5, 6], start=399)))


def test_an_empty_batch_gives_no_logits(runner: NativeRunner) -> None:
    none = np.zeros(0, np.int32)
    tables = np.zeros((0, 0), np.int32)
    empty = Batch(
        none, np.zeros(0, np.int64), np.zeros(1, np.int32), tables, tables, none, np.zeros((0, WIDTH), np.float32), none
    )
    assert runner.forward(empty).shape == (0, 97)


@pytest.mark.parametrize("grid", [(1, 2), (2, 3), (0, 4), (-2, -2), (2**31, 2)], ids=str)
def test_images_that_cannot_be_merged_are_refused(runner: NativeRunner, grid: tuple[int, int]) -> None:
    image = replace(picture(2, 2), grid=grid)
    with pytest.raises(ValueError, match="patches"):
        runner.encode_image(image)


def test_patches_of_another_shape_are_refused(runner: NativeRunner) -> None:
    image = picture(2, 2)
    for patches in (image.patches[:3], image.patches[:, :587].copy()):
        with pytest.raises(ValueError, match="patches must be"):
            runner.encode_image(replace(image, patches=patches))
    with pytest.raises(TypeError):
        runner.encode_image(replace(image, patches=image.patches.astype(np.float64)))


def test_a_model_without_a_tower_refuses_images(tmp_path: Path) -> None:
    config = replace(CONFIG, vision=None)
    network = random_network(config)
    runner = native(network)
    with pytest.raises(ValueError, match="no vision tower"):
        runner.encode_image(picture(2, 2))
    assert runner.forward(batch_of(Stream([20], [0]))).shape == (1, 97)


def test_a_closed_runner_says_so_and_may_be_closed_again() -> None:
    runner = native(NETWORK)
    runner.close()
    runner.close()
    with pytest.raises(EngineFailed):
        runner.forward(good())
    with pytest.raises(EngineFailed):
        runner.encode_image(picture(2, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "checkpoint"
    save_checkpoint(folder, CONFIG, NETWORK.state_dict())
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_threads": 0}, "num_threads is 0; it must be from 1 to 256"),
        ({"num_threads": 257}, "num_threads is 257"),
        ({"precision": "fp8"}, "float32, bf16, int8, int4"),
        ({"isa": "mmx"}, "portable"),
        ({"num_full_pages": -1}, "num_full_pages is -1"),
        ({"num_sliding_pages": 2**31}, "num_sliding_pages is 2,147,483,648"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_native(folder, **options)


def test_pages_that_do_not_fit_into_memory_are_refused_before_the_weights_are_read(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"2,147,483,647 full and 0 sliding pages take [0-9,.]+ GiB; this machine has"
    ):
        open_native(folder, num_full_pages=2**31 - 1, num_sliding_pages=0)


def test_a_tensor_of_another_shape_is_refused_by_name(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    checkpoint.config = replace(CONFIG, text=replace(CONFIG.text, vocab_size=98))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \[97, .*asks for \[98, "):
        NativeRunner(checkpoint, precision="float32", num_full_pages=1, num_sliding_pages=1)


def test_a_tensor_that_would_have_to_be_copied_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy would be gone before its weights are packed. Columns first instead of rows; in values and in scales."""
    values, scales = np.zeros((97, WIDTH), np.int8), np.zeros((97, 2), np.float32, order="F")
    wrong = ("F32", np.zeros((97, WIDTH), np.float32, order="F"), None, 0), ("I8", values, scales, WIDTH // 2)
    for fetched, message in zip(wrong, ("embed_tokens.weight", "scale of .*embed_tokens.weight"), strict=True):
        monkeypatch.setattr(engine_native, "_fetch", lambda *_, fetched=fetched: fetched)
        with pytest.raises(CheckpointError, match=f"{message} is not a contiguous array"):
            open_native(folder)


INTEGERS = np.zeros((97, 24), np.int8)
WORDS = np.zeros((97, 12), np.uint8)


@pytest.mark.parametrize(
    ("fetched", "message"),
    [
        (
            ("I8", INTEGERS, np.zeros((97, 1), np.float64), 24),
            "scale of .* is neither float32 nor the bits of bfloat16",
        ),
        (("I8", INTEGERS, np.zeros((97, 2), np.float32), 24), "scales of another shape"),
        (("I8", INTEGERS, np.zeros((97, 4), np.float32), 6), "groups of 6 inputs; they must be a multiple of 4"),
        (("I8", INTEGERS, np.zeros((97, 0), np.float32), 24), "has no scales"),
        (("I4", WORDS, np.zeros((97, 2), np.uint16), 24), "scales of another shape"),
        (("I4", WORDS, np.zeros((96, 1), np.uint16), 24), "scales of another shape"),
        (("I4", WORDS[:, :11].copy(), np.zeros((97, 1), np.uint16), 24), "scales of another shape"),
        (("I4", INTEGERS, np.zeros((97, 1), np.uint16), 24), "has the type I4, which can't be loaded"),
        (("F32", np.zeros((97, 24), np.float32), None, 6), "groups of 6 inputs"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[0],
)
def test_integers_that_do_not_fit_their_scales_are_refused(
    folder: Path, fetched: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a checkpoint refuses them before; the core doesn't rely on it."""
    monkeypatch.setattr(engine_native, "_fetch", lambda *_: fetched)
    with pytest.raises(CheckpointError, match=message):
        open_native(folder)


def test_an_embedding_in_integers_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are read as floats; opening a checkpoint refuses it before, in all formats."""
    checkpoint = open_checkpoint(folder)
    checkpoint.config = replace(CONFIG, text=replace(CONFIG.text, hidden_size=12))
    fetched = "I8", np.zeros((97, 12), np.int8), np.zeros((97, 1), np.float32), 12
    monkeypatch.setattr(engine_native, "_fetch", lambda *_: fetched)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight must be in floats"):
        NativeRunner(checkpoint, precision="float32", num_full_pages=1, num_sliding_pages=1)


def test_the_checkpoint_may_go_away_after_loading(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    runner = NativeRunner(checkpoint, precision="float32", num_full_pages=10, num_sliding_pages=10)
    kept = native(NETWORK, num_full_pages=10, num_sliding_pages=10)
    del checkpoint
    gc.collect()
    batch = batch_of(Stream(random_ids(100), [0, 1], [2, 3]))
    assert np.array_equal(runner.forward(batch), kept.forward(batch))


def test_calls_from_several_threads_wait_for_each_other() -> None:
    runner = native(NETWORK, num_threads=2)
    streams = [Stream(random_ids(64, seed), [seed], [seed]) for seed in range(4)]
    expected = [runner.forward(batch_of(stream)) for stream in streams]
    image = picture(4, 6)
    features = runner.encode_image(image)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not np.array_equal(runner.forward(batch_of(streams[index])), expected[index]):
                wrong.append(index)
            if not np.array_equal(runner.encode_image(image), features):
                wrong.append(-1)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_python_runs_on_while_a_step_is_computed() -> None:
    """The lock of the interpreter is released: this thread counts milliseconds while one long step runs."""
    runner = native(NETWORK, num_full_pages=420, num_sliding_pages=420)
    batch = batch_of(*(Stream(random_ids(390), range(7 * i, 7 * i + 7)) for i in range(60)), logit_rows=[0])
    thread = threading.Thread(target=runner.forward, args=(batch,))
    count = 0
    thread.start()
    while thread.is_alive():
        thread.join(0.001)
        count += 1
    assert count >= 10


def test_page_bytes_are_k_and_v_of_64_tokens_in_all_layers_of_the_group() -> None:
    toy = preset("toy")  # one full and one sliding layer, 2 kv heads of 16; K and V of two bytes
    assert page_bytes(toy, "bf16") == (64 * 2 * 16 * 2 * 2, 64 * 2 * 16 * 2 * 2)
    assert page_bytes(toy, "int4") == page_bytes(toy, "int8") == page_bytes(toy, "bf16")
    assert page_bytes(toy, "float32") == tuple(2 * size for size in page_bytes(toy, "bf16"))
    # As published: 65,536 bytes a token in the 16 full layers of the published model, 4,096 in each layer.
    assert page_bytes(preset("muse-spark-open"), "bf16") == (64 * 16 * 4096, 64 * 46 * 4096)


def test_the_build_says_what_it_can_run() -> None:
    assert build_info()["isas"] == list(available_isas())
    assert available_isas()[-1] == "portable"
    assert build_info()["compiler"].split()[0] in ("gcc", "clang")
    for isa in available_isas():
        assert native(NETWORK, isa=isa).isa == isa
    assert native(NETWORK).isa == available_isas()[0]
