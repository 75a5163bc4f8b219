"""What `musespark inspect --image` prints: how each family sees a picture, and what that costs in tokens.

The file is decoded and turned upright as the API does it, so a file that the API refuses is refused here, in its words.
No model is loaded; of a checkpoint folder only `config.json` is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from musespark.chat.image_files import read_header
from musespark.chat.images import CELL_SIZE, PATCH_SIZE, decode_image, plan_grid
from musespark.chat.tiles import TILE_SIDE, TOKENS_PER_TILE, count_tile_tokens, fitted_size, plan_tiles
from musespark.cli.image_file import read_image
from musespark.errors import ConfigError, InvalidImage
from musespark.model.config import ModelConfig, ModelType
from musespark.model.presets import PRESETS, preset

FAMILIES: tuple[ModelType, ...] = get_args(ModelType)
MARKERS = 2  # `<|image_start|>` and `<|image_end|>` around an image of the Muse families


@dataclass(frozen=True, slots=True)
class Tiles:
    """The canvas of Llama 4. With several tiles the whole picture comes once more, as one tile."""

    rows: int
    columns: int
    global_tile: bool


@dataclass(frozen=True, slots=True)
class View:
    """A picture as one family sees it.

    resized: (width, height) of the picture in pixels, without padding. patches: (rows, columns) of the grid that the
    tower reads at once, the whole picture or one tile. image_tokens carry features, prompt_tokens counts the markers
    and separators, too.
    """

    family: ModelType
    resized: tuple[int, int]
    patches: tuple[int, int]
    tiles: Tiles | None
    image_tokens: int
    prompt_tokens: int


def print_views(paths: Sequence[Path], model: str | None, *, as_json: bool) -> None:
    """Describe pictures for all families, or for that of `model`.

    Raises InvalidImage for a bad file, by its name, and for a model that reads text only; ConfigError for a bad model.
    """
    families = FAMILIES if model is None else (_family(model),)
    pictures = [(path, *_open(path)) for path in paths]
    if as_json:
        documents = [_document(path, kind, size, families) for path, kind, size in pictures]
        print(json.dumps({"model": model, "images": documents}))
        return
    console = Console()
    for path, kind, (width, height) in pictures:
        title = f"{path}: {kind}, {width:,} x {height:,} pixels"
        console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
        console.print(_table((width, height), families))
    console.print("Sizes are width x height; patches, for llama4 of a tile, and tiles are rows x columns.", style="dim")


def view(family: ModelType, width: int, height: int) -> View:
    """An upright picture of this many pixels, through the eyes of a family."""
    if family != "llama4":
        rows, columns = plan_grid(width, height)
        per_cell = CELL_SIZE // PATCH_SIZE
        return View(
            family,
            resized=(columns * CELL_SIZE, rows * CELL_SIZE),
            patches=(rows * per_cell, columns * per_cell),
            tiles=None,
            image_tokens=rows * columns,
            prompt_tokens=rows * columns + MARKERS,
        )
    rows, columns = plan_tiles(width, height)
    tiles = Tiles(rows, columns, global_tile=rows * columns > 1)
    return View(
        family,
        resized=fitted_size(width, height),
        patches=(TILE_SIDE // PATCH_SIZE,) * 2,
        tiles=tiles,
        image_tokens=(rows * columns + tiles.global_tile) * TOKENS_PER_TILE,
        prompt_tokens=count_tile_tokens(width, height),
    )


def _family(model: str) -> ModelType:
    """The family of a preset or a checkpoint folder that reads images."""
    is_folder = model not in PRESETS and Path(model).exists()
    config = ModelConfig.from_file(Path(model) / "config.json") if is_folder else preset(model)
    if config.image_tower is None:
        raise InvalidImage(f"{model} reads text only; it has no vision tower")
    if config.tile_vision is not None and config.tile_vision.image_size != TILE_SIDE:
        raise ConfigError(
            f"{model}: vision_config: image_size is {config.tile_vision.image_size}; images are cut into tiles of "
            f"{TILE_SIDE} pixels"
        )
    return config.model_type


def _open(path: Path) -> tuple[str, tuple[int, int]]:
    """The format of a file, and the (width, height) of its upright picture."""
    data = read_image(path.expanduser())
    try:
        return read_header(data).format, decode_image(data).size
    except InvalidImage as error:
        raise InvalidImage(f"{path}: {error.message}") from None


def _document(path: Path, kind: str, size: tuple[int, int], families: Sequence[ModelType]) -> dict[str, Any]:
    views = [asdict(view(family, *size)) for family in families]
    return {"file": str(path), "format": kind, "width": size[0], "height": size[1], "families": views}


def _table(size: tuple[int, int], families: Sequence[ModelType]) -> Table:
    table = Table(box=None)
    for name in ("family", "resized to", "patches", "tiles", "tokens", "in the prompt"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for family in families:
        seen = view(family, *size)
        table.add_row(
            family,
            f"{seen.resized[0]:,} x {seen.resized[1]:,}",
            f"{seen.patches[0]} x {seen.patches[1]}",
            _tiles(seen.tiles),
            f"{seen.image_tokens:,}",
            f"{seen.prompt_tokens:,}",
        )
    return table


def _tiles(tiles: Tiles | None) -> str:
    if tiles is None:
        return "-"
    return f"{tiles.rows} x {tiles.columns}" + (" + global" if tiles.global_tile else "")
