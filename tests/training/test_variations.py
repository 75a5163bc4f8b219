import io

import numpy as np
from PIL import Image

from musespark.chat.images import PatchedImage, decode_image, load_image
from musespark.training.variations import pixels_of, vary


def drawn(size: tuple[int, int]) -> bytes:
    """A black block on a blue ground, as a PNG."""
    image = Image.new("RGB", size, (40, 60, 200))
    image.paste((0, 0, 0), (size[0] // 3, size[1] // 3, 2 * size[0] // 3, 2 * size[1] // 3))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def varied(image: PatchedImage, seed: int) -> PatchedImage:
    return vary(image, np.random.default_rng(seed))


def test_the_pixels_of_a_picture_come_back_from_its_patches() -> None:
    data = drawn((112, 84))  # whole cells, so nothing is resized
    assert np.array_equal(pixels_of(load_image(data)), np.asarray(decode_image(data)))


def test_a_varied_picture_keeps_its_grid_its_ground_and_most_of_what_it_shows() -> None:
    image = load_image(drawn((112, 84)))
    for seed in range(20):
        other = varied(image, seed)
        assert other.grid == image.grid
        assert not np.array_equal(other.patches, image.patches)
        pixels = pixels_of(other).astype(int)
        assert np.abs(pixels[0, 0] - (40, 60, 200)).max() <= 45  # lighter or darker, but still this blue
        dark = (pixels.max(-1) < 60).mean()
        assert 0.25 / 9 < dark < 2 / 9  # the block had a ninth of the picture


def test_the_same_seed_varies_the_same_way() -> None:
    image = load_image(drawn((72, 72)))
    assert np.array_equal(varied(image, 3).patches, varied(image, 3).patches)
    assert not np.array_equal(varied(image, 3).patches, varied(image, 4).patches)


def test_a_picture_of_one_cell_can_be_varied() -> None:
    image = load_image(drawn((1, 1)))
    for seed in range(20):
        assert varied(image, seed).grid == (2, 2)
