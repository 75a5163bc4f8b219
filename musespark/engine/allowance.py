"""How many tokens a request may generate, as paid for so far: raised while it runs, kept to exactly.

The caller (who holds the money) grants; the engine only reads. A request that has used up what was granted pauses until
more comes; where no more will come (`final`), its choices end with finish_reason "budget".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musespark.engine.request import Usage


class Allowance:
    """Generated tokens of all choices of one request together. Any thread may grant; grants only grow.

    Raises ValueError for a total below what was granted before, and for any grant after a final one.
    """

    def __init__(self, granted: int, final: bool = False) -> None:
        if granted < 0:
            raise ValueError(f"an allowance is {granted:,} tokens; it can't be negative")
        self._state = (granted, granted, final)  # replaced as one, so that it may be read without the lock
        self._lock = threading.Lock()
        self._listener: Callable[[], None] | None = None
        # Set by the engine: what the request has used by now. From another thread it may be a token behind.
        self.usage: Callable[[], Usage] | None = None

    @property
    def granted(self) -> int:
        """The total that is paid for."""
        return self._state[0]

    @property
    def last_grant(self) -> int:
        """How much the newest grant added."""
        return self._state[1]

    @property
    def final(self) -> bool:
        """Whether nothing will be granted any more."""
        return self._state[2]

    def grant(self, total: int, *, final: bool = False) -> None:
        """`total` tokens are paid for now, those of before among them. It has no effect on a request that has ended."""
        with self._lock:
            granted, last_grant, was_final = self._state
            if was_final or total < granted:
                problem = "nothing can follow a final grant" if was_final else "what was granted can't be taken back"
                raise ValueError(f"{total:,} tokens were granted after {granted:,}; {problem}")
            # A total that stays the same is no news to ask about again: it only says whether more will come.
            self._state = (total, total - granted or last_grant, final)
            listener = self._listener
        if listener is not None:
            listener()

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Have `listener` called after each grant, in the thread that grants. One at a time; None: no more."""
        with self._lock:
            self._listener = listener
