"""TorchRunner on a CPU in float32, which is the program that runs on a GPU, against the reference network.

What needs a GPU is in test_torch_cuda.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from musespark.engine.engine import Engine
from musespark.engine.torch_runner import page_bytes, usable_device
from musespark.engine.torch_runner.experts import GroupedExperts
from musespark.errors import ConfigError, EngineFailed, NotEnoughMemory
from musespark.model.checkpoint import save_checkpoint
from musespark.model.config import ModelType
from musespark.model.network import Llama4, Network, build_network, load_network
from musespark.model.presets import preset
from musespark.model.quantize import quantize_checkpoint
from tests.engine.batches import Stream, batch_of, pages_for, reference_logits
from tests.engine.drafters import Guessing
from tests.engine.driver import request, run_alone
from tests.engine.torch_runners import ALIGNED, FAMILIES, assert_close, deep_network, open_torch, torch_runner
from tests.model.network.builders import IMAGE_TOKEN, prompt_with_images
from tests.model.network.families import clear_ids, family_network, prompt_with_tiles


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on tensors this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_random_configurations_give_the_logits_of_the_reference(family: ModelType, seed: int) -> None:
    network = family_network(family, seed)
    ids = clear_ids(network, 70 + seed, seed)
    pages = pages_for(len(ids), seed), pages_for(len(ids), seed + 1)
    runner = torch_runner(network)
    assert_close(runner.forward(batch_of(Stream(ids, *pages))), reference_logits(network, ids))


@pytest.mark.parametrize("family", ["muse_spark", "llama4"])
def test_experts_of_one_kernel_give_the_logits_of_the_reference(family: ModelType) -> None:
    network = deep_network(family, 3, 3, **ALIGNED[family])
    runner = torch_runner(network)
    experts = [module for module in runner._open().modules() if isinstance(module, GroupedExperts)]
    assert experts
    assert all(some.has_one_kernel for some in experts)
    ids = clear_ids(network, 150, 3)
    assert_close(runner.forward(batch_of(Stream(ids, pages_for(150)))), reference_logits(network, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_neighbours_and_single_tokens_give_what_the_whole_gives(family: ModelType) -> None:
    """Long chunks, short ones that count as rows, a decode of two sequences, and rows of both kinds in one step."""
    window = {"attention_chunk_size": 100} if family == "llama4" else {"sliding_window": 70}
    network = deep_network(family, 4, 4, **window, **ALIGNED[family])
    one, two = clear_ids(network, 200, 1), clear_ids(network, 150, 2)
    first = Stream(one, [3, 1, 0, 9], [8, 2, 5, 7])
    second = Stream(two, [4, 2, 11], [0, 3, 4])
    runner = torch_runner(network)
    got_first, got_second = [], []
    got_first.append(runner.forward(batch_of(first.part(0, 90))))
    logits = runner.forward(batch_of(first.part(90, 91), second.part(0, 100)))  # a decode beside a prefill
    got_first.append(logits[:1])
    got_second.append(logits[1:])
    logits = runner.forward(batch_of(second.part(100, 110), first.part(91, 160)))  # a verification beside one
    got_second.append(logits[:10])
    got_first.append(logits[10:])
    for i in range(40):  # decodes, over the border of a page and of a chunk
        logits = runner.forward(batch_of(first.part(160 + i, 161 + i), second.part(110 + i, 111 + i)))
        got_first.append(logits[:1])
        got_second.append(logits[1:])
    assert_close(np.concatenate(got_first), reference_logits(network, one))
    assert_close(np.concatenate(got_second), reference_logits(network, two))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_native_runner_gives_the_same_logits(family: ModelType) -> None:
    pytest.importorskip("musespark.engine._native")  # a machine with a card may have no compiler
    from tests.native.runners import native

    network = family_network(family, 5)
    ids = clear_ids(network, 130, 5)
    batch = batch_of(Stream(ids, pages_for(130)), logit_rows=[0, 64, 129])
    assert_close(torch_runner(network).forward(batch), native(network).forward(batch))


@pytest.mark.parametrize("seed", range(3))
def test_images_give_the_features_and_logits_of_the_reference(seed: int) -> None:
    networks = [family_network("muse_spark", seed), family_network("llama4", seed)]
    for network in networks:
        make = prompt_with_tiles if isinstance(network, Llama4) else prompt_with_images
        token_ids, images = make(network, seed, 12)  # type: ignore[operator]
        runner = torch_runner(network)
        features = [runner.encode_image(image) for image in images]
        with torch.no_grad():
            for got, wanted in zip(features, network.encode_images(images), strict=True):
                assert_close(got, wanted.numpy())
        ids = token_ids[0].tolist()
        batch = batch_of(Stream(ids, pages_for(len(ids))), features=np.concatenate(features))
        assert_close(runner.forward(batch), reference_logits(network, ids, images))


def test_many_sequences_are_read_in_parts_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    network = family_network("muse_spark", 6)
    ids = clear_ids(network, 20, 6)
    streams = [Stream(ids[: 4 + n], [n], [15 - n]) for n in range(9)]
    runner = torch_runner(network)
    runner.forward(batch_of(*(stream.part(0, len(stream.ids) - 1) for stream in streams)))
    last = batch_of(*(stream.part(len(stream.ids) - 1, len(stream.ids)) for stream in streams))
    whole = runner.forward(last)
    monkeypatch.setattr(runner, "_rows_at_once", lambda num_pages: 2)
    assert_close(runner.forward(last), whole)
    assert_close(whole, reference_logits(network, ids)[3:12])


def test_numbers_that_are_none_stay_with_their_own_sequence() -> None:
    """A page whose last owner computed NaN: masked values count as nothing only if they are numbers."""
    network = family_network("muse_spark", 1)
    runner = torch_runner(network)
    broken = np.full((3, network.config.text.hidden_size), np.nan, np.float32)
    assert np.isnan(runner.forward(batch_of(Stream([IMAGE_TOKEN] * 3, [5]), features=broken))).all()
    ids = clear_ids(network, 30, 1)
    assert_close(runner.forward(batch_of(Stream(ids, [5]))), reference_logits(network, ids))
    assert np.isnan(runner.forward(batch_of(Stream([IMAGE_TOKEN] * 3, [7]), features=broken))).all()
    first = runner.forward(batch_of(Stream(ids[:1], [7])))  # as a decode
    assert_close(first, reference_logits(network, ids[:1]))


def wide(family: ModelType) -> Network:
    """Widths that divide into groups of 32, so that it can be quantised."""
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    sizes |= {"intermediate_size": 64}
    if family == "llama4":
        sizes |= {"intermediate_size_mlp": 64, "num_experts_per_tok": 1, "num_local_experts": 4}
    if family == "muse_spark":
        sizes |= {"moe_hidden_size": 64, "moe_intermediate_size": 32}
    return deep_network(family, 4, 3, **sizes)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_checkpoints_are_expanded_to_the_values_that_they_store(
    family: ModelType, bits: int, tmp_path: Path
) -> None:
    network = wide(family)
    save_checkpoint(tmp_path / "plain", network.config, network.state_dict())
    quantize_checkpoint(tmp_path / "plain", tmp_path / "quantised", bits=bits, group_size=32)
    expected = load_network(tmp_path / "quantised")
    ids = clear_ids(expected, 100, 0)
    logits = open_torch(tmp_path / "quantised").forward(batch_of(Stream(ids, pages_for(100))))
    assert_close(logits, reference_logits(expected, ids))


def median_divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (reference, logits))
    return float((p.exp() * (p - q)).sum(-1).median())


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_as_near_to_float32_as_the_network_with_its_matrices_in_it(family: ModelType) -> None:
    network = wide(family)
    coarse = build_network(network.config).eval()
    coarse.load_state_dict(network.state_dict())
    for name, parameter in coarse.named_parameters():
        if parameter.dim() > 1 and "router" not in name and "mlp.gate." not in name:
            parameter.data = parameter.data.bfloat16()
    ids = clear_ids(network, 120, 0)
    reference = reference_logits(network, ids)
    logits = torch_runner(network, dtype=torch.bfloat16).forward(batch_of(Stream(ids, pages_for(120))))
    # 1.5: of this few rows a median moves by that much with the order of a sum
    assert median_divergence(reference, logits) < 1.5 * median_divergence(reference, reference_logits(coarse, ids))


def test_wrong_batches_are_refused_before_anything_is_computed() -> None:
    runner = torch_runner(family_network("muse_spark", 2))
    for stream, message in [
        (Stream([20, 97], [0]), "vocabulary"),
        (Stream([20, -1], [0]), "vocabulary"),
        (Stream([20], [16]), "page 16"),
        (Stream([20] * 65, [0]), "too short"),
        (Stream([20] * 65, [-1, 0]), "no page"),
        (Stream([20], [0] * 9, start=512), "positions 0 to 511"),
    ]:
        with pytest.raises(ValueError, match=message):
            runner.forward(batch_of(stream))


def test_a_closed_runner_says_so() -> None:
    runner = torch_runner(family_network("muse_glimmer", 2))
    runner.close()
    with pytest.raises(EngineFailed):
        runner.forward(batch_of(Stream([20], [0])))


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device is cuda, but .* \(torch 2"):
        usable_device("cuda")
    with pytest.raises(ConfigError, match="device is mps"):
        usable_device("mps")


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    network = family_network("muse_spark", 2)
    save_checkpoint(tmp_path / "c", network.config, network.state_dict())
    with pytest.raises(NotEnoughMemory, match="KV cache"):
        open_torch(tmp_path / "c", num_full_pages=2**31 - 1, num_sliding_pages=2**31 - 1)
    with pytest.raises(ConfigError, match="num_full_pages is -1"):
        open_torch(tmp_path / "c", num_full_pages=-1)


def test_pages_of_the_published_models_have_the_published_size() -> None:
    """Scout: 12 full layers of 48, 8 kv heads of 128."""
    assert page_bytes(preset("llama-4-scout")) == (64 * 12 * 8 * 128 * 2 * 2, 64 * 36 * 8 * 128 * 2 * 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_guesses_are_verified_in_the_rows_of_a_decode(family: ModelType) -> None:
    """Right and wrong ones, over the border of a page. In float32 on a CPU no tie is near enough to matter."""
    network = family_network(family, 2)
    ids, times = clear_ids(network, 40, 2), itertools.count()
    expected = run_alone(Engine(torch_runner(network)), request(ids, 40)).ids()
    guessing = Engine(
        torch_runner(network),
        max_draft_tokens=8,
        make_drafter=lambda: Guessing([*ids, *expected], 0.2),
        clock=lambda: float(next(times)),  # every step takes as long, so that any right guess pays
    )
    assert run_alone(guessing, request(ids, 40)).ids() == expected
    stats = guessing.stats()
    assert 10 < stats.num_accepted_tokens_total < stats.num_drafted_tokens_total
