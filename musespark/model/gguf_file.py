"""One file that is written in parts and replaces another when it is whole; a killed run's whole parts are kept.

Beside the target lie `.NAME.writing`, the bytes, and `.NAME.plan`, the notes: what is to become of it in the first
line, then the size of the file after each whole part. A size is noted when its bytes are on the disk, so that what the
notes say is there even after a power cut; what lies behind the last noted size is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from musespark.errors import CheckpointError
from musespark.model.checkpoint_folder import wait_until_on_disk

MAGIC = b"GGUF"


class BegunFile:
    """The file that is being written. Whoever writes it calls `note_part` after each part, with the file flushed."""

    def __init__(self, path: Path, notes: Path, plan: str) -> None:
        """plan: one line. num_parts are whole already; without one, neither file exists. Raises OSError."""
        assert "\n" not in plan, "the notes have one line for the plan"
        self.path, self._notes, self._plan = path, notes, plan
        sizes = self._sizes()
        if sizes:
            os.truncate(path, sizes[-1])
            _write(notes, "w", plan, *sizes)  # without a line that a kill has cut
        else:
            self.remove()
        self.num_parts = len(sizes)

    def note_part(self) -> None:
        """All that the file holds now is whole parts, one more than before."""
        wait_until_on_disk(self.path)
        size = self.path.stat().st_size
        if self.num_parts:
            _write(self._notes, "a", size)
        else:
            _write(self._notes, "w", self._plan, size)
        self.num_parts += 1

    def remove(self) -> None:
        """The notes first: bytes without notes are no danger, notes to other bytes would be."""
        self._notes.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _sizes(self) -> list[int]:
        """Sizes after each part, of a run with the same plan; none if its notes or bytes are not what it wrote."""
        try:
            plan, *lines, _ = self._notes.read_text(encoding="utf-8").split("\n")  # the last one is empty, or cut
            sizes = [int(line) for line in lines]
            is_ours = plan == self._plan and sizes == sorted(sizes) and sizes[-1] <= self.path.stat().st_size
        except (OSError, ValueError, IndexError):
            return []
        return sizes if is_ours else []


@contextmanager
def replacing_file(path: Path, *, plan: str) -> Iterator[BegunFile]:
    """A file to write, which takes the place of `path` when the block ends without an error.

    What a kill or a Ctrl-C leaves goes to the next block with the same plan; after an error nothing is left. There must
    be only one writer. Raises CheckpointError if `path` exists and is not a GGUF file, and for what goes wrong with the
    disk.
    """
    if path.exists() and not _is_gguf(path):
        raise CheckpointError(f"{path} exists and is not a GGUF file; it is not overwritten")
    begun: BegunFile | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = BegunFile(path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.plan"), plan)
        yield begun
        wait_until_on_disk(begun.path)
        begun.path.replace(path)
        begun.remove()
        wait_until_on_disk(path.parent)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if begun is not None:
            begun.remove()
        if isinstance(error, OSError):
            raise CheckpointError(f"{path} can't be written: {error.strerror or error}") from None
        raise


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _write(path: Path, mode: str, *lines: str | int) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
