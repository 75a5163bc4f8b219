"""The text stack's traps, one test each. Numbers are those of the list of known mistakes in Muse Spark ports.

Not here: image resizing, templates and stop tokens (chat), quantised and native layouts (checkpoint), counts (size).
The traps of the image tower are in test_vision_traps.py.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from musespark.model.config import ModelConfig, TextConfig
from musespark.model.network import KVCache, MuseSpark
from musespark.model.network.layers import (
    CenteredRMSNorm,
    InputScaledRMSNorm,
    ResidualGate,
    RMSNorm,
    rms_norm,
    rotary_frequencies,
    rotate,
)
from musespark.model.network.moe import Experts, Router, Routing
from musespark.model.network.text import Attention, DecoderLayer
from tests.model.network.builders import VOCAB_SIZE, random_config, random_network, twin

UNIT = torch.nn.init.normal_(torch.empty(5, 24), generator=torch.Generator().manual_seed(0))


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.double().pow(2).mean(-1).sqrt()


def one_layer(kind: str, window: int = 4, seed: int = 0) -> MuseSpark:
    data = random_config(seed, layers=1, sliding_window=window).to_dict()
    data["text_config"] |= {"layer_types": [kind], "layer_rope_theta": [0 if kind == "full_attention" else 100.0]}
    return random_network(ModelConfig.from_dict(data))


def test_trap_1_the_final_norm_is_plain_and_the_others_are_centred() -> None:
    plain, centred = RMSNorm(24, 1e-5), CenteredRMSNorm(24, 1e-5)
    torch.nn.init.zeros_(plain.weight)
    torch.nn.init.zeros_(centred.weight)
    assert plain(UNIT).abs().max() == 0
    torch.testing.assert_close(centred(UNIT), F.rms_norm(UNIT, (24,), eps=1e-5))
    network = MuseSpark(random_config(0))
    for name, module in network.named_modules():
        if isinstance(module, RMSNorm):
            assert name == "model.language_model.norm"


@torch.no_grad()
def test_trap_2_the_norm_after_attention_has_no_tensor_and_gives_rows_of_unit_mean_square() -> None:
    network = random_network(random_config(1, layers=2))
    assert not [name for name in network.state_dict() if "post_attention_layernorm" in name]
    layer = network.model.language_model.layers[0]
    assert isinstance(layer, DecoderLayer)
    layer.post_attention_residual_gate.gate.zero_()  # beta = 1/2
    seen = []
    layer.pre_feedforward_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    branch = 7 * torch.randn(1, 9, network.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    layer.join(torch.zeros_like(branch), branch)
    assert rms(seen[0] / 0.5).sub(1).abs().max() < 1e-5


@torch.no_grad()
def test_trap_3_the_weight_after_the_feedforward_acts_before_the_norm() -> None:
    norm = InputScaledRMSNorm(24, 1e-8)
    norm.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    out = norm(UNIT)
    assert rms(out).sub(1).abs().max() < 1e-5
    centred = CenteredRMSNorm(24, 1e-8)
    centred.weight.copy_(norm.weight)
    assert (centred(UNIT) - out).abs().max() > 0.1
    norm.weight.copy_((1 + norm.weight) * 3 - 1)
    torch.testing.assert_close(norm(UNIT), out)


@torch.no_grad()
def test_trap_4_the_output_multiplier_scales_the_head_before_the_soft_cap() -> None:
    """Table of the published head: multiplier 1/sqrt(32), cap 20."""
    network = MuseSpark(random_config(0, output_multiplier=1 / 32**0.5, final_logit_softcapping=20.0))
    network.lm_head.weight.zero_()
    network.lm_head.weight[:4, 0] = torch.tensor([1.0, 10.0, 100.0, -50.0])
    hidden = torch.zeros(1, network.config.text.hidden_size)
    hidden[0, 0] = 1.0
    expected = torch.tensor([0.17677, 1.76318, 14.16719, -8.30505])
    torch.testing.assert_close(network.logits(hidden)[0, :4], expected, rtol=0, atol=6e-6)


@torch.no_grad()
def test_trap_4_the_output_multiplier_scales_the_router_too() -> None:
    config = random_config(0, num_local_experts=3, num_experts_per_tok=2, output_multiplier=0.25).text
    router = Router(config)
    router.weight.copy_(torch.arange(3.0)[:, None].expand_as(router.weight))
    routing = router(torch.ones(1, config.hidden_size))
    torch.testing.assert_close(routing.logits[0], torch.arange(3.0) * config.hidden_size * 0.25)


@torch.no_grad()
def test_trap_5_the_query_scale_comes_on_top_of_the_head_width() -> None:
    """On rows of unit mean square, scores are 5.473 / sqrt(64) = 0.684126 times the plain product of q and k."""
    published = TextConfig()
    assert published.qk_scale_factor / published.head_dim**0.5 == pytest.approx(0.684126, abs=1e-6)
    network = one_layer("full_attention")
    attention = network.model.language_model.layers[0].self_attn
    assert isinstance(attention, Attention)
    hidden = torch.randn(1, 6, network.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    rotary = network.model.language_model.rotary(torch.arange(6)[None])
    q, k, _ = attention.project(hidden, rotary)
    assert (rms(q) / network.config.text.qk_scale_factor - 1).abs().max() < 1e-3
    assert (rms(k) - 1).abs().max() < 1e-3


def test_trap_6_full_layers_are_counted_from_the_last() -> None:
    config = ModelConfig.from_dict({"model_type": "muse_spark", "text_config": {}}).text
    full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    assert full == list(range(1, 62, 4))
    assert [i for i, used in enumerate(config.layer_uses_rope) if not used] == full


@torch.no_grad()
def test_trap_6_full_layers_do_not_know_the_order_of_the_past() -> None:
    ids = torch.randint(12, VOCAB_SIZE, (1, 30), generator=torch.Generator().manual_seed(0))
    swapped = ids.clone()
    swapped[0, [2, 9]] = ids[0, [9, 2]]
    assert ids[0, 2] != ids[0, 9]
    full = one_layer("full_attention")
    torch.testing.assert_close(full(ids)[0, 10:], full(swapped)[0, 10:], rtol=1e-4, atol=1e-5)
    sliding = one_layer("sliding_attention", window=30)
    assert (sliding(ids)[0, 10:] - sliding(swapped)[0, 10:]).abs().max() > 1e-3


def test_trap_7_rotary_pairs_are_the_two_halves_of_a_head() -> None:
    """Each pair (x[i], x[i + d/2]) is a complex number turned by its angle; native layouts pair neighbours instead."""
    d, position = 16, 11.0
    angles = position * rotary_frequencies(d, 10_000.0, torch.device("cpu"))
    x = torch.randn(3, d, generator=torch.Generator().manual_seed(0))
    turn = torch.polar(torch.ones(d // 2), angles)
    turned = torch.complex(x[:, : d // 2], x[:, d // 2 :]) * turn
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()), expected)
    neighbours = x.unflatten(-1, (2, d // 2)).mT.flatten(-2)  # rows [2, d/2] -> [d/2, 2], back to the native layout
    native = torch.view_as_real(torch.view_as_complex(neighbours.unflatten(-1, (-1, 2)).contiguous()) * turn)
    torch.testing.assert_close(native.mT.flatten(-2), expected)


def test_trap_7_rotary_frequencies_are_the_published_ones() -> None:
    frequencies = rotary_frequencies(64, 500_000.0, torch.device("cpu"))
    assert frequencies[[0, 1, 31]].tolist() == pytest.approx([1.0, 0.66360, 3.0139e-6], rel=1e-4)


@torch.no_grad()
def test_trap_9_a_window_of_four_holds_four_keys_and_the_query_is_one_of_them() -> None:
    network = one_layer("sliding_attention", window=4)
    ids = torch.randint(12, VOCAB_SIZE, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] = ids[0, 0] - 1
    moved = (network(ids) - network(changed))[0].abs().amax(-1)
    assert (moved[:4] > 1e-5).all()
    assert (moved[4:] < 1e-6).all()


@torch.no_grad()
def test_trap_9_chunks_across_the_edge_equal_one_pass() -> None:
    network = one_layer("sliding_attention", window=4)
    ids = torch.randint(12, VOCAB_SIZE, (1, 12), generator=torch.Generator().manual_seed(0))
    for size in (1, 3, 4, 5):
        cache = KVCache(network.config.text)
        parts = [network(chunk, cache=cache) for chunk in ids.split(size, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), network(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("gate", "beta", "alpha"),
    [
        (-3.0, 4.54e-5, 1.0),
        (-0.3, 0.2689414, 0.9631565),
        (0.0, 0.5, 0.8660254),
        (0.3, 0.7310586, 0.6823147),
        (1.0, 0.9655548, 0.2601998),
        (3.0, 0.9999546, 0.0316228),  # the clamp: sqrt(1e-3)
    ],
)
@torch.no_grad()
def test_trap_10_residual_gates_follow_the_table(gate: float, beta: float, alpha: float) -> None:
    module = ResidualGate(1, temperature=0.3)
    module.gate.fill_(gate)
    one, zero = torch.ones(1), torch.zeros(1)
    assert module(zero, one).item() == pytest.approx(beta, rel=1e-4)
    assert module(one, zero).item() == pytest.approx(alpha, rel=1e-6)


@torch.no_grad()
def test_trap_11_the_residual_stream_stays_in_float32_when_weights_are_bf16() -> None:
    """Many small steps add up in it; a stream in bf16, as transformers keeps it, rounds them away."""
    network = random_network(random_config(21, layers=16, mlp_layer_types=["dense"] * 16))
    for module in network.modules():
        if isinstance(module, ResidualGate):
            module.gate.fill_(-1.5)  # beta 0.0067
    network.bfloat16().float()  # so that weights are the same in all three
    ids = torch.randint(12, VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(0))
    exact, reference = network(ids), twin(network).bfloat16()
    streams = []
    for layer in network.model.language_model.layers:
        layer.register_forward_hook(lambda module, args, out: streams.append(out[0].dtype))
    ours = (network.bfloat16()(ids) - exact).pow(2).mean().sqrt()
    theirs = (reference(input_ids=ids).logits.float() - exact).pow(2).mean().sqrt()
    assert set(streams) == {torch.float32}
    assert ours < theirs / 3


@torch.no_grad()
def test_trap_12_the_correction_bias_chooses_and_does_not_weigh() -> None:
    config = random_config(0, num_local_experts=5, num_experts_per_tok=2).text
    router = Router(config)
    router.weight.normal_(generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(50, config.hidden_size, generator=torch.Generator().manual_seed(1))
    router.e_score_correction_bias[3] = 1000.0
    routing = router(hidden)
    assert (routing.indices == 3).any(dim=1).all()
    scores = routing.logits.sigmoid().gather(1, routing.indices)
    expected = scores / scores.sum(1, keepdim=True) * config.routed_scaling_factor
    torch.testing.assert_close(routing.weights, expected)


@torch.no_grad()
def test_trap_12_equal_scores_share_equally_and_the_router_ignores_autocast() -> None:
    config = random_config(0, num_local_experts=16, num_experts_per_tok=8, routed_scaling_factor=1.0).text
    router = Router(config)
    router.weight.zero_()
    hidden = torch.randn(4, config.hidden_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(router(hidden).weights, torch.full((4, 8), 1 / 8))
    router.weight.normal_(generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = router(hidden)
    assert torch.equal(mixed.logits, router(hidden).logits)


@torch.no_grad()
def test_trap_13_each_expert_is_normed_before_its_routing_weight() -> None:
    """So the length of one expert's output does not matter, and only the routing weight says how much it counts."""
    config = random_config(0, num_local_experts=3, num_experts_per_tok=2).text
    experts = Experts(config)
    for parameter in experts.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(0))
    latent = torch.randn(7, config.moe_hidden_size, generator=torch.Generator().manual_seed(1))
    indices = torch.tensor([[0, 2]]).expand(7, 2)
    routing = Routing(torch.zeros(7, 3), indices, torch.tensor([[0.25, 0.75]]).expand(7, 2))
    before = experts(latent, routing)
    experts.down_proj[2] *= 5
    torch.testing.assert_close(experts(latent, routing), before, rtol=1e-4, atol=1e-5)
    alone = [Routing(torch.zeros(7, 3), indices[:, i : i + 1], torch.ones(7, 1)) for i in range(2)]
    first, second = (experts(latent, one) for one in alone)
    torch.testing.assert_close(before, 0.25 * first + 0.75 * second, rtol=1e-4, atol=1e-5)
    assert rms(first).sub(1).abs().max() < 1e-3


@torch.no_grad()
def test_trap_14_the_first_half_of_gate_up_is_the_gate() -> None:
    config = random_config(
        0, num_local_experts=1, num_experts_per_tok=1, moe_hidden_size=2, moe_intermediate_size=2
    ).text
    experts = Experts(config)
    experts.gate_up_proj.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]]))  # gate, gate, up, up
    experts.down_proj.copy_(torch.eye(2)[None])
    routing = Routing(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    a, b = 0.5, -1.5

    def silu(x: float) -> float:
        return x / (1 + math.exp(-x))

    expected = torch.tensor([[silu(a) * 2 * a, silu(b) * 3 * b]])
    torch.testing.assert_close(experts(torch.tensor([[a, b]]), routing), rms_norm(expected, 1e-8))
