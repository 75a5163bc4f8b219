"""llama4 equals transformers 5.23 in every logit, in float32, over random small configurations and at every edge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from musespark.model.checkpoint import save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.network import KVCache, Llama4, generate_greedy, load_network
from tests.model.network.builders import IMAGE_TOKEN, VOCAB_SIZE
from tests.model.network.families import (
    llama4_config,
    prompt_with_tiles,
    random_llama4,
    tile,
    tile_pixels,
    twin,
)

TOLERANCE = 1e-4
EDGE = 8192


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize("seed", range(24))
@torch.no_grad()
def test_logits_equal_those_of_transformers(seed: int) -> None:
    """Two tiles between text, several chunks and several steps of temperature long."""
    network = random_llama4(llama4_config(seed), seed)
    ids, tiles = prompt_with_tiles(network, seed, 40)
    expected = twin(network, ("eager", "sdpa")[seed % 2])(input_ids=ids, **tile_pixels(tiles)).logits
    assert difference(network(ids, images=tiles), expected) < TOLERANCE


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_logits_with_a_cache_equal_those_of_transformers(seed: int) -> None:
    """An image prompt at once, then a piece that crosses chunks, then single tokens over further edges."""
    network = random_llama4(llama4_config(seed + 100), seed)
    ids, tiles = prompt_with_tiles(network, seed, 36)
    pieces = [ids[:, :-26], ids[:, -26:-13], *ids[:, -13:].split(1, dim=1)]
    reference, past, cache = twin(network), None, KVCache(network.config.text)
    for i, piece in enumerate(pieces):
        inputs = tile_pixels(tiles) if i == 0 else {}
        expected = reference(input_ids=piece, past_key_values=past, use_cache=True, **inputs)
        past = expected.past_key_values
        logits = network(piece, images=tiles if i == 0 else (), cache=cache)
        assert difference(logits, expected.logits) < TOLERANCE


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_pieces_of_any_size_with_a_cache_equal_one_pass(seed: int) -> None:
    network = random_llama4(llama4_config(seed + 200), seed)
    ids, tiles = prompt_with_tiles(network, seed, 30)
    features = torch.cat(network.encode_images(tiles))
    whole = network(ids, images=tiles)
    r, cache, parts, row, start = np.random.default_rng(seed), KVCache(network.config.text), [], 0, 0
    while start < ids.shape[1]:
        piece = ids[:, start : start + int(r.integers(1, 15))]
        num_rows = int((piece == IMAGE_TOKEN).sum())
        parts.append(network(piece, images=[features[row : row + num_rows]], cache=cache))
        row, start = row + num_rows, start + piece.shape[1]
    assert difference(torch.cat(parts, dim=1), whole) < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 2, 7])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
@torch.no_grad()
def test_sequences_that_end_around_the_edge_of_a_chunk_equal_transformers(chunk: int, beyond: int) -> None:
    network = random_llama4(llama4_config(8, attention_chunk_size=chunk, no_rope_layers=None))
    ids = torch.randint(12, VOCAB_SIZE, (2, 3 * chunk + beyond), generator=torch.Generator().manual_seed(1))
    expected = twin(network)(input_ids=ids).logits
    assert difference(network(ids), expected) < TOLERANCE


class TestThePublishedChunk:
    """Chunk and temperature step of 8192 at their real size, in a tiny network with one layer of each kind."""

    @pytest.fixture
    def network(self) -> Llama4:
        config = llama4_config(
            3,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            no_rope_layers=[1, 0],
            attention_chunk_size=EDGE,
            floor_scale=EDGE,
            attn_scale=0.5,
            attn_temperature_tuning=4,
            use_qk_norm=True,
            num_local_experts=1,
            num_experts_per_tok=1,
        )
        return random_llama4(config, 3)

    @torch.no_grad()
    def test_logits_around_position_8192_equal_transformers(self, network: Llama4) -> None:
        ids = torch.randint(12, VOCAB_SIZE, (1, EDGE + 2), generator=torch.Generator().manual_seed(0))
        reference = twin(network, "sdpa")
        expected = reference(input_ids=ids, logits_to_keep=4).logits  # positions 8190 to 8193
        hidden, _ = network.hidden_states(ids)
        assert difference(network.logits(hidden[:, -4:]), expected) < TOLERANCE

        cache = KVCache(network.config.text)
        network.hidden_states(ids[:, : EDGE - 2], cache=cache)
        decoded = [network(ids[:, i : i + 1], cache=cache) for i in range(EDGE - 2, EDGE + 2)]
        assert difference(torch.cat(decoded, dim=1), expected) < TOLERANCE


@torch.no_grad()
def test_a_batch_of_rows_with_a_tile_each_equals_transformers() -> None:
    network = random_llama4(llama4_config(7))
    tiles = [tile(network.config, 1), tile(network.config, 2)]
    ids = torch.randint(12, VOCAB_SIZE, (2, 30), generator=torch.Generator().manual_seed(0))
    ids[0, 20 : 20 + tiles[0].num_tokens], ids[1, 1 : 1 + tiles[1].num_tokens] = IMAGE_TOKEN, IMAGE_TOKEN
    expected = twin(network)(input_ids=ids, **tile_pixels(tiles)).logits
    assert difference(network(ids, images=tiles), expected) < TOLERANCE


@torch.no_grad()
def test_layer_kinds_of_the_file_win_over_the_rule() -> None:
    """A chunked layer without rotary embedding, a full one with it: no published model has them, the format does."""
    kinds = ["chunked_attention", "full_attention", "chunked_attention"]
    network = random_llama4(llama4_config(5, num_hidden_layers=3, no_rope_layers=[0, 1, 1], layer_types=kinds))
    ids = torch.randint(12, VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(0))
    assert difference(network(ids), twin(network)(input_ids=ids).logits) < TOLERANCE


@torch.no_grad()
def test_packed_documents_have_chunks_of_their_own() -> None:
    network = random_llama4(llama4_config(9, attention_chunk_size=5, no_rope_layers=None))
    first, second = (torch.randint(12, VOCAB_SIZE, (1, n), generator=torch.Generator().manual_seed(n)) for n in (8, 17))
    positions = torch.cat((torch.arange(8), torch.arange(17)))[None]
    segments = torch.tensor([[0] * 8 + [1] * 17])
    packed = network(torch.cat((first, second), dim=1), positions=positions, segments=segments)
    assert difference(packed[:, :8], network(first)) < 1e-5
    assert difference(packed[:, 8:], network(second)) < 1e-5


@torch.no_grad()
def test_greedy_tokens_equal_those_of_transformers_and_a_checkpoint_brings_them_back(tmp_path: Path) -> None:
    network = random_llama4(llama4_config(300), 1)
    ids, tiles = prompt_with_tiles(network, 1, 12)
    generated = twin(network).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        **tile_pixels(tiles),
    )
    expected = generated[0, ids.shape[1] :].tolist()
    assert generate_greedy(network, ids[0].tolist(), tiles, max_tokens=8) == expected
    save_checkpoint(tmp_path / "model", network.config, network.state_dict())
    loaded = load_network(tmp_path / "model")  # which turns the fused experts round and back
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert generate_greedy(loaded, ids[0].tolist(), tiles, max_tokens=8) == expected


def test_a_text_model_has_no_tower_and_refuses_images() -> None:
    config = ModelConfig.from_dict({**llama4_config(2).to_dict(), "vision_config": None})
    network = Llama4(config)
    assert not [name for name in network.state_dict() if "vision" in name or "projector" in name]
    with pytest.raises(ValueError, match="no vision tower"):
        network(torch.tensor([[IMAGE_TOKEN]]), images=[tile(llama4_config(2), 0)])


def test_the_number_of_image_tokens_must_be_that_of_the_features() -> None:
    network = Llama4(llama4_config(2))
    with pytest.raises(ValueError, match="1 image tokens for"):
        network(torch.tensor([[IMAGE_TOKEN]]), images=[tile(network.config, 0)])
