"""Image features, kept for the next request that shows the same image.

Least recently used first out, within a budget of bytes. Keyed by the organisation's salt as well as by the image:
whether somebody else has shown an image must not be visible in the time that it takes (CVE-2025-46570 for images).
"""

from __future__ import annotations

from collections import OrderedDict

from musespark.engine.request import Request
from musespark.engine.runner import Float32, Runner
from musespark.errors import EngineFailed


class ImageFeatures:
    """An LRU cache in front of `runner.encode_image`. It always keeps the newest image, however large."""

    def __init__(self, runner: Runner, max_bytes: int) -> None:
        self.size_bytes = 0
        self.num_encoded = 0
        self._runner = runner
        self._max_bytes = max_bytes
        self._features: OrderedDict[tuple[bytes, bytes], Float32] = OrderedDict()

    def get(self, request: Request, index: int) -> Float32:
        """Features (num_tokens, D) of one image of a request. Raises what the runner raises."""
        image = request.images[index]
        key = (request.salt, image.digest)
        known = self._features.get(key)
        if known is not None:
            self._features.move_to_end(key)
            return known
        features = self._runner.encode_image(image)
        expected = (image.num_tokens, self._runner.config.text.hidden_size)
        if features.shape != expected:
            raise EngineFailed(f"an image was encoded as {features.shape}, expected {expected}")
        self.num_encoded += 1
        self._features[key] = features
        self.size_bytes += features.nbytes
        while self.size_bytes > self._max_bytes and len(self._features) > 1:
            _, dropped = self._features.popitem(last=False)
            self.size_bytes -= dropped.nbytes
        return features
