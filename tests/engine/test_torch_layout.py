"""What a step on a GPU looks like: few layouts for many batches, and nothing written but where it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch
from musespark.engine.torch_runner.layout import FEW_ROWS, Group, Layout, Step, has_few_rows, plan
from musespark.engine.view import Everything, OwnChunk, Window
from tests.engine.batches import Stream, batch_of

GROUPS = [Group("full", 100, Everything()), Group("local", 100, Window(100))]


def planned(batch: Batch, *, rounds: bool = True, groups: list[Group] = GROUPS, at_once: int = 1000) -> Step:
    return plan(batch, groups, rounds=rounds, rows_at_once=lambda num_pages: at_once)


def decode(*positions: int) -> Batch:
    """One token of each of several sequences, whose pages follow each other."""
    streams, page = [], 0
    for position in positions:
        pages = position // PAGE_SIZE + 1
        streams.append(Stream([7], range(page, page + pages), start=position))
        page += pages
    return batch_of(*streams)


def test_all_decodes_of_about_a_size_share_a_layout() -> None:
    layouts: set[Layout] = {planned(decode(position)).layout for position in range(1024)}
    assert len(layouts) == 3  # up to 256 keys, 512 and 1,024
    assert len({planned(decode(*range(n))).layout for n in range(5, 9)}) == 1  # up to eight rows


def test_a_window_needs_no_more_pages_however_long_the_sequence() -> None:
    """A window of 100 over pages of 64 can lie in three of them."""
    for position in (0, 63, 64, 300, 5000):
        ((_, full), (_, local)) = planned(decode(position)).layout.spans
        assert local[0].num_pages == 3
        assert full[0].num_pages >= position // PAGE_SIZE + 1


@pytest.mark.parametrize("chunk", [64, 100, 8192])
def test_a_table_begins_with_the_page_of_its_first_key(chunk: int) -> None:
    groups = [Group("local", 100, OwnChunk(chunk))]
    step = planned(decode(199), groups=groups)
    ((_, (span,)),) = step.layout.spans
    table, first = step.values[3 : 3 + span.num_pages], step.values[3 + span.num_pages]
    assert first == 199 // chunk * chunk // PAGE_SIZE * PAGE_SIZE
    assert table[: 4 - first // PAGE_SIZE].tolist() == list(range(first // PAGE_SIZE, 4))
    assert (table[4 - first // PAGE_SIZE :] == 100).all()


def test_rows_that_fill_up_a_step_write_behind_the_last_page() -> None:
    step = planned(decode(3, 70, 200))
    assert step.layout.num_rows == 4
    slots = step.values[8:12]  # after token ids and positions
    assert slots.tolist() == [3, 2 * PAGE_SIZE + 6, 6 * PAGE_SIZE + 8, 100 * PAGE_SIZE]


def test_pages_are_cleared_when_their_first_token_comes() -> None:
    step = planned(batch_of(Stream([1, 2, 3], [8, 9], start=63), Stream([4], [5])))
    assert step.starting_pages["full"].tolist() == [9, 5]
    assert planned(decode(3, 70)).starting_pages["local"].tolist() == []


def test_long_chunks_stand_alone_and_short_ones_count_as_rows() -> None:
    short, long = Stream([1] * FEW_ROWS, [0]), Stream([1] * (FEW_ROWS + 1), [1])
    assert has_few_rows(batch_of(short))
    assert not has_few_rows(batch_of(short, long))
    spans = dict(planned(batch_of(short, long, short), rounds=False).layout.spans)["full"]
    assert [(span.start, span.num_sequences, span.num_rows) for span in spans] == [(0, 16, 1), (16, 1, 17), (33, 16, 1)]


def test_many_sequences_become_several_spans() -> None:
    spans = dict(planned(decode(*range(10)), at_once=6).layout.spans)["full"]
    assert [(span.start, span.num_sequences) for span in spans] == [(0, 6), (6, 6), (12, 4)]


def test_only_pages_that_a_token_sees_must_be_there() -> None:
    gone = Stream([7], [NO_PAGE, 3, 4, 5], start=230)
    planned(batch_of(gone), groups=GROUPS[1:])  # the window begins in page 2
    with pytest.raises(ValueError, match="a token sees no page in the full group, which has 100"):
        planned(batch_of(gone))


def test_values_are_as_many_as_the_layout_says() -> None:
    step = planned(batch_of(Stream([1] * 40, [0]), Stream([2], [1])), rounds=False)
    size = 2 * step.layout.num_rows
    for _, spans in step.layout.spans:
        size += step.layout.num_rows + sum(s.num_sequences * (s.num_pages + 1) for s in spans)
    assert step.values.dtype == np.int64
    assert len(step.values) == size
