"""`musespark inspect --image`: what a picture becomes in each family, and how other files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from musespark.chat.images import load_image, patch_image
from musespark.chat.tiles import count_tile_tokens, load_tiles, tile_image
from musespark.cli.inspect_image import print_views, view
from musespark.errors import ConfigError, InvalidImage, MuseSparkError
from musespark.model.presets import preset
from tests.chat.image_samples import encoded, picture, png_header

MUSESPARK = Path(sys.executable).with_name("musespark")


def seen(capsys: pytest.CaptureFixture[str], *paths: Path, model: str | None = None) -> list[dict[str, Any]]:
    """What --json says of each picture."""
    print_views(paths, model, as_json=True)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["model"] == model
    images: list[dict[str, Any]] = document["images"]
    return images


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(encoded(picture(640, 480), "JPEG"))
    return tmp_path / "photo.jpg"


def test_a_photo_in_all_families_as_a_table_and_as_json(photo: Path) -> None:
    """640 x 480: 391 tokens is the published count; a canvas of 2 x 2 tiles is the smallest that enlarges it."""
    done = subprocess.run(
        [MUSESPARK, "inspect", "--image", photo], capture_output=True, text=True, check=True, env={"COLUMNS": "120"}
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][-5:] == ["JPEG,", "640", "x", "480", "pixels"]
    assert ["muse_spark", "644", "x", "476", "34", "x", "46", "-", "391", "393"] in rows
    assert ["muse_glimmer", "644", "x", "476", "34", "x", "46", "-", "391", "393"] in rows
    tile = ["24", "x", "24", "2", "x", "2", "+", "global"]
    assert ["llama4", "640", "x", "480", *tile, "720", "727"] in rows

    done = subprocess.run(
        [MUSESPARK, "inspect", "llama-4-scout", "--json", "--image", photo], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {
        "model": "llama-4-scout",
        "images": [
            {
                "file": str(photo),
                "format": "JPEG",
                "width": 640,
                "height": 480,
                "families": [
                    {
                        "family": "llama4",
                        "resized": [640, 480],
                        "patches": [24, 24],
                        "tiles": {"rows": 2, "columns": 2, "global_tile": True},
                        "image_tokens": 720,
                        "prompt_tokens": 727,
                    }
                ],
            }
        ],
    }


@pytest.mark.parametrize("size", [(1, 1), (336, 336), (640, 480), (1, 700), (900, 3), (2000, 60), (1500, 1400)])
def test_what_is_said_is_what_the_pictures_become(size: tuple[int, int]) -> None:
    image = picture(*size)
    patched, tiled = patch_image(image), tile_image(image)
    for family in ("muse_spark", "muse_glimmer"):
        muse = view(family, *size)
        assert (muse.patches, muse.image_tokens, muse.prompt_tokens) == (
            patched.grid,
            patched.num_tokens,
            patched.num_tokens + 2,
        )
        assert muse.resized == (14 * patched.grid[1], 14 * patched.grid[0])
    llama = view("llama4", *size)
    assert llama.tiles is not None
    assert (llama.tiles.rows, llama.tiles.columns) == tiled.grid
    assert llama.tiles.global_tile == (len(tiled.tiles) > 1)
    assert llama.patches == tiled.tiles[0].grid
    assert llama.image_tokens == sum(tile.num_tokens for tile in tiled.tiles)
    assert llama.prompt_tokens == count_tile_tokens(*size)


def test_the_table_of_the_docs_is_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 8
    for pixels, family, *rest in rows:
        width, height = (int(number.replace(",", "")) for number in pixels.split(" x "))
        Image.new("1", (width, height)).save(tmp_path / "a.png")
        print_views([tmp_path / "a.png"], None, as_json=False)
        printed = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [family, *" ".join(rest).split()] in printed


def test_a_picture_that_lies_on_its_side_is_turned_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(encoded(picture(600, 300), "JPEG", exif=exif))
    (document,) = seen(capsys, tmp_path / "turned.jpg", model="toy")
    assert (document["width"], document["height"]) == (300, 600)
    assert document["families"][0]["resized"] == [308, 616]  # 11 x 22 cells have exactly its shape


def test_several_pictures_for_the_family_of_a_folder(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(preset("toy-glimmer").to_dict()))
    documents = seen(capsys, photo, photo, model=str(tmp_path / "model"))
    assert [[row["family"] for row in document["families"]] for document in documents] == [["muse_glimmer"]] * 2


def test_names_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "[red]a.png"
    file.write_bytes(encoded(picture(28, 28), "PNG"))
    print_views([file], None, as_json=False)
    assert "[red]a.png" in capsys.readouterr().out.replace("\n", "")


BAD = {
    "nothing": b"",
    "text": b"this is not an image",
    "truncated png": encoded(picture(200, 200), "PNG")[:-3000],
    "truncated jpeg": encoded(picture(200, 200), "JPEG")[:200],
    "too many pixels": png_header(65_535, 65_535),
    "a side of 65,536": png_header(65_536, 1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_the_words_of_the_api_and_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(BAD[name])
    for load in (load_image, lambda data: load_tiles([data])):
        with pytest.raises(InvalidImage) as expected:
            load(BAD[name])
        with pytest.raises(InvalidImage) as refused:
            print_views([tmp_path / "bad.png"], None, as_json=True)
        assert refused.value.message == f"{tmp_path / 'bad.png'}: {expected.value.message}"


@pytest.mark.parametrize("path", ["no-such.png", "/dev/zero", "https://example.com/a.png"])
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(InvalidImage, match=r"is not a file|not fetched"):
        print_views([Path(path)], None, as_json=True)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("avocado-nano", InvalidImage, "avocado-nano reads text only"),
        ("toy-llama4", ConfigError, r"toy-llama4: vision_config: image_size is \d+; .* tiles of 336 pixels"),
        ("no-such-model", ConfigError, "no-such-model"),
    ],
)
def test_a_model_that_can_not_see_it_is_refused(
    photo: Path, model: str, error: type[MuseSparkError], message: str
) -> None:
    with pytest.raises(error, match=message):
        print_views([photo], model, as_json=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "name a preset or a checkpoint folder"), (["--image", "x.png", "--context", "5"], "say nothing about")],
)
def test_inspect_without_a_model_or_with_options_of_no_effect_says_so(arguments: list[str], sentence: str) -> None:
    done = subprocess.run(
        [MUSESPARK, "inspect", *arguments], capture_output=True, text=True, check=False, env={"COLUMNS": "200"}
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""
