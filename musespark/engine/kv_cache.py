"""Which page of KV memory belongs to whom. Bookkeeping only: the memory itself is the runner's.

A page is *free* (nothing worth keeping), *used* (one or more sequences refer to it) or *cached* (nobody refers to it,
but it holds a known prefix; the least recently used goes first when a page is needed). Only complete pages are ever
shared, and a sequence writes only behind them, so sharing needs no copy. `check_integrity` proves the books at any
time between steps.

The full group keeps every page of a sequence. The sliding group keeps those that the next token can see, of its window
or its chunk (`view.py`); a cached prefix is usable if all its full pages and those sliding pages are still there.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from musespark.engine.prefix import Prefix, PrefixTree
from musespark.engine.runner import NO_PAGE, PAGE_SIZE
from musespark.engine.view import Nothing, View, pages_for, view_of_full_layers, view_of_local_layers
from musespark.errors import EngineFailed
from musespark.model.config import TextConfig


@dataclass(frozen=True, slots=True)
class PageCounts:
    free: int
    used: int
    cached: int

    @property
    def total(self) -> int:
        return self.free + self.used + self.cached


class PageGroup:
    """The pages of one group of layers, which see keys by `view`."""

    def __init__(self, name: str, num_pages: int, view: View) -> None:
        self.name = name
        self.num_pages = num_pages
        self.view = view
        self.is_used = not isinstance(view, Nothing)
        self._references = array("i", bytes(4 * num_pages))
        self._free = list(range(num_pages - 1, -1, -1))
        self._prefix_of: dict[int, Prefix] = {}
        self._page_of: dict[Prefix, int] = {}
        self._unreferenced: OrderedDict[int, None] = OrderedDict()  # cached pages, least recently used first

    @property
    def available(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._free) + len(self._unreferenced)

    @property
    def counts(self) -> PageCounts:
        cached = len(self._unreferenced)
        return PageCounts(len(self._free), self.num_pages - len(self._free) - cached, cached)

    def first_visible(self, position: int) -> int:
        """The first page that a query at `position` or later can see."""
        return self.view.first_key(position) // PAGE_SIZE

    def allocate(self) -> int:
        """A page with one reference. The caller checked `available`."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unreferenced.popitem(last=False)
            del self._page_of[self._prefix_of.pop(page)]
        self._references[page] = 1
        return page

    def lookup(self, prefix: Prefix) -> int | None:
        """The page that holds the last 64 tokens of `prefix`."""
        return self._page_of.get(prefix)

    def share(self, page: int) -> None:
        self._references[page] += 1
        self._unreferenced.pop(page, None)

    def publish(self, page: int, prefix: Prefix) -> None:
        """Let others find a complete page. If one with this content is known already, that one stays."""
        if page not in self._prefix_of and prefix not in self._page_of:
            self._prefix_of[page] = prefix
            self._page_of[prefix] = page

    def release(self, page: int) -> None:
        self._references[page] -= 1
        if self._references[page] > 0:
            return
        if page in self._prefix_of:
            self._unreferenced[page] = None
        else:
            self._free.append(page)

    def forget(self) -> None:
        """Drop all cached content; used pages stay with their users and won't be found by others."""
        self._free.extend(self._unreferenced)
        self._unreferenced.clear()
        self._prefix_of.clear()
        self._page_of.clear()

    def check_integrity(self, tables: Iterable[array[int]]) -> None:
        """Raise EngineFailed unless each page is in exactly one state and the references equal the tables."""
        references = Counter(page for table in tables for page in table if page != NO_PAGE)
        free, cached = set(self._free), set(self._unreferenced)
        used = set(references)
        problems = []
        if len(free) != len(self._free) or free & cached or free & used or cached & used:
            problems.append("a page is in two states")
        if len(free) + len(cached) + len(used) != self.num_pages:
            problems.append(f"{len(free)} free + {len(used)} used + {len(cached)} cached are not {self.num_pages}")
        if any(self._references[page] != references[page] for page in range(self.num_pages)):
            problems.append("references differ from the block tables")
        if {page: prefix for prefix, page in self._page_of.items()} != self._prefix_of or not cached <= set(
            self._prefix_of
        ):
            problems.append("the prefix index differs from the pages")
        if problems:
            raise EngineFailed(f"the {self.name} pages are inconsistent: {'; '.join(problems)}")


@dataclass(slots=True, eq=False)
class BlockTable:
    """The pages of one sequence: entry p holds positions 64p to 64p + 63; NO_PAGE is nothing.

    `prefixes` names the leading complete pages as far as anybody asked, and outlives the pages: tokens are only
    appended.
    """

    root: Prefix
    content: Callable[[int], bytes]
    prefixes: list[Prefix] = field(default_factory=list)
    num_published: int = 0
    full: array[int] = field(default_factory=lambda: array("i"))
    sliding: array[int] = field(default_factory=lambda: array("i"))


class KVCache:
    """Both groups and the prefixes they hold."""

    def __init__(self, config: TextConfig, num_full_pages: int, num_sliding_pages: int) -> None:
        self.full = PageGroup("full", num_full_pages, view_of_full_layers(config))
        self.sliding = PageGroup("sliding", num_sliding_pages, view_of_local_layers(config))
        self._tree = PrefixTree()

    def new_table(self, salt: bytes, content: Callable[[int], bytes]) -> BlockTable:
        """A table without pages. `content(p)` is what distinguishes page p of the sequence (`prefix.page_content`)."""
        return BlockTable(self._tree.root(salt), content)

    def attach(self, table: BlockTable, limit: int) -> int:
        """Give an empty `table` its longest cached prefix of at most `limit` pages; returns how many."""
        runs = {self.full: 0, self.sliding: 0}  # how many pages up to here are cached without a gap
        num_hit = 0
        for page in range(limit):
            prefix = self._prefix(table, page)
            for group in runs:
                runs[group] = 0 if group.lookup(prefix) is None else runs[group] + 1
            end = page + 1
            if all(run >= end - group.first_visible(end * PAGE_SIZE) for group, run in runs.items()):
                num_hit = end
            elif self.full.is_used and runs[self.full] < end:
                break  # a full page is missing: nothing longer can be complete
        self._share(table, num_hit)
        return num_hit

    def has_pages(self, table: BlockTable, num_tokens: int) -> bool:
        """Whether `num_tokens` fit into the pages of `table`."""
        return len(table.full) * PAGE_SIZE >= num_tokens  # both groups are as long

    def room(self, table: BlockTable, num_tokens: int) -> int:
        """How many tokens more than `num_tokens` fit into the pages of `table` and all available ones."""
        return min(
            (len(pages) + group.available) * PAGE_SIZE - num_tokens
            for group, pages in self._groups(table)
            if group.is_used
        )

    def can_start(self, table: BlockTable, num_tokens: int, spare: int) -> bool:
        """Whether all `num_tokens` of a sequence that holds `table` fit now, leaving `spare` pages in each group."""
        return all(
            group.view.pages_at_once(num_tokens) - (len(pages) - pages.count(NO_PAGE)) + spare <= group.available
            for group, pages in self._groups(table)
            if group.is_used
        )

    def extend(self, table: BlockTable, num_tokens: int) -> None:
        """Add pages until `num_tokens` fit; the caller asked `room`."""
        for group, pages in self._groups(table):
            while len(pages) < pages_for(num_tokens):
                pages.append(group.allocate() if group.is_used else NO_PAGE)

    def commit(self, table: BlockTable, num_tokens: int) -> None:
        """K and V of the first `num_tokens` are written: publish complete pages, drop those out of view."""
        for page in range(table.num_published, num_tokens // PAGE_SIZE):
            prefix = self._prefix(table, page)
            for group, pages in self._groups(table):
                if pages[page] != NO_PAGE:
                    group.publish(pages[page], prefix)
            table.num_published = page + 1
        page = self.sliding.first_visible(num_tokens) - 1
        while page >= 0 and table.sliding[page] != NO_PAGE:
            self.sliding.release(table.sliding[page])
            table.sliding[page] = NO_PAGE
            page -= 1

    def release(self, table: BlockTable) -> None:
        """Give back every page, the last ones first: least likely to be shared, they are reused first."""
        for group, pages in self._groups(table):
            for page in reversed(pages):
                if page != NO_PAGE:
                    group.release(page)
            del pages[:]
        table.num_published = 0

    def forget(self) -> None:
        """Drop every cached prefix, after a failure that may have left wrong numbers in the pages."""
        self.full.forget()
        self.sliding.forget()

    @property
    def context_length(self) -> int:
        """The longest sequence that fits when it is alone."""
        return min(group.view.longest(group.num_pages) for group in (self.full, self.sliding))

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Raise EngineFailed if the books don't balance; `tables` are those of all sequences."""
        tables = list(tables)
        self.full.check_integrity(table.full for table in tables)
        self.sliding.check_integrity(table.sliding for table in tables)

    def _groups(self, table: BlockTable) -> tuple[tuple[PageGroup, array[int]], tuple[PageGroup, array[int]]]:
        return (self.full, table.full), (self.sliding, table.sliding)

    def _prefix(self, table: BlockTable, page: int) -> Prefix:
        if page == len(table.prefixes):
            parent = table.prefixes[-1] if table.prefixes else table.root
            table.prefixes.append(self._tree.child(parent, table.content(page)))
        return table.prefixes[page]

    def _share(self, table: BlockTable, num_pages: int) -> None:
        for group, pages in self._groups(table):
            first = group.first_visible(num_pages * PAGE_SIZE)
            pages.extend([NO_PAGE] * first)
            for prefix in table.prefixes[first:num_pages]:
                page = group.lookup(prefix)
                assert page is not None, "attach counted this page as cached"
                group.share(page)
                pages.append(page)
        table.num_published = num_pages
