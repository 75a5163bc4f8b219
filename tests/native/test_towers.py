"""The image towers of the three families against the torch networks, which are held to transformers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musespark.chat.images import PatchedImage, patch_image
from musespark.chat.tiles import tile_image
from musespark.engine.native import NativeRunner, available_isas
from musespark.errors import ConfigError, EngineFailed
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.network import Network, build_network
from musespark.model.network.layers import Linear
from tests.chat.image_samples import picture as drawing
from tests.model.network.builders import picture
from tests.native.runners import Stream, batch_of, native
from tests.native.towers import FAMILIES, images_for, random_tower, reference_features

ISAS = available_isas()
PEAK_MEMORY = Path("/proc/self/clear_refs")


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to float rounding, in units of the features' own size."""
    assert got.shape == expected.shape
    scale = np.sqrt((expected**2).mean())
    assert np.abs(got - expected).max() < 1e-4 * scale


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_reference(family: str, seed: int, isa: str) -> None:
    """Heads, widths, layers, windows, tile sizes and grids of many kinds."""
    network = random_tower(family, seed)
    runner = native(network, isa=isa)
    images = images_for(network, seed)
    for image, expected in zip(images, reference_features(network, images), strict=True):
        assert_close(runner.encode_image(image), expected)


@pytest.mark.parametrize("family", ["muse_spark", "muse_glimmer"])
@pytest.mark.parametrize("grid", [(2, 2), (2, 40), (40, 2), (18, 26), (34, 66)], ids=str)
def test_grids_of_any_shape_in_both_orders_of_the_position_table(family: str, grid: tuple[int, int]) -> None:
    """Windows are ragged at the right and bottom, and the border of the table fades."""
    network = random_tower(family, 11)
    image = picture(*grid)
    runner = native(network, num_threads=2)
    (expected,) = reference_features(network, [image])
    for _ in range(2):  # the second time over the memory of the first
        assert_close(runner.encode_image(image), expected)
        runner.encode_image(picture(6, 10))


def test_the_two_muse_towers_differ_in_the_order_of_positions_only() -> None:
    """On a square grid the same weights give the same features in both; on others they do not."""
    glimmer, spark = random_tower("muse_glimmer", 4), random_tower("muse_spark", 4)
    theirs = {name: tensor for name, tensor in glimmer.state_dict().items() if ".vision_" in name}
    assert not spark.load_state_dict(theirs, strict=False).unexpected_keys
    one, two = native(glimmer), native(spark)
    assert np.array_equal(one.encode_image(picture(10, 10)), two.encode_image(picture(10, 10)))
    assert np.abs(one.encode_image(picture(4, 10)) - two.encode_image(picture(4, 10))).max() > 1e-2


@pytest.fixture(scope="module")
def published_tile() -> Network:
    """The tile of 24 x 24 patches and the heads of 88 channels that Llama 4 has, in two layers of two heads."""
    return random_tower(
        "llama4",
        0,
        hidden_size=176,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=336,
    )


@pytest.mark.parametrize(
    ("size", "num_tiles"), [((300, 200), 1), ((640, 300), 3), ((672, 672), 5), ((1000, 1000), 10), ((1, 2000), 7)]
)
def test_pictures_of_any_number_of_tiles(published_tile: Network, size: tuple[int, int], num_tiles: int) -> None:
    """Each tile is encoded alone here and all at once there: tiles do not see each other."""
    tiles = tile_image(drawing(*size)).tiles
    assert len(tiles) == num_tiles
    runner = native(published_tile)
    with torch.no_grad():
        expected = published_tile.encode_images(tiles)
    for tile, wanted in zip(tiles, expected, strict=True):
        assert_close(runner.encode_image(tile), wanted.numpy())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_number_of_threads_changes_nothing(family: str, precision: str, isa: str) -> None:
    network = random_tower(family, 3)
    images = images_for(network, 3)
    results = []
    for num_threads in (1, 2, 3, 4):
        runner = native(network, precision=precision, isa=isa, num_threads=num_threads)
        results.append([runner.encode_image(image) for image in images])
    for result in results[1:]:
        for got, first in zip(result, results[0], strict=True):
            assert np.array_equal(got, first)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_in_pieces_beside_others_and_a_text_gives_the_same_bits(family: str, isa: str) -> None:
    """Two images and decode steps in turns, one unit at a time."""
    network = random_tower(family, 4)
    images = images_for(network, 4)
    runner = native(network, precision="bf16", isa=isa, num_threads=2)
    whole = [runner.encode_image(image) for image in images]
    started = [runner.start_image(image) for image in images]
    before = runner.forward(batch_of(Stream([20, 21, 22], [0])))
    while any(encoding.progress < 1 for encoding in started):
        shares = [encoding.progress for encoding in started]
        done = [encoding.run(budget_s=0.0) for encoding in started]
        assert all(new.progress > old or old == 1.0 for new, old in zip(started, shares, strict=True))
        assert all((features is not None) == (e.progress == 1.0) for e, features in zip(started, done, strict=True))
        assert np.array_equal(runner.forward(batch_of(Stream([20, 21, 22], [0]))), before)
    for encoding, expected in zip(started, whole, strict=True):
        features = encoding.run()  # once more, after the end
        assert features is not None
        assert np.array_equal(features, expected)


@pytest.mark.parametrize("family", ["muse_spark", "muse_glimmer"])
def test_rows_that_are_worked_on_apart_see_each_other(family: str) -> None:
    """1,736 patches of a narrow tower are three units of rows, whose borders lie inside windows and pages."""
    network = random_tower(family, 4)
    image = picture(62, 28, 1)
    encoding = native(network).start_image(image)
    assert encoding.run(budget_s=0.0) is None
    tower = network.config.image_tower
    assert tower is not None
    assert encoding.progress == 1 / (3 * (1 + 2 * tower.num_hidden_layers) + 1)
    features = encoding.run()
    assert features is not None
    assert_close(features, *reference_features(network, [image]))


def test_an_image_that_was_started_ends_with_its_runner() -> None:
    network = random_tower("muse_spark", 4)
    runner = native(network)
    encoding = runner.start_image(images_for(network, 4)[0])
    assert encoding.run(budget_s=0.0) is None
    with pytest.raises(ValueError, match="another model"):
        native(network).continue_image(encoding._started, 1.0)
    runner.close()
    with pytest.raises(EngineFailed):
        encoding.run()


@torch.no_grad()
def torch_in_bf16(network: Network, images: list[PatchedImage]) -> list[np.ndarray]:
    """What torch makes of the network with its matrices, and what is added behind them, in bfloat16."""
    coarse = build_network(network.config).eval()
    coarse.load_state_dict(network.state_dict())
    for module in coarse.modules():
        if isinstance(module, Linear):
            module.bfloat16()
    return [coarse.encode_images([image])[0].float().numpy() for image in images]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_near_to_float32_as_torch_in_bf16(family: str, isa: str) -> None:
    for seed in (1, 2):
        network = random_tower(family, seed)
        images = images_for(network, seed)
        runner = native(network, precision="bf16", isa=isa)
        expected, coarse = reference_features(network, images), torch_in_bf16(network, images)
        for image, exact, theirs in zip(images, expected, coarse, strict=True):
            error, allowed = (np.sqrt(((x - exact) ** 2).mean()) for x in (runner.encode_image(image), theirs))
            assert error < 1.5 * allowed


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_that_is_not_finite_leaves_nothing_behind(family: str) -> None:
    network = random_tower(family, 2)
    image = images_for(network, 2)[0]
    runner = native(network)
    before = runner.encode_image(image)
    broken = replace(image, patches=np.full_like(image.patches, np.nan))
    assert np.isnan(runner.encode_image(broken)).all()
    assert np.array_equal(runner.encode_image(image), before)


@pytest.mark.parametrize("grid", [(2, 4), (4, 2), (6, 6), (0, 0)], ids=str)
def test_a_tile_of_another_size_is_refused_by_both_sizes(grid: tuple[int, int]) -> None:
    runner = native(random_tower("llama4", 0, image_size=56))
    image = replace(picture(2, 2), grid=grid, patches=np.zeros((grid[0] * grid[1], 588), np.float32))
    message = "patches must be" if grid == (0, 0) else f"has 4 x 4 patches; this image has {grid[0]} x {grid[1]}"
    with pytest.raises(ValueError, match=message):
        runner.encode_image(image)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_for_other_patches_is_refused_before_it_is_loaded(family: str, tmp_path: Path) -> None:
    network = random_tower(family, 0)
    save_checkpoint(tmp_path / "model", network.config, network.state_dict())
    checkpoint = open_checkpoint(tmp_path / "model")
    name = "tile_vision" if family == "llama4" else "vision"
    tower = replace(getattr(checkpoint.config, name), patch_size=16)
    checkpoint.config = replace(checkpoint.config, **{name: tower})
    with pytest.raises(ConfigError, match=r"patches of 16 pixels, .* cut into patches of 14 pixels"):
        NativeRunner(checkpoint, num_full_pages=1, num_sliding_pages=1)


@pytest.fixture
def peak_memory() -> None:
    if not PEAK_MEMORY.exists():
        pytest.skip("this system does not say how much memory a process had at the most")
    with suppress(OSError):
        PEAK_MEMORY.write_text("5")  # from now on


def peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.usefixtures("peak_memory")
def test_the_largest_picture_takes_memory_for_its_patches_and_not_for_pairs_of_them() -> None:
    """16,384 patches that all see each other: their pairs would take 1 GiB a head."""
    everything = {"num_hidden_layers": 1, "layer_types": ("full_attention",)}
    network = random_tower("muse_spark", 0, hidden_size=8, num_attention_heads=1, **everything)
    image = patch_image(drawing(1792, 1792))
    assert image.grid == (128, 128)
    runner = native(network)
    before = peak_bytes()
    runner.encode_image(image)
    assert peak_bytes() - before < 128 << 20
