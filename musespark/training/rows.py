"""Rows: what one line of a batch is made of, and where rows come from.

Every row holds `sequence_length + 1` tokens of one or more documents. Document numbers (`segments`) keep attention from
crossing documents, `loss` says which tokens are learned: all of a text, only the assistant's of a chat. A source hands
out row number i again and again the same, so that a position in the data is one integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from musespark.chat.images import PatchedImage, load_image

PAD_SEGMENT = -1


@dataclass(frozen=True, slots=True)
class Row:
    tokens: np.ndarray  # (T + 1,) uint16
    segments: np.ndarray  # (T + 1,) int32, document numbers from 0; PAD_SEGMENT on padding
    loss: np.ndarray  # (T + 1,) bool: this token is to be predicted from the one before
    images: tuple[PatchedImage, ...]
    image_rows: np.ndarray  # (M,) int64, positions in the row that the images' cells take, in order
    image_answers: tuple[np.ndarray, ...]  # of each image, the tokens of the answer that follows it


class Source(Protocol):
    def __len__(self) -> int: ...

    def row(self, index: int, *, with_images: bool = True) -> Row: ...


class TextSource:
    """A long stream of documents, cut into rows; a document starts where its begin-of-text token is."""

    def __init__(self, path: Path, *, sequence_length: int, begin_token_id: int) -> None:
        self._tokens = np.load(path, mmap_mode="r")  # (N,) uint16
        self._length = sequence_length
        self._begin = begin_token_id

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._length

    def row(self, index: int, *, with_images: bool = True) -> Row:
        start = index * self._length
        tokens = np.asarray(self._tokens[start : start + self._length + 1])
        segments = np.cumsum(tokens == self._begin, dtype=np.int32)
        loss = np.ones(len(tokens), bool)
        loss[1:] = segments[1:] == segments[:-1]  # the first token of a document follows from nothing
        return Row(tokens, segments, loss, (), np.empty(0, np.int64), ())


class SampleSource:
    """Short samples (chats, pictures with their names), packed several to a row and padded at the end.

    The file holds tokens (N,) uint16, loss (N,) bool, offsets (S + 1,) and, for samples with pictures, the encoded
    pictures (bytes one after another) with their offsets and the sample each belongs to.
    """

    def __init__(
        self,
        path: Path,
        *,
        sequence_length: int,
        pad_token_id: int,
        patch_token_id: int,
        message_token_id: int,
        seed: int = 0,
    ) -> None:
        with np.load(path) as file:
            self._tokens, self._loss, self._offsets = file["tokens"], file["loss"], file["offsets"]
            self._image_bytes, self._image_offsets = file["image_bytes"], file["image_offsets"]
            self._image_index, self._image_sample = file["image_index"], file["image_sample"]
        self._length = sequence_length
        self._pad = pad_token_id
        self._patch = patch_token_id
        self._message = message_token_id
        self._cache: dict[int, PatchedImage] = {}
        self._rows = self._pack(seed)

    def __len__(self) -> int:
        return len(self._rows)

    def _pack(self, seed: int) -> list[np.ndarray]:
        """Samples per row: shuffled, then taken in order while they fit; one longer than a row is left out."""
        lengths = np.diff(self._offsets)
        rows: list[np.ndarray] = []
        current: list[int] = []
        used = 0
        for sample in np.random.default_rng(seed).permutation(len(lengths)):
            length = int(lengths[sample])
            if length > self._length + 1:
                continue
            if used + length > self._length + 1:
                rows.append(np.array(current))
                current, used = [], 0
            current.append(int(sample))
            used += length
        if current:
            rows.append(np.array(current))
        return rows

    def row(self, index: int, *, with_images: bool = True) -> Row:
        size = self._length + 1
        tokens = np.full(size, self._pad, np.uint16)
        segments = np.full(size, PAD_SEGMENT, np.int32)
        loss = np.zeros(size, bool)
        images: list[PatchedImage] = []
        end = 0
        for number, sample in enumerate(self._rows[index]):
            low, high = self._offsets[sample], self._offsets[sample + 1]
            start, end = end, end + int(high - low)
            tokens[start:end] = self._tokens[low:high]
            segments[start:end] = number
            loss[start:end] = self._loss[low:high]
            if with_images:
                images += self._images_of(int(sample))
        # The last token of a row is only a target: an image that reaches it is impossible, a chat ends with text.
        image_rows = np.flatnonzero(tokens == self._patch)
        answers = answers_after(image_rows, tokens, loss, self._message) if images else []
        return Row(tokens, segments, loss, tuple(images), image_rows, tuple(answers))

    def _images_of(self, sample: int) -> list[PatchedImage]:
        low, high = np.searchsorted(self._image_sample, [sample, sample + 1])
        return [self._image(int(self._image_index[k])) for k in range(low, high)]

    def _image(self, index: int) -> PatchedImage:
        if index not in self._cache:
            low, high = self._image_offsets[index], self._image_offsets[index + 1]
            image = load_image(self._image_bytes[low:high].tobytes())
            if image.num_tokens > 16:  # large pictures are decoded again each time, to keep memory small
                return image
            self._cache[index] = image
        return self._cache[index]


def answers_after(
    image_rows: np.ndarray, tokens: np.ndarray, loss: np.ndarray, message_token_id: int
) -> list[np.ndarray]:
    """For each run of image cells the body of the message that comes next, without its end token."""
    ends = image_rows[np.flatnonzero(np.diff(image_rows, append=len(tokens) + 1) > 1)]  # last cell of each image
    answers = []
    for end in ends:
        start = end + int(np.argmax(tokens[end:] == message_token_id)) + 1
        length = int(np.argmin(loss[start:])) or len(loss) - start
        answers.append(tokens[start : start + length - 1])
    return answers
