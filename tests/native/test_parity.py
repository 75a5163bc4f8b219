"""The native runner against the torch network on random small configurations: the same logits to float rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from musespark.engine.native import NativeRunner, available_isas
from musespark.engine.runner import NO_PAGE
from musespark.model.checkpoint import Plain, open_checkpoint, save_checkpoint
from musespark.model.network import MuseSpark
from musespark.model.quantize import quantize_checkpoint
from tests.model.network.builders import (
    IMAGE_TOKEN,
    picture,
    prompt_with_images,
    random_config,
    random_network,
    router_margin,
)
from tests.native.runners import Stream, batch_of, native, open_native, pages_for, random_ids, reference_logits

ISAS = available_isas()


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to float rounding; a few rows may be further off, where a norm magnifies what is nearly zero."""
    difference = np.abs(got - expected)
    assert np.quantile(difference, 0.95) < 1e-5
    assert difference.max() < 3e-4


def clear_ids(network: MuseSpark, count: int, seed: int) -> list[int]:
    """Tokens that leave no router in doubt: a tie may fall either way in two right programs."""
    for attempt in range(50):
        ids = random_ids(count, seed + 1000 * attempt)
        if router_margin(network, torch.tensor([ids])) > 1e-5:
            return ids
    raise AssertionError("no prompt without a tie in a router")


@pytest.mark.parametrize("seed", range(24))
def test_random_configurations_give_the_logits_of_the_reference(seed: int) -> None:
    """Odd head counts, grouped heads, one expert and many, dense layers among sparse, tiny windows, any widths."""
    network = random_network(random_config(seed), seed)
    ids = clear_ids(network, 70 + seed, seed)
    pages = pages_for(len(ids), seed), pages_for(len(ids), seed + 1)
    logits = native(network, isa=ISAS[seed % len(ISAS)]).forward(batch_of(Stream(ids, *pages)))
    assert_close(logits, reference_logits(network, ids))


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 128, 200])
def test_windows_around_the_page_size_see_exactly_their_keys(window: int) -> None:
    network = random_network(random_config(5, layers=5, sliding_window=window))
    ids = clear_ids(network, 210, 5)
    logits = native(network).forward(batch_of(Stream(ids, pages_for(210))))
    assert_close(logits, reference_logits(network, ids))


@pytest.mark.parametrize("seed", range(8))
def test_images_of_any_grid_give_the_features_and_logits_of_the_reference(seed: int) -> None:
    """Grids that are not square, and larger than the position table, whose side is 8 patches here."""
    network = random_network(random_config(seed), seed)
    token_ids, images = prompt_with_images(network, seed, 12)
    runner = native(network, isa=ISAS[seed % len(ISAS)])
    features = [runner.encode_image(image) for image in images]
    with torch.no_grad():
        expected = network.encode_images(images)
    for got, wanted in zip(features, expected, strict=True):
        assert_close(got, wanted.numpy())
    ids = token_ids[0].tolist()
    logits = runner.forward(batch_of(Stream(ids, pages_for(len(ids))), features=np.concatenate(features)))
    assert_close(logits, reference_logits(network, ids, images))


@pytest.mark.parametrize("grid", [(2, 2), (2, 40), (40, 2), (18, 26), (34, 66)], ids=str)
def test_windows_of_the_image_tower_are_ragged_at_the_right_and_bottom(grid: tuple[int, int]) -> None:
    network = random_network(random_config(11), 11)
    image = picture(*grid)
    with torch.no_grad():
        expected = network.encode_images([image])[0].numpy()
    runner = native(network, num_threads=2)
    for _ in range(2):  # the second time over the scratch of the first
        assert_close(runner.encode_image(image), expected)
        runner.encode_image(picture(6, 10))


def test_rotation_far_from_the_start_is_that_of_the_reference() -> None:
    """At position 100,000 a frequency that is off by its last bit turns by a hundredth."""
    config = random_config(
        2, layers=1, sliding_window=3, layer_types=["sliding_attention"], max_position_embeddings=200_000
    )
    config = replace(config, text=replace(config.text, layer_uses_rope=(True,)))
    network = random_network(config)
    start, ids = 64 * 1600, clear_ids(network, 40, 2)
    table = [NO_PAGE] * 1599 + [5, 3]
    logits = native(network).forward(batch_of(Stream(ids, table, start=start)))
    positions = torch.arange(start, start + len(ids))[None]
    with torch.no_grad():
        expected = network(torch.tensor([ids]), positions=positions)[0].numpy()
    assert_close(logits[2:], expected[2:])


@pytest.fixture(scope="module")
def wide_network() -> MuseSpark:
    """Widths that divide into groups of 32, so that it can be quantised."""
    config = random_config(
        4,
        layers=4,
        hidden_size=96,
        intermediate_size=64,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        moe_hidden_size=64,
        moe_intermediate_size=32,
        num_local_experts=6,
        num_experts_per_tok=2,
        mlp_layer_types=["sparse", "dense", "sparse", "sparse"],
        sliding_window=50,
        output_multiplier=1.0,
    )
    network = random_network(config)
    with torch.no_grad():
        network.lm_head.weight.mul_(2)  # as sharp as a trained model
    return network


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """The median over rows of the Kullback-Leibler divergence in nats. Not the mean: in a random network a router that
    falls the other way makes a row another row."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (reference, logits))
    return float((p.exp() * (p - q)).sum(-1).median())


def torch_in_bf16(network: MuseSpark, ids: list[int]) -> np.ndarray:
    """What torch makes of the network with its matrices in bfloat16, all but the router's."""
    coarse = MuseSpark(network.config).eval()
    coarse.load_state_dict(network.state_dict())
    for name, parameter in coarse.named_parameters():
        if parameter.dim() > 1 and "mlp.gate." not in name:
            parameter.data = parameter.data.bfloat16()
    return reference_logits(coarse, ids)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("precision", "factor"), [("bf16", 1.2), ("int8", 15.0)])
def test_coarser_precisions_stay_as_near_to_float32_as_torch_in_bf16(
    wide_network: MuseSpark, precision: str, factor: float, isa: str
) -> None:
    """The step of int8 is about four times that of bf16 at the largest value, and divergence grows as its square."""
    ids = random_ids(180)
    logits = native(wide_network, precision=precision, isa=isa).forward(batch_of(Stream(ids, pages_for(180))))
    reference = reference_logits(wide_network, ids)
    assert divergence(reference, logits) < factor * divergence(reference, torch_in_bf16(wide_network, ids))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_checkpoint_is_run_with_its_own_integers(
    wide_network: MuseSpark, bits: int, tmp_path: Path
) -> None:
    """In float32 the runner must give what torch gives for the dequantised weights; in integers nearly that, as int8
    does where it rounds the weights, too. In four bits and in eight it gives the same bits."""
    save_checkpoint(tmp_path / "plain", wide_network.config, wide_network.state_dict())
    quantize_checkpoint(tmp_path / "plain", tmp_path / "quantised", bits=bits, group_size=32)
    checkpoint = open_checkpoint(tmp_path / "quantised")
    dequantised = MuseSpark(wide_network.config).eval()
    tensors = {name: torch.from_numpy(checkpoint.weight(name).float32().copy()) for name in checkpoint.names()}
    dequantised.load_state_dict(tensors)
    ids = clear_ids(dequantised, 130, 0)
    reference = reference_logits(dequantised, ids)
    batch = batch_of(Stream(ids, pages_for(130)))
    assert_close(open_native(tmp_path / "quantised").forward(batch), reference)
    as_stored = NativeRunner(checkpoint, num_full_pages=16, num_sliding_pages=16, num_threads=1)
    assert as_stored.precision == f"int{bits}"
    coarse = divergence(reference, torch_in_bf16(dequantised, ids))
    logits = as_stored.forward(batch)
    assert divergence(reference, logits) < 15 * coarse
    assert np.array_equal(open_native(tmp_path / "quantised", precision="int8").forward(batch), logits)


@pytest.mark.parametrize("bits", [8, 4])
def test_floats_are_rounded_to_the_integers_that_the_quantiser_writes(
    wide_network: MuseSpark, bits: int, tmp_path: Path
) -> None:
    """Two programs, one in numpy and one in the core, that must agree on every weight and every scale."""
    save_checkpoint(tmp_path / "float32", wide_network.config, wide_network.state_dict())
    # What is not quantised is bfloat16 in the other.
    quantize_checkpoint(tmp_path / "float32", tmp_path / "quantised", bits=bits, group_size=32)
    quantised = open_checkpoint(tmp_path / "quantised")
    kept = dict(wide_network.state_dict())
    for name in kept:
        if isinstance(plain := quantised.weight(name), Plain):
            kept[name] = torch.from_numpy(plain.float32().copy())
    save_checkpoint(tmp_path / "plain", wide_network.config, kept)
    batch = batch_of(Stream(random_ids(130), pages_for(130)))
    rounded, stored = (open_native(tmp_path / name, precision=f"int{bits}") for name in ("plain", "quantised"))
    assert np.array_equal(rounded.forward(batch), stored.forward(batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_read_without_loss(dtype: torch.dtype, tmp_path: Path) -> None:
    network = random_network(random_config(7), 7)
    halves = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    # Subnormal, largest and negative zero: what a careless conversion loses.
    halves["lm_head.weight"][0, :4] = torch.tensor([6e-8, 65504.0, -0.0, -3e-5], dtype=dtype)
    network.load_state_dict({name: tensor.float() for name, tensor in halves.items()})
    save_checkpoint(tmp_path / "half", network.config, halves)
    ids = clear_ids(network, 30, 7)
    logits = open_native(tmp_path / "half").forward(batch_of(Stream(ids, pages_for(30))))
    assert_close(logits, reference_logits(network, ids))


def test_image_rows_are_replaced_and_not_normed_again() -> None:
    network = random_network(random_config(1), 1)
    width = network.config.text.hidden_size
    features = np.full((2, width), 3.0, np.float32)  # of mean square 9: a norm would show
    ids = [20, IMAGE_TOKEN, IMAGE_TOKEN, 21]
    logits = native(network).forward(batch_of(Stream(ids, [0]), features=features))
    expected = reference_logits(network, ids, [torch.from_numpy(features)])
    assert_close(logits, expected)
