"""A batch as the device reads it: one array of int64, and a `Layout` that says what lies where in it.

The layout holds all that shapes depend on, and nothing else does, so a recorded step can be replayed for every batch of
the same layout. Sequences with few rows (those that decode, or verify a draft) become sequences of one row each, whose
number, and whose number of pages, is rounded up: that keeps the layouts few. Longer ones stand alone.

Letters: N rows, S sequences, T rows of one sequence, P pages of its table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch
from musespark.engine.view import Everything, View

Int64 = npt.NDArray[np.int64]
GroupName = Literal["full", "local"]

FEW_ROWS = 16  # of one sequence; each of them reads its pages anew
LEAST_PAGES = 4  # of a rounded table: 256 tokens, a shorter one would not be faster


@dataclass(frozen=True, slots=True)
class Span:
    """Sequences one after another that have equally many rows, from row `start` on."""

    start: int
    num_sequences: int
    num_rows: int  # of each
    num_pages: int  # of each table


@dataclass(frozen=True, slots=True)
class Layout:
    """Shapes of a step. `spans` are those of each group in use."""

    num_rows: int
    spans: tuple[tuple[GroupName, tuple[Span, ...]], ...]

    @property
    def has_one_row_each(self) -> bool:
        return all(span.num_rows == 1 for _, spans in self.spans for span in spans)


@dataclass(frozen=True, slots=True)
class Group:
    """The pages of one group of layers: how many there are, and what its layers see."""

    name: GroupName
    num_pages: int
    view: View

    @property
    def spare_page(self) -> int:
        """Behind the others: where the rows that fill up a step write, and what fills up a table."""
        return self.num_pages


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What `plan` makes of a batch. `values` is: token ids (N,), positions (N,); then for each group the slot of every
    row (N,), and for each span its tables (S, P) and the position of the first key in each of them (S,).
    """

    layout: Layout
    values: Int64
    starting_pages: dict[GroupName, Int64]  # pages whose first token is written in this step


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows [start, end) of the batch, of sequence `index`."""

    index: int
    start: int
    end: int


def plan(batch: Batch, groups: list[Group], *, rounds: bool, rows_at_once: Callable[[int], int]) -> Step:
    """`rounds`: fill the step up to a rounded number of rows (all sequences must have few of them).

    `rows_at_once(num_pages)` bounds the sequences of one span. Raises ValueError for a page that isn't there.
    """
    runs = list(_runs(batch))
    num_rows = len(batch.token_ids)
    filled = _rounded(num_rows, 1) if rounds else num_rows
    positions = _fill(batch.positions, filled, 0)
    values = [_fill(batch.token_ids, filled, 0), positions]
    spans, starting = [], {}
    for group in groups:
        tables = batch.full_block_table if group.name == "full" else batch.sliding_block_table
        if batch.positions.max(initial=0) >= tables.shape[1] * PAGE_SIZE:
            raise ValueError(f"a {group.name} block table of {tables.shape[1]:,} pages is too short for its positions")
        of_row = np.repeat(np.arange(len(tables)), np.diff(batch.query_start))
        pages = tables[of_row, batch.positions // PAGE_SIZE].astype(np.int64)
        _check_pages(pages, group)
        slots = pages * PAGE_SIZE + batch.positions % PAGE_SIZE
        values.append(_fill(slots, filled, group.spare_page * PAGE_SIZE))
        starting[group.name] = pages[batch.positions % PAGE_SIZE == 0]
        some: list[Span] = []
        for members in _alike(runs):
            some += _add_spans(batch, tables, group, members, values, filled if rounds else None, rows_at_once)
        spans.append((group.name, tuple(some)))
    return Step(Layout(filled, tuple(spans)), np.concatenate(values), starting)


def has_few_rows(batch: Batch) -> bool:
    """Whether every sequence of the batch has few rows."""
    return bool(np.diff(batch.query_start).max(initial=0) <= FEW_ROWS)


def _runs(batch: Batch) -> Iterator[_Run]:
    bounds = batch.query_start.tolist()
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        if end - start <= FEW_ROWS:
            yield from (_Run(index, row, row + 1) for row in range(start, end))
        else:
            yield _Run(index, start, end)


def _alike(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Runs of one row that follow each other together, all others alone."""
    together: list[_Run] = []
    for run in runs:
        if run.end - run.start == 1:
            together.append(run)
            continue
        if together:
            yield together
            together = []
        yield [run]
    if together:
        yield together


def _add_spans(
    batch: Batch,
    tables: npt.NDArray[np.int32],
    group: Group,
    runs: list[_Run],
    values: list[Int64],
    filled: int | None,
    rows_at_once: Callable[[int], int],
) -> list[Span]:
    """Append the tables of `runs` to `values`, and say where they are. `filled`: to how many sequences, if at all."""
    first = [group.view.first_key(int(batch.positions[run.start])) // PAGE_SIZE for run in runs]
    end = [int(batch.positions[run.end - 1]) // PAGE_SIZE + 1 for run in runs]
    width = max(e - f for f, e in zip(first, end, strict=True))
    is_single = runs[0].end - runs[0].start == 1
    if is_single:
        width = _rounded(width, LEAST_PAGES)
        if not isinstance(group.view, Everything):
            width = min(width, group.view.pages_at_once(1 << 62))
    num_sequences = filled if filled is not None and is_single else len(runs)
    table = np.full((num_sequences, width), group.spare_page, np.int64)
    first_keys = np.zeros(num_sequences, np.int64)
    for row, (run, f, e) in enumerate(zip(runs, first, end, strict=True)):
        table[row, : e - f] = tables[run.index, f:e]
        first_keys[row] = f * PAGE_SIZE
        _check_pages(table[row, : e - f], group)
    spans, at_once = [], max(1, rows_at_once(width))
    for begin in range(0, num_sequences, at_once):
        stop = min(begin + at_once, num_sequences)
        start = runs[0].start + (begin if is_single else 0)
        spans.append(Span(start, stop - begin, 1 if is_single else runs[0].end - runs[0].start, width))
        values += [table[begin:stop].ravel(), first_keys[begin:stop]]
    return spans


def _check_pages(pages: Int64, group: Group) -> None:
    if ((pages < 0) | (pages >= group.num_pages)).any():
        wrong = int(pages[(pages < 0) | (pages >= group.num_pages)][0])
        what = "no page" if wrong == NO_PAGE else f"page {wrong:,}"
        raise ValueError(f"a token sees {what} in the {group.name} group, which has {group.num_pages:,}")


def _fill(array: npt.NDArray[np.integer], length: int, value: int) -> Int64:
    filled = np.full(length, value, np.int64)
    filled[: len(array)] = array
    return filled


def _rounded(number: int, least: int) -> int:
    """The next power of two, from `least` on."""
    return max(least, 1 << (number - 1).bit_length())
