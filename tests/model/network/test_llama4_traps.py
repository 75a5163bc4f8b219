"""What other engines got wrong in Llama 4 (llama4.md, section 7), one test each."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Llama4TextConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama4.modeling_llama4 import Llama4VisionRotaryEmbedding
from transformers.models.llama4.modeling_llama4 import pixel_shuffle as their_pixel_shuffle

from musespark.model.config import ModelConfig, RopeScaling
from musespark.model.network import Llama4
from musespark.model.network.attention import plan_attention
from musespark.model.network.layers import rotary_frequencies, rotate_neighbours, scale_frequencies
from musespark.model.network.llama4 import Llama4Experts, Llama4MoE, Llama4TextModel
from musespark.model.network.moe import Routing
from musespark.model.network.tiles import TileTower, pixel_shuffle
from musespark.model.presets import preset
from tests.model.files import transformers_config
from tests.model.network.builders import VOCAB_SIZE
from tests.model.network.families import llama4_config, random_llama4, tile


def tokens(num_tokens: int) -> torch.Tensor:
    return torch.randint(12, VOCAB_SIZE, (1, num_tokens), generator=torch.Generator().manual_seed(num_tokens))


class TestRotaryEmbedding:
    def test_scout_divides_pairs_35_to_63_by_16_and_leaves_0_to_34(self) -> None:
        text = preset("llama-4-scout").text
        plain = rotary_frequencies(128, text.rope_theta, torch.device("cpu"))
        ratio = plain / scale_frequencies(plain, text.rope_scaling)
        assert ratio.tolist() == [1.0] * 35 + [16.0] * 29
        wavelengths = 2 * math.pi / plain
        assert wavelengths[34:36].tolist() == pytest.approx([6695.1, 8218.7], abs=0.05)

    def test_smoothed_scaling_equals_transformers(self) -> None:
        rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](Llama4TextConfig(rope_parameters=rope, head_dim=128), "cpu")
        plain = rotary_frequencies(128, 500_000.0, torch.device("cpu"))
        ours = scale_frequencies(plain, RopeScaling(8.0, 1.0, 4.0, 8192))
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)

    def test_neighbours_are_the_pairs(self) -> None:
        quarter = torch.tensor([math.pi / 2, 0.0])
        turned = rotate_neighbours(torch.tensor([1.0, 0.0, 3.0, 4.0]), quarter.cos(), quarter.sin())
        assert turned.tolist() == pytest.approx([0.0, 1.0, 3.0, 4.0], abs=1e-6)

    @torch.no_grad()
    def test_positions_turn_only_layers_with_rotary_embedding(self) -> None:
        for uses_rope in (0, 1):
            config = llama4_config(0, num_hidden_layers=1, no_rope_layers=[uses_rope], attention_chunk_size=64)
            network = random_llama4(config)
            ids = tokens(12)
            shuffled = ids.clone()
            shuffled[0, [2, 7]] = ids[0, [7, 2]]
            moved = float((network(ids)[:, -1] - network(shuffled)[:, -1]).abs().max())
            assert (moved > 1e-4) == bool(uses_rope)


class TestQkNorm:
    @torch.no_grad()
    def test_each_head_has_a_norm_of_its_own_after_the_rotation_on_rotary_layers_only(self) -> None:
        """One head made 100 times larger changes nothing there, neither of itself nor of its neighbours."""
        for uses_rope in (0, 1):
            config = llama4_config(
                1, num_hidden_layers=1, no_rope_layers=[uses_rope], use_qk_norm=True, num_attention_heads=4,
                num_key_value_heads=2,
            )  # fmt: skip
            network = random_llama4(config)
            ids = tokens(10)
            before = network(ids)
            head = config.text.head_dim
            network.text_model.layers[0].self_attn.q_proj.weight[head : 2 * head] *= 100
            unchanged = torch.allclose(network(ids), before, atol=1e-3)
            assert unchanged == bool(uses_rope)

    @torch.no_grad()
    def test_maverick_has_none(self) -> None:
        network = random_llama4(llama4_config(1, num_hidden_layers=1, no_rope_layers=[1], use_qk_norm=False))
        before = network(tokens(10))
        network.text_model.layers[0].self_attn.q_proj.weight.mul_(100)
        assert not torch.allclose(network(tokens(10)), before, atol=1e-3)


class TestTemperature:
    @pytest.mark.parametrize(
        ("position", "expected"),
        [
            (0, 1.0),
            (8190, 1.0),
            (8191, 1.0693),
            (32767, 1.1609),
            (131071, 1.2833),
            (1048575, 1.4860),
            (10485759, 1.7155),
        ],
    )
    def test_the_published_table(self, position: int, expected: float) -> None:
        text = llama4_config(0, floor_scale=8192, attn_scale=0.1).text
        _, _, temperature = Llama4TextModel(text).rotary(torch.tensor([[position]]))
        assert float(temperature) == pytest.approx(expected, abs=5e-5)

    @torch.no_grad()
    def test_it_is_applied_where_there_is_no_rotary_embedding(self) -> None:
        for uses_rope in (0, 1):
            fields = {"num_hidden_layers": 1, "no_rope_layers": [uses_rope], "floor_scale": 2, "attn_scale": 2.0}
            on = random_llama4(llama4_config(4, attn_temperature_tuning=4, **fields))
            off = random_llama4(llama4_config(4, attn_temperature_tuning=False, **fields))
            assert torch.equal(on(tokens(10)), off(tokens(10))) == bool(uses_rope)


class TestChunks:
    def test_a_query_sees_its_own_chunk_and_the_first_of_a_chunk_only_itself(self) -> None:
        for num_past in range(9):
            plan = plan_attention(9, num_past, None, None, torch.device("cpu"), chunk=4)
            assert [block.start for block in plan[1:]] == [block.end for block in plan[:-1]]
            for block in plan:
                for query in range(block.start, block.end):
                    position = num_past + query
                    mask = torch.ones(block.end - block.start, block.end_key - block.first_key, dtype=torch.bool)
                    if block.causal:
                        mask = mask.tril()
                    if block.mask is not None:
                        mask = block.mask[0, 0]
                    seen = (torch.where(mask[query - block.start])[0] + block.first_key).tolist()
                    assert seen == list(range(position // 4 * 4, position + 1))

    @torch.no_grad()
    def test_what_lies_before_the_chunk_reaches_a_token_through_full_layers_only(self) -> None:
        """The pattern of layers inverted would pass no test of shapes."""
        for no_rope_layers, reached in (([1, 1], False), ([1, 0], True), ([0, 1], True)):
            config = llama4_config(6, num_hidden_layers=2, no_rope_layers=no_rope_layers, attention_chunk_size=4)
            network = random_llama4(config)
            ids = tokens(10)
            other = ids.clone()
            other[0, 1] = 12 + (int(ids[0, 1]) - 11) % 80
            changed = (network(ids) - network(other)).abs().amax(-1)[0] > 1e-6
            assert changed[1:4].all()
            assert bool(changed[4:].any()) == reached


class TestExperts:
    @torch.no_grad()
    def test_the_score_scales_what_an_expert_reads_and_not_what_it_says(self) -> None:
        config = llama4_config(0, num_local_experts=1, num_experts_per_tok=1).text
        experts = Llama4Experts(config)
        for parameter in experts.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        x = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(1))

        def expert(rows: torch.Tensor) -> torch.Tensor:
            gate, up = (rows @ experts.gate_up_proj[0]).split(config.moe_intermediate_size, dim=-1)
            return (F.silu(gate) * up) @ experts.down_proj[0]

        score = 0.3
        out = experts(x, Routing(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), score)))
        assert torch.allclose(out, expert(score * x), atol=1e-4)
        assert not torch.allclose(out, score * expert(x), atol=1e-1)

    @torch.no_grad()
    def test_scores_are_sigmoids_that_are_not_normalised_and_the_shared_expert_is_added_as_it_is(self) -> None:
        config = llama4_config(0, num_local_experts=3, num_experts_per_tok=2).text
        moe = Llama4MoE(config)
        for parameter in moe.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        moe.router.weight.zero_()
        x = torch.randn(1, 4, config.hidden_size, generator=torch.Generator().manual_seed(1))
        out, routing = moe(x)
        assert routing.weights.tolist() == [[0.5, 0.5]] * 4
        moe.experts.down_proj.zero_()
        shared, _ = moe.shared_expert(x)
        assert torch.equal(moe(x)[0], shared)
        assert not torch.allclose(out, shared, atol=1e-1)


class TestTiles:
    @pytest.mark.parametrize(("side", "merge_size"), [(4, 2), (6, 3), (6, 2), (3, 1)])
    def test_pixel_shuffle_equals_transformers(self, side: int, merge_size: int) -> None:
        hidden = torch.randn(2, side**2, 18, generator=torch.Generator().manual_seed(0))
        expected = their_pixel_shuffle(hidden, 1 / merge_size)
        assert torch.equal(pixel_shuffle(hidden, side, merge_size), expected)

    def test_rotary_angles_count_from_one_with_the_column_first_and_the_class_token_last_at_zero(self) -> None:
        config = preset("scout-nano")
        assert config.tile_vision is not None
        with torch.device("meta"):
            tower = TileTower(config, config.tile_vision)
        cos, sin = tower.rotary(torch.device("cpu"))
        theirs = Llama4VisionRotaryEmbedding(transformers_config(config).vision_config).freqs_ci.squeeze()
        assert torch.allclose(torch.complex(cos, sin), theirs, atol=1e-5)
        assert cos[-1].unique().tolist() == [1.0]
        assert cos[0, 0] == pytest.approx(math.cos(1.0))

    @torch.no_grad()
    def test_a_tile_alone_and_among_others_has_the_same_features(self) -> None:
        network = random_llama4(llama4_config(5))
        tiles = [tile(network.config, i) for i in range(3)]
        for together, image in zip(network.encode_images(tiles), tiles, strict=True):
            assert torch.allclose(together, network.encode_images([image])[0], atol=1e-5)

    @torch.no_grad()
    def test_a_tower_that_merges_three_by_three_patches_runs(self) -> None:
        data = llama4_config(1).to_dict()
        width = data["vision_config"]["hidden_size"]
        data["vision_config"] |= {"pixel_shuffle_ratio": 1 / 3, "image_size": 84, "intermediate_size": 9 * width}
        network = Llama4(ModelConfig.from_dict(data))
        (features,) = network.encode_images([tile(network.config, 0)])
        assert features.shape == (4, network.config.text.hidden_size)
