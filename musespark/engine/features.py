"""Image features: made a piece at a time, and kept for the next request that shows the same image.

A large picture takes seconds, so each step works on it for a while only; one is open at a time, and whoever shows
another waits for it. Of those that are done the least recently used goes first, within a budget of bytes. Keyed by the
organisation's salt as well as by the image (whose digest covers size, grid and pixels): whether somebody else has shown
an image must not be visible in the time that it takes (CVE-2025-46570 for images).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from musespark.engine.request import Request
from musespark.engine.runner import Float32, ImageEncoding, Runner
from musespark.errors import EngineFailed

log = logging.getLogger(__name__)

Key = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Open:
    """The picture that is being encoded, and the request that it is for."""

    key: Key
    request_id: str
    num_tokens: int
    encoding: ImageEncoding


class ImageFeatures:
    """An LRU cache in front of `runner.start_image`. It always keeps the newest image, however large."""

    def __init__(self, runner: Runner, max_bytes: int, clock: Callable[[], float]) -> None:
        self.size_bytes = 0
        self.num_encoded = 0
        self._runner = runner
        self._max_bytes = max_bytes
        self._clock = clock
        self._features: OrderedDict[Key, Float32] = OrderedDict()
        self._open: _Open | None = None
        self._deadline_s = 0.0
        self._has_worked = False

    @property
    def is_busy(self) -> bool:
        """Whether a picture is half done."""
        return self._open is not None

    def begin_step(self, budget_s: float) -> None:
        """From now on pictures may take about so long, and at least one piece."""
        self._deadline_s = self._clock() + budget_s
        self._has_worked = False

    def get(self, request: Request, index: int) -> Float32 | None:
        """Features (num_tokens, D) of one image of a request; None if that takes longer than this step has.

        Raises what the runner raises.
        """
        image = request.images[index]
        key = (request.salt, image.digest)
        known = self._features.get(key)
        if known is not None:
            self._features.move_to_end(key)
            return known
        if self._open is not None and self._open.key != key and not self._finish_other():
            return None
        if self._open is None and self._may_work:
            self._open = _Open(key, request.id, image.num_tokens, self._runner.start_image(image))
        try:
            return self._work()
        except BaseException:
            self._open = None
            raise

    def forget_request(self, request_id: str) -> None:
        """It has ended: a picture that was for it alone is given up."""
        if self._open is not None and self._open.request_id == request_id:
            self._open = None

    @property
    def _may_work(self) -> bool:
        return not self._has_worked or self._clock() < self._deadline_s

    def _finish_other(self) -> bool:
        """Go on with somebody else's picture; whether it is out of the way."""
        try:
            return self._work() is not None
        except Exception:  # who shows it will start it again, and hear of it
            log.exception("a picture of another request can't be encoded")
            self._open = None
            return True

    def _work(self) -> Float32 | None:
        if self._open is None or not self._may_work:
            return None
        self._has_worked = True
        features = self._open.encoding.run(max(0.0, self._deadline_s - self._clock()))
        if features is None:
            return None
        done, self._open = self._open, None
        expected = (done.num_tokens, self._runner.config.text.hidden_size)
        if features.shape != expected:
            raise EngineFailed(f"an image was encoded as {features.shape}, expected {expected}")
        self.num_encoded += 1
        self._features[done.key] = features
        self.size_bytes += features.nbytes
        while self.size_bytes > self._max_bytes and len(self._features) > 1:
            _, dropped = self._features.popitem(last=False)
            self.size_bytes -= dropped.nbytes
        return features
