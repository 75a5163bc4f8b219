"""What a trainer relies on: fresh weights, gradients everywhere, bf16 autocast, one graph under torch.compile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from musespark.model.network import MuseSpark
from musespark.model.presets import preset
from tests.model.network.builders import IMAGE_TOKEN, VOCAB_SIZE, picture, random_config, random_network


def batch(rows: int = 2, num_tokens: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(12, VOCAB_SIZE, (rows, num_tokens), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(num_tokens) // 20).expand(rows, -1).contiguous()
    return ids, segments


def loss_of(network: MuseSpark, ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    hidden, _ = network.hidden_states(ids, segments=segments)
    return F.cross_entropy(network.logits(hidden[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def test_the_same_seed_gives_the_same_weights() -> None:
    config = random_config(1)
    one, two, other = MuseSpark(config), MuseSpark(config), MuseSpark(config)
    one.init_weights(seed=5)
    two.init_weights(seed=5)
    other.init_weights(seed=6)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_fresh_weights_predict_nothing_yet_and_route_to_every_expert() -> None:
    network = MuseSpark(preset("toy"))
    network.init_weights(seed=0)
    ids = torch.randint(32, 320, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden, routings = network.hidden_states(ids)
        probabilities = network.logits(hidden).softmax(-1)
    assert probabilities.max() < 10 / 320
    for routing in routings:
        counts = routing.counts()
        assert counts.sum() == ids.numel() * 2
        assert counts.min() > counts.sum() / 4 / 10  # a tenth of a fair share


def test_every_parameter_gets_a_finite_gradient() -> None:
    network = MuseSpark(random_config(9, layers=4, num_local_experts=3, num_experts_per_tok=2))
    network.init_weights(seed=0)
    image = picture(4, 6)
    ids, _ = batch()
    ids[0, 3:9] = IMAGE_TOKEN
    network(ids, images=[image]).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_few_steps_learn_a_repeating_text() -> None:
    network = MuseSpark(preset("toy"))
    network.init_weights(seed=0)
    ids = torch.tensor([[20, 31, 42, 53] * 8])
    segments = torch.zeros_like(ids)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = loss_of(network, ids, segments)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 5  # ln(320) = 5.77
    assert losses[-1] < 0.3


def test_autocast_keeps_weights_stream_and_logits_in_float32_and_stays_close() -> None:
    network = random_network(random_config(12, layers=3, mlp_layer_types=["dense"] * 3))
    ids, segments = batch()
    exact = network(ids, segments=segments)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = network.hidden_states(ids, segments=segments)
        mixed = network.logits(hidden)
    assert hidden.dtype == mixed.dtype == torch.float32
    mixed.mean().backward()
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}
    agreement = F.cosine_similarity(mixed.flatten(0, 1), exact.flatten(0, 1))
    assert agreement.min() > 0.99


def test_a_training_step_is_one_graph_with_the_same_gradients() -> None:
    """fullgraph: a graph break is an error. The slow test below generates the code as well."""
    compare_compiled(backend="aot_eager", autocast=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # inductor imports it itself
def test_compiled_code_gives_the_same_gradients() -> None:
    compare_compiled(backend="inductor", autocast=False)


def compare_compiled(backend: str, autocast: bool) -> None:
    network = random_network(random_config(30, layers=2, num_local_experts=3, num_experts_per_tok=2))
    ids, segments = batch()
    compiled = torch.compile(network.hidden_states, backend=backend, fullgraph=True)
    grads = []
    for run in (network.hidden_states, compiled):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden, routings = run(ids, segments=segments)
        (hidden.square() * torch.linspace(-1, 1, hidden.shape[-1])).mean().backward()
        stack = [p.grad for p in network.model.language_model.parameters()]
        grads.append([*stack, *(routing.logits for routing in routings)])
    tolerance = 2e-2 if autocast else 1e-4
    for name, eager, other in zip([n for n, _ in network.named_parameters()], *grads, strict=False):
        torch.testing.assert_close(other, eager, rtol=tolerance, atol=tolerance, msg=name)
