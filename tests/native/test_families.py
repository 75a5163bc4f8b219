"""The text of all three families against the torch network: the same logits to float rounding, far positions included.

What only muse_spark has, and its images, is in test_parity.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.engine.native import NativeRunner, available_isas, page_bytes
from musespark.engine.rotary import rotary_frequencies, scaled_frequencies
from musespark.engine.runner import NO_PAGE
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.config import ModelType, RopeScaling
from musespark.model.network import Network, build_network, load_network
from musespark.model.network import layers as reference
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from tests.model.network.builders import IMAGE_TOKEN
from tests.model.network.families import clear_ids, family_network
from tests.native.runners import Stream, batch_of, native, open_native, pages_for, reference_logits

ISAS = available_isas()
FAMILIES: tuple[ModelType, ...] = ("muse_spark", "muse_glimmer", "llama4")
OTHERS: tuple[ModelType, ...] = ("muse_glimmer", "llama4")


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to float rounding; a few rows may be further off, where a norm magnifies what is nearly zero."""
    difference = np.abs(got - expected)
    assert np.quantile(difference, 0.95) < 1e-5
    assert difference.max() < 3e-4


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 1 << 20),
    num_tokens=st.integers(1, 150),
    where=st.floats(0, 1),
)
def test_any_configuration_gives_the_logits_of_the_reference_at_once_and_in_two_parts(
    family: ModelType, isa: Any, seed: int, num_tokens: int, where: float
) -> None:
    """Experts in all, some or no layers, any number of heads, norms of q and k or none, any layers without rotation,
    temperature and scaled frequencies, windows and chunks smaller than a page."""
    network = family_network(family, seed)
    ids = clear_ids(network, num_tokens, seed)
    stream = Stream(ids, pages_for(num_tokens, seed), pages_for(num_tokens, seed + 1))
    runner = native(network, isa=isa)
    whole = runner.forward(batch_of(stream))
    difference = np.abs(whole - reference_logits(network, ids))
    assert difference.max() < 1e-3
    assert np.quantile(difference, 0.95) < 1e-4
    cut = round(where * num_tokens)
    if 0 < cut < num_tokens:
        parts = [runner.forward(batch_of(stream.part(0, cut))), runner.forward(batch_of(stream.part(cut, num_tokens)))]
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("span", [1, 2, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("family", OTHERS)
def test_windows_and_chunks_around_the_page_size_see_exactly_their_keys(family: ModelType, span: int) -> None:
    name = "sliding_window" if family == "muse_glimmer" else "attention_chunk_size"
    kind = "sliding_attention" if family == "muse_glimmer" else "chunked_attention"
    network = family_network(family, 5, num_hidden_layers=3, layer_types=[kind, "full_attention", kind], **{name: span})
    ids = clear_ids(network, 210, 5)
    assert_close(native(network).forward(batch_of(Stream(ids, pages_for(210)))), reference_logits(network, ids))


@pytest.mark.parametrize("length", [8191, 8192, 8193])
def test_the_published_chunk_of_8192_ends_where_it_should(length: int) -> None:
    """The token at position 8192 sees only itself in a chunked layer. The last two rows against the whole reference."""
    network = family_network(
        "llama4",
        6,
        num_hidden_layers=1,
        layer_types=["chunked_attention"],
        no_rope_layers=[1],
        attention_chunk_size=8192,
        interleave_moe_layer_step=2,
        num_attention_heads=2,
        head_dim=8,
    )
    ids = clear_ids(network, length, 6)
    logits = native(network, num_full_pages=0, num_sliding_pages=129).forward(
        batch_of(Stream(ids, range(129)), logit_rows=[length - 2, length - 1])
    )
    assert_close(logits, reference_logits(network, ids)[-2:])


@pytest.mark.parametrize("name", ["scout-nano", "toy-llama4", "toy-glimmer"])
def test_presets_give_the_logits_of_the_reference(name: str) -> None:
    network = build_network(preset(name)).eval()
    ids = np.random.default_rng(0).integers(12, 300, 150).tolist()
    assert_close(native(network).forward(batch_of(Stream(ids, pages_for(150)))), reference_logits(network, ids))


# Scout's and Maverick's context ends at 10,485,760; both of these are borders of a chunk and of a page.
FAR = [1_048_576 - 8192, 10_485_760 - 8192, 10_485_760 - 128]


@pytest.mark.parametrize("start", FAR)
@pytest.mark.parametrize("rope", [0, 1])
def test_rotation_and_temperature_at_ten_million_tokens_are_those_of_the_reference(start: int, rope: int) -> None:
    """A chunk alone: its first token sees nothing before it, so the reference needs no past either."""
    network = family_network(
        "llama4",
        5,
        num_hidden_layers=2,
        layer_types=["chunked_attention"] * 2,
        no_rope_layers=[rope] * 2,
        attention_chunk_size=128,
        attn_temperature_tuning=True,
        floor_scale=8192,
        attn_scale=0.1,
        max_position_embeddings=10_485_760,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
    )
    ids = clear_ids(network, 128, 5)
    table = [NO_PAGE] * (start // 64) + [5, 3]
    logits = native(network, num_full_pages=0).forward(batch_of(Stream(ids, table, start=start)))
    positions = torch.arange(start, start + 128)[None]
    with torch.no_grad():
        expected = network(torch.tensor([ids]), positions=positions)[0].numpy()
    assert_close(logits, expected)


def test_the_pages_of_ten_million_tokens_are_all_read_and_their_sum_keeps_its_digits() -> None:
    """In a full layer, over a table of 163,840 pages. One token said over and over has one key and one value, so the
    last place must see what the first sees: one chain of float32 additions would lose a tenth of it."""
    network = family_network("llama4", 2, num_hidden_layers=1, no_rope_layers=[0], max_position_embeddings=10_485_760)
    runner = native(network, num_full_pages=4, num_sliding_pages=0)
    first = runner.forward(batch_of(Stream([20] * 128, [1, 2])))
    num_pages = 10_485_760 // 64
    table = [1, 2] * (num_pages // 2 - 1) + [1, 3]
    last = Stream([20], table, start=10_485_760 - 64)
    assert np.abs(runner.forward(batch_of(last)) - first[-1]).max() < 5e-5
    broken = np.full((64, network.config.text.hidden_size), np.nan, np.float32)
    runner.forward(batch_of(Stream([IMAGE_TOKEN] * 64, [0]), features=broken))
    for page in (0, 1, 65_537, 131_073, num_pages - 2):
        last.full = [0 if index == page else page_id for index, page_id in enumerate(table)]
        assert np.isnan(runner.forward(batch_of(last))).all(), page
    with pytest.raises(ValueError, match="takes positions 0 to 10485759"):
        runner.forward(batch_of(Stream([20] * 65, [*table, 0], start=10_485_760 - 64)))


def test_frequencies_are_those_of_the_reference_bit_for_bit() -> None:
    """At position 10,485,760 one unit in the last place of a frequency is up to half a radian."""
    scout = RopeScaling(16.0, 1.0, 1.0, 8192)
    for width in (64, 128):  # the published ones
        for scaling in (None, scout, RopeScaling(8.0, 1.0, 4.0, 8192)):
            expected = reference.rotary_frequencies(width, 500_000.0, torch.device("cpu"))
            expected = reference.scale_frequencies(expected, scaling)
            got = scaled_frequencies(rotary_frequencies(width, 500_000.0), scaling)
            assert got.dtype == np.float32
            assert np.array_equal(got, expected.numpy())
    # Pairs 0 to 34 of Scout turn as they are, 35 to 63 a sixteenth as fast: computed from wavelengths 6,695 and 8,219.
    plain = rotary_frequencies(128, 500_000.0)
    assert np.array_equal(scaled_frequencies(plain, scout)[:35], plain[:35])
    assert np.array_equal(scaled_frequencies(plain, scout)[35:], plain[35:] / np.float32(16))


WIDE: dict[ModelType, dict[str, Any]] = {
    "muse_glimmer": {"sliding_window": 50, "output_multiplier": 1.0},
    "llama4": {"attention_chunk_size": 50, "interleave_moe_layer_step": 2, "num_local_experts": 6},
}


def wide_network(family: ModelType) -> Network:
    """Widths that divide into groups of 32, so that it can be quantised, and a head as sharp as a trained one."""
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"num_hidden_layers": 4, "intermediate_size": 64}
    if family == "llama4":
        sizes |= {"intermediate_size_mlp": 64, "num_experts_per_tok": 1}
    network = family_network(family, 4, **sizes, **WIDE[family])
    with torch.no_grad():
        network.head.weight.mul_(2)
    return network


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """The median over rows of the Kullback-Leibler divergence in nats (see test_parity.py)."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (reference, logits))
    return float((p.exp() * (p - q)).sum(-1).median())


def torch_in_bf16(network: Network, ids: list[int]) -> np.ndarray:
    """What torch makes of the network with its matrices in bfloat16, all but the router's."""
    coarse = build_network(network.config).eval()
    coarse.load_state_dict(network.state_dict())
    for name, parameter in coarse.named_parameters():
        if parameter.dim() > 1 and "router" not in name:
            parameter.data = parameter.data.bfloat16()
    return reference_logits(coarse, ids)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("precision", "factor"), [("bf16", 1.5), ("int8", 15.0)])
@pytest.mark.parametrize("family", OTHERS)
def test_coarser_precisions_stay_as_near_to_float32_as_torch_in_bf16(
    family: ModelType, precision: str, factor: float, isa: str
) -> None:
    network = wide_network(family)
    ids = clear_ids(network, 180, 0)
    logits = native(network, precision=precision, isa=isa).forward(batch_of(Stream(ids, pages_for(180))))
    expected = reference_logits(network, ids)
    assert divergence(expected, logits) < factor * divergence(expected, torch_in_bf16(network, ids))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", OTHERS)
def test_a_quantised_checkpoint_is_run_with_its_own_integers(family: ModelType, bits: int, tmp_path: Path) -> None:
    network = wide_network(family)
    save_checkpoint(tmp_path / "plain", network.config, network.state_dict())
    quantize_checkpoint(tmp_path / "plain", tmp_path / "quantised", bits=bits, group_size=32)
    dequantised = load_network(tmp_path / "quantised")
    ids = clear_ids(dequantised, 130, 0)
    expected = reference_logits(dequantised, ids)
    batch = batch_of(Stream(ids, pages_for(130)))
    assert_close(open_native(tmp_path / "quantised").forward(batch), expected)
    in_int8 = NativeRunner(
        open_checkpoint(tmp_path / "quantised"),
        precision="int8",
        num_full_pages=16,
        num_sliding_pages=16,
        num_threads=1,
    )
    assert divergence(expected, in_int8.forward(batch)) < 15 * divergence(expected, torch_in_bf16(dequantised, ids))


def test_experts_stored_across_in_half_precision_are_read_without_loss(tmp_path: Path) -> None:
    """Llama 4's fused experts are stored (E, in, out)."""
    network = family_network("llama4", 9, interleave_moe_layer_step=1)
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: tensor.float() for name, tensor in halves.items()})
    save_checkpoint(tmp_path / "half", network.config, halves)
    ids = clear_ids(network, 30, 9)
    logits = open_native(tmp_path / "half").forward(batch_of(Stream(ids, pages_for(30))))
    assert_close(logits, reference_logits(network, ids))


def test_pages_of_the_published_models_have_the_published_size() -> None:
    """Scout and Maverick: 12 full layers of 48, 8 kv heads of 128. Glimmer: 13 of 52, 2 kv heads of 128."""
    for name in ("llama-4-scout", "llama-4-maverick"):
        assert page_bytes(preset(name), "bf16") == (64 * 12 * 8 * 128 * 2 * 2, 64 * 36 * 8 * 128 * 2 * 2)
    assert page_bytes(preset("muse-glimmer-30b"), "bf16") == (64 * 13 * 2 * 128 * 2 * 2, 64 * 39 * 2 * 128 * 2 * 2)
