"""The image tower's traps, one test each, and how images meet the text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from musespark.chat.images import PatchedImage
from musespark.model.config import ModelConfig, VisionConfig
from musespark.model.network import MuseSpark
from musespark.model.network.vision import (
    PatchEmbedder,
    VisionAdapter,
    VisionTower,
    merge_cells,
    resample_table,
    window_order,
)
from tests.model.network.builders import IMAGE_TOKEN, picture, random_config, random_network

PUBLISHED = ModelConfig.from_dict({"model_type": "muse_spark", "text_config": {}, "vision_config": {}}).vision


def small_vision() -> VisionConfig:
    config = random_config(0).vision
    assert config is not None
    return config


def coordinates(grid: tuple[int, int], side: int = 32) -> list[tuple[float, float]]:
    """What each patch of a grid reads from a table that holds its own (row, column) coordinates."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    table = torch.stack((rows, columns), dim=-1).flatten(0, 1).float()
    return [(float(r), float(c)) for r, c in resample_table(table, grid)]


def images_and_ids(images: list[PatchedImage]) -> torch.Tensor:
    ids = [20, 21]
    for image in images:
        ids += [IMAGE_TOKEN] * image.num_tokens + [22]
    return torch.tensor([ids])


@torch.no_grad()
def test_trap_15_every_input_row_has_unit_mean_square_and_image_rows_are_not_normed_again() -> None:
    network = random_network(random_config(3, rms_norm_eps=1e-7))  # so that the eps does not show in small features
    images = [picture(4, 6), picture(2, 2)]
    ids = images_and_ids(images)
    rows = network.embed(ids, images)
    assert rows.pow(2).mean(-1).sqrt().sub(1).abs().max() < 1e-3
    # Features twice as long stay twice as long: a second norm would shorten them.
    long = [2 * features for features in network.encode_images(images)]
    assert torch.equal(network.embed(ids, long)[ids == IMAGE_TOKEN], torch.cat(long))


def test_trap_16_the_position_table_is_read_in_the_scrambled_order_of_the_published_weights() -> None:
    expected = [
        (3.5, 7.5),
        (3.5, 23.5),
        (11.5, 7.5),
        (11.5, 23.5),
        (19.5, 7.5),
        (19.5, 23.5),
        (27.5, 7.5),
        (27.5, 23.5),
    ]
    assert coordinates((2, 4)) == expected
    assert coordinates((2, 2)) == [(7.5, 7.5), (7.5, 23.5), (23.5, 7.5), (23.5, 23.5)]  # a square grid is in order


def test_trap_17_merged_cells_are_channel_major() -> None:
    """Entry c·4 + dy·2 + dx of a cell; each synthetic feature says its channel and its patch."""
    patch = torch.arange(24)[:, None]
    hidden = (torch.arange(3) * 1000 + patch).float()  # a 4 × 6 grid of 3 channels
    cells = merge_cells(hidden, (4, 6), 2)
    assert cells.shape == (6, 12)
    assert cells[0].tolist() == [0, 1, 6, 7, 1000, 1001, 1006, 1007, 2000, 2001, 2006, 2007]
    assert cells[5].tolist() == [16, 17, 22, 23, 1016, 1017, 1022, 1023, 2016, 2017, 2022, 2023]


@torch.no_grad()
def test_trap_18_a_still_image_is_two_equal_frames() -> None:
    embedder = PatchEmbedder(small_vision())
    weight = embedder.patch_embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    embedder.position_embedding_table.weight.zero_()
    colours = torch.tensor([0.5, -0.25, 1.0]).repeat_interleave(196)  # flattened (c, y, x)
    both_frames = torch.cat((colours, colours))
    out = embedder(colours.expand(4, -1), [(2, 2)])
    torch.testing.assert_close(out, (weight @ both_frames).expand(4, -1), rtol=1e-4, atol=1e-4)


def test_trap_19_vision_angles_count_from_one_and_the_column_comes_first() -> None:
    """Every angle of a 3 × 5 grid from the formula: ((column + 1)·f, (row + 1)·f)."""
    config = small_vision()
    pairs = config.hidden_size // config.num_attention_heads // 4
    frequencies = [config.rope_theta ** (-i / pairs) for i in range(pairs)]
    expected = [
        [*((c + 1) * f for f in frequencies), *((r + 1) * f for f in frequencies)] for r in range(3) for c in range(5)
    ]
    cos, sin = VisionTower(config).rotary([(3, 5)], torch.device("cpu"))
    torch.testing.assert_close(cos[:, 0], torch.tensor(expected).cos())
    torch.testing.assert_close(sin[:, 0], torch.tensor(expected).sin())


def test_trap_19_every_fourth_vision_layer_and_the_last_are_full() -> None:
    assert PUBLISHED is not None
    full = [i for i, kind in enumerate(PUBLISHED.layer_types) if kind == "full_attention"]
    assert full == [*range(3, 50, 4), 49]
    assert PUBLISHED.window * PUBLISHED.patch_size == 448


def test_windows_are_tiles_from_the_top_left_ragged_at_the_other_edges() -> None:
    order, sizes = window_order((3, 5), 2)
    assert sizes == [4, 4, 2, 2, 2, 1]
    assert order.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert window_order((4, 4), 4)[0].tolist() == list(range(16))


@torch.no_grad()
def test_windows_and_images_do_not_see_each_other() -> None:
    """One window layer over 8-patch windows: a changed patch is felt in its own tile of its own image only."""
    config = random_config(0).to_dict()
    config["vision_config"] |= {"num_hidden_layers": 1, "layer_types": ["window_attention"]}
    network = random_network(ModelConfig.from_dict(config))
    images = [picture(8, 12), picture(8, 8)]
    changed = PatchedImage(images[0].patches.copy(), (8, 12), b"")
    changed.patches[0] += 1  # in the left tile, 8 × 8; the right one is 8 × 4
    before, after = (torch.cat(network.encode_images(pair)) for pair in (images, [changed, images[1]]))
    moved = ((before - after).abs().amax(-1) > 1e-6).tolist()
    left = [row * 6 + column for row in range(4) for column in range(4)]
    assert [i for i, m in enumerate(moved) if m] == left


def test_trap_20_the_border_of_the_position_table_fades_instead_of_repeating() -> None:
    table = torch.randn(1024, 3, generator=torch.Generator().manual_seed(0))
    resampled = resample_table(table, (64, 64))
    torch.testing.assert_close(resampled[0], 0.5625 * table[0])
    torch.testing.assert_close(resampled[-1], 0.5625 * table[-1])


@pytest.mark.parametrize("grid", [(2, 2), (6, 4), (32, 32), (34, 2), (40, 66)])
def test_resampling_is_torchs_grid_sample_with_zero_padding(grid: tuple[int, int]) -> None:
    """As the reference calls it: centres of a columns × rows grid, and the axes swapped."""
    rows, columns = grid
    table = torch.randn(1024, 5, generator=torch.Generator().manual_seed(0))
    row, column = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (columns, rows))
    points = torch.stack(torch.meshgrid(column, row, indexing="xy"), dim=-1)  # (columns, rows, (x, y))
    image = table.view(1, 32, 32, 5).permute(0, 3, 1, 2)
    sampled = F.grid_sample(image, points[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(resample_table(table, grid), sampled[0].flatten(1).T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_trap_21_the_adapter_uses_the_exact_gelu_twice() -> None:
    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    config = random_config(0)
    assert config.vision is not None
    adapter = VisionAdapter(config, config.vision.merged_size)
    x = torch.randn(5, config.vision.merged_size, generator=torch.Generator().manual_seed(0))
    first, second = (fc.weight.normal_(std=0.3).double().numpy() for fc in (adapter.fc1, adapter.fc2))
    expected = gelu(gelu(x.double().numpy() @ first.T) @ second.T)
    assert np.abs(adapter(x).numpy() - expected).max() < 1e-5
    tanh = F.gelu(F.gelu(x @ adapter.fc1.weight.T, approximate="tanh") @ adapter.fc2.weight.T, approximate="tanh")
    assert np.abs(tanh.numpy() - expected).max() > 1e-4


@torch.no_grad()
def test_trap_22_the_embedding_of_the_placeholder_is_never_read() -> None:
    network = random_network(random_config(3))
    images = [picture(4, 4)]
    ids = images_and_ids(images)
    before = network(ids, images=images)
    network.model.language_model.embed_tokens.weight[IMAGE_TOKEN] = torch.nan
    assert torch.equal(network(ids, images=images), before)


@pytest.mark.parametrize("num_placeholders", [0, 3, 5])
def test_trap_22_placeholders_and_features_must_be_equal_in_number(num_placeholders: int) -> None:
    network = MuseSpark(random_config(3))
    ids = torch.tensor([[20, *[IMAGE_TOKEN] * num_placeholders]])
    with pytest.raises(ValueError, match=f"{num_placeholders} image tokens for 4 image features"):
        network(ids, images=[picture(4, 4)])


def test_trap_22_a_placeholder_without_any_image_is_an_error_too() -> None:
    network = MuseSpark(random_config(3))
    with pytest.raises(ValueError, match="1 image tokens for 0 image features"):
        network(torch.tensor([[20, IMAGE_TOKEN]]))


@torch.no_grad()
def test_images_of_one_size_and_of_several_give_what_each_gives_alone() -> None:
    network = random_network(random_config(6))
    for images in (
        [picture(4, 6, 0), picture(4, 6, 1), picture(4, 6, 2)],
        [picture(4, 6), picture(12, 10), picture(2, 2)],
    ):
        together = torch.cat(network.encode_images(images))
        alone = torch.cat([network.encode_images([image])[0] for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
