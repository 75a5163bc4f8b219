"""Names of prefixes: which sequences have the same first 64, 128, 192 … tokens, so that they may share pages.

A `Prefix` is a node of a tree: its parent is the prefix one page shorter, its content the tokens of its own page and
the images whose rows lie there. Nodes are found by a chained sha256 that starts from the organisation's salt, and
then compared by content, so that even a collision gives no hit: equal prefixes are one and the same object, and
everything above this file compares objects. A node lives as long as a page, a sequence or a longer prefix refers to
it.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from weakref import WeakValueDictionary

from musespark.engine.request import Request
from musespark.engine.runner import PAGE_SIZE


class Prefix:
    """One prefix. Equality is identity."""

    __slots__ = ("__weakref__", "content", "digest", "parent")

    def __init__(self, digest: bytes, parent: Prefix | None, content: bytes) -> None:
        self.digest = digest
        self.parent = parent
        self.content = content


class PrefixTree:
    """All prefixes in use. One thread."""

    def __init__(self) -> None:
        self._nodes: WeakValueDictionary[bytes, Prefix] = WeakValueDictionary()

    def root(self, salt: bytes) -> Prefix:
        """The empty prefix of an organisation; under another salt nothing is equal."""
        return self._node(None, salt)

    def child(self, parent: Prefix, content: bytes) -> Prefix:
        """`parent` longer by one page of `content`."""
        return self._node(parent, content)

    def _node(self, parent: Prefix | None, content: bytes) -> Prefix:
        digest = self._digest(b"root" if parent is None else parent.digest, content)
        known = self._nodes.get(digest)
        if known is None:
            known = self._nodes[digest] = Prefix(digest, parent, content)
        elif known.parent is not parent or known.content != content:
            return Prefix(digest, parent, content)  # a collision: a node nobody else can find, so nothing is shared
        return known

    @staticmethod
    def _digest(parent: bytes, content: bytes) -> bytes:
        return hashlib.sha256(parent + content).digest()


def tokens_between(prompt: Sequence[int], generated: Sequence[int], start: int, end: int) -> Sequence[int]:
    """Positions [start, end) of a prompt and what follows it, without a copy of either."""
    num_prompt = len(prompt)
    if end <= num_prompt:
        return prompt[start:end]
    if start >= num_prompt:
        return generated[start - num_prompt : end - num_prompt]
    return [*prompt[start:], *generated[: end - num_prompt]]


def page_content(request: Request, generated: Sequence[int], page: int) -> bytes:
    """What distinguishes page number `page` (a complete one) of a sequence: its 64 token ids and its images.

    The rows of all images carry the same token id, so each image with rows in the page adds its digest. Which rows they
    are follows: a digest covers the image's size, and images fill the image rows of a prompt without a gap.
    """
    first, end = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
    content = array("i", tokens_between(request.prompt, generated, first, end)).tobytes()
    spans = request.image_spans
    at = bisect_right(spans, first, key=lambda span: span[1])  # the first image that ends after the page's start
    while at < len(spans) and spans[at][0] < end:
        content += request.images[at].digest
        at += 1
    return content
