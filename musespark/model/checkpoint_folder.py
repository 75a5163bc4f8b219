"""The files of a checkpoint folder: which of them hold weights, and replacing the whole folder in one step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from musespark.errors import CheckpointError
from musespark.model.json_file import read_json_object, show
from musespark.model.manifest import MANIFEST, check_file, read_manifest, write_manifest
from musespark.model.tensor_file import TensorFile

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pickle", ".pkl")
MAX_INDEX_BYTES = 64 << 20
PLAN_FILE = ".plan"  # in a folder that is being written: what is to become of it
MAX_SHARDS = 4096


def refuse_pickle(path: Path | str) -> None:
    """Raises CheckpointError for the names under which pickled weights travel: opening one may run code."""
    if Path(path).suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{show(str(path))} is a pickle by its name: opening one may run code, so it is never read; "
            "convert the weights to safetensors"
        )


def open_weights(folder: Path, *, check_while_reading: bool = False) -> dict[str, TensorFile]:
    """Tensor name -> the open file that holds it, from the one file or from the shards that the index lists.

    Raises CheckpointError for a file that is not whole, or is not what the folder's checksums say. check_while_reading:
    the files with tensors are not read for that now, see `FileReader.expect`.
    """
    tensors = _open_files(folder)
    files = {file.path.name: file for file in tensors.values()}
    for name, digest in read_manifest(folder).items():
        if check_while_reading and name in files:
            files[name].reader.expect(digest)
        else:
            check_file(folder / name, digest)
    return tensors


def _open_files(folder: Path) -> dict[str, TensorFile]:
    if (folder / INDEX_FILE).exists():
        if (folder / WEIGHTS_FILE).exists():
            raise CheckpointError(
                f"{folder} holds both {WEIGHTS_FILE} and {INDEX_FILE}; remove the one that is out of date"
            )
        return _open_shards(folder)
    if (folder / WEIGHTS_FILE).exists():
        file = TensorFile(folder / WEIGHTS_FILE)
        return dict.fromkeys(file.entries, file)
    for path in sorted(folder.iterdir()):
        refuse_pickle(path)
    raise CheckpointError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _open_shards(folder: Path) -> dict[str, TensorFile]:
    try:
        index = read_json_object(folder / INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    except ValueError as error:
        raise CheckpointError(f"{folder / INDEX_FILE}: {error}") from None
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{INDEX_FILE} must hold an object named weight_map")
    names = sorted({_shard_name(value) for value in index.values()})
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{INDEX_FILE} lists {len(names):,} files; at most {MAX_SHARDS:,} are read")
    tensors: dict[str, TensorFile] = {}
    for shard in names:
        file = TensorFile(folder / shard)
        for name in file.entries:
            if index.get(name) != shard:
                raise CheckpointError(
                    f"tensor {show(name)} is in {shard}, but {INDEX_FILE} has it in {show(index.get(name))}"
                )
            tensors[name] = file
    for name, shard in index.items():
        if name not in tensors:
            raise CheckpointError(f"tensor {show(name)} is not in {shard}, where {INDEX_FILE} has it")
    return tensors


def _shard_name(value: Any) -> str:
    """A plain file name inside the folder: no path, no parent, nothing but safetensors."""
    if isinstance(value, str):
        refuse_pickle(value)
        if value.endswith(".safetensors") and value.isprintable() and not set(value) & set('/\\:"') and value[0] != ".":
            return value
    raise CheckpointError(
        f"{INDEX_FILE} lists {show(value)}; it must be the name of a .safetensors file in the same folder"
    )


@contextmanager
def replacing_folder(folder: Path, *, plan: str | None = None) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when the block ends without an error.

    A reader sees the old folder or the new one. After a crash in the moment between the two renames the old one lies
    beside it as `.NAME.replaced`; what a crash left in `.NAME.writing` goes at the next try, so there must be only one
    writer. With a `plan`, what a kill or a Ctrl-C left there is kept and given to the next block with the same plan,
    which must know its whole files from cut ones. Else it begins empty. Raises CheckpointError if `folder` exists and
    is not a checkpoint.
    """
    if (
        folder.exists()
        and not (folder / "config.json").is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise CheckpointError(f"{folder} exists and is not a checkpoint (it has no config.json); it is not overwritten")
    new = folder.with_name(f".{folder.name}.writing")
    old = folder.with_name(f".{folder.name}.replaced")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if plan is None or _plan_in(new) != plan:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            if plan is not None:
                (new / PLAN_FILE).write_text(plan, encoding="utf-8")
        yield new
        (new / PLAN_FILE).unlink(missing_ok=True)
        write_manifest(new)
        for path in new.iterdir():
            wait_until_on_disk(path)
        wait_until_on_disk(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        wait_until_on_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except KeyboardInterrupt:
        if plan is None:
            shutil.rmtree(new, ignore_errors=True)
        raise
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{folder} can't be written: {error.strerror or error}") from None
        raise


def _plan_in(folder: Path) -> str | None:
    try:
        return (folder / PLAN_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def need_space(path: Path, size: int) -> None:
    """Raises CheckpointError unless the disk that `path` is or will be on has `size` bytes free."""
    place = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise CheckpointError(
            f"{path} can't be written: it takes {size / 1e9:,.1f} GB and the disk has {free / 1e9:,.1f} GB free"
        )


def copy_other_files(source: Path, target: Path, *, leave_out: Collection[str] = ()) -> None:
    """All but the weights and config.json: tokenizer, chat settings, card. Pickles and hidden files are left behind."""
    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", *PICKLE_SUFFIXES) or path.name in (INDEX_FILE, MANIFEST)
        wanted = path.name not in ("config.json", *leave_out) and not path.name.startswith(".")
        if path.is_file() and not weights and wanted:
            write_file(target / path.name, path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, content: bytes | str | Path) -> None:
    """`content`, or a copy of the file that it names."""
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def wait_until_on_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
