"""A prompt, and the writer that makes one: control tokens by name, all else as text that can't become control."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from musespark.chat.images import PatchedImage
from musespark.chat.messages import Text
from musespark.chat.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine takes: image i fills the `<|patch|>` rows `image_spans[i]` = [start, end) of `token_ids`."""

    token_ids: list[int]
    images: tuple[PatchedImage, ...] = ()
    image_spans: tuple[tuple[int, int], ...] = ()


class PromptWriter:
    """Collects a prompt, run by run."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._images: list[PatchedImage] = []
        self._spans: list[tuple[int, int]] = []

    def control(self, name: str) -> None:
        self._token_ids.append(self._tokenizer.special(name))

    def text(self, text: str) -> None:
        self._token_ids += self._tokenizer.encode(text)

    def rows(self, image: PatchedImage) -> None:
        """The rows that `image` will fill."""
        start = len(self._token_ids)
        self._token_ids += [self._tokenizer.special("<|patch|>")] * image.num_tokens
        self._images.append(image)
        self._spans.append((start, len(self._token_ids)))

    def parts(self, parts: Iterable[object], write_image: Callable[[], None], *, before: str = "") -> None:
        """Texts, and `write_image` for every other part. Texts side by side are one run: "1" and "2" read as "12".

        `before` belongs to the first run.
        """
        run = before
        for part in parts:
            if isinstance(part, Text):
                run += part.text
            else:
                self.text(run)
                run = ""
                write_image()
        self.text(run)

    def prompt(self) -> Prompt:
        return Prompt(self._token_ids, tuple(self._images), tuple(self._spans))
