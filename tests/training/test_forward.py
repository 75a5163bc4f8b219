"""The fast decoder of training against the readable network, which is itself held against transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from musespark.model.network import MuseSpark
from musespark.model.presets import preset
from musespark.training.forward import Decoder, embed
from musespark.training.grouped import GroupedLinear
from musespark.training.head_loss import LOGIT_ROWS, HeadLoss, softmax_gradient


@pytest.fixture
def network() -> MuseSpark:
    config = preset("toy")
    network = MuseSpark(replace(config, text=replace(config.text, sliding_window=20)))
    network.init_weights(seed=3)
    with torch.no_grad():
        for parameter in network.parameters():  # zeros and equal gates would hide a missing one
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.05
            )
        for buffer in network.buffers():
            buffer.copy_(torch.linspace(-0.2, 0.2, len(buffer)))
    return network


def biases_of(network: MuseSpark) -> dict[int, torch.Tensor]:
    return dict(enumerate(b for n, b in network.named_buffers() if n.endswith("e_score_correction_bias")))


def packed_rows() -> tuple[torch.Tensor, torch.Tensor]:
    token_ids = torch.randint(32, 288, (2, 48), generator=torch.Generator().manual_seed(0))
    segments = torch.zeros(2, 48, dtype=torch.int64)
    segments[0, 17:] = 1
    segments[1, 40:] = -1
    return token_ids, segments


def fast_hidden(network: MuseSpark, token_ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    weights = dict(network.named_parameters())
    decoder = Decoder(network.config.text)
    return decoder.hidden(weights, biases_of(network), embed(network.config.text, weights, token_ids), segments)[0]


def test_hidden_states_equal_the_reference_over_packed_documents_and_a_window(network: MuseSpark) -> None:
    token_ids, segments = packed_rows()
    expected, _ = network.hidden_states(token_ids, segments=segments)
    torch.testing.assert_close(fast_hidden(network, token_ids, segments), expected, atol=2e-5, rtol=1e-4)


def test_gradients_of_the_loss_equal_the_reference(network: MuseSpark) -> None:
    token_ids, segments = packed_rows()
    targets = torch.randint(32, 288, (2 * 48,), generator=torch.Generator().manual_seed(1))
    hidden, _ = network.hidden_states(token_ids, segments=segments)
    expected_loss = F.cross_entropy(network.logits(hidden).flatten(0, 1), targets, reduction="sum")
    expected_loss.backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()

    decoder = Decoder(network.config.text)
    loss = decoder.loss(
        dict(network.named_parameters()), fast_hidden(network, token_ids, segments).flatten(0, 1), targets
    )
    loss.backward()

    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert len(expected) > 20
    for name, parameter in network.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=2e-4, rtol=2e-3, msg=name)


def test_no_token_attends_across_a_document_border(network: MuseSpark) -> None:
    token_ids, segments = packed_rows()
    changed = token_ids.clone()
    changed[0, :17] = 100  # all of the first document of row 0
    before, after = (fast_hidden(network, ids, segments) for ids in (token_ids, changed))
    torch.testing.assert_close(after[0, 17:], before[0, 17:])
    assert not torch.allclose(after[0, :17], before[0, :17])


def test_expert_loads_count_every_token_k_times(network: MuseSpark) -> None:
    token_ids, segments = packed_rows()
    weights = dict(network.named_parameters())
    x = embed(network.config.text, weights, token_ids)
    _, routing = Decoder(network.config.text).hidden(weights, biases_of(network), x, segments)
    assert [int(load.sum()) for load in routing.loads] == [2 * 48 * 2] * 2


def test_a_huge_bias_sends_every_token_to_that_expert(network: MuseSpark) -> None:
    token_ids, segments = packed_rows()
    weights = dict(network.named_parameters())
    biases = {layer: torch.tensor([0.0, 0.0, 0.0, 99.0]) for layer in range(2)}
    x = embed(network.config.text, weights, token_ids)
    _, routing = Decoder(network.config.text).hidden(weights, biases, x, segments)
    assert [int(load[3]) for load in routing.loads] == [2 * 48] * 2


@pytest.mark.parametrize("num_targets", [1, LOGIT_ROWS, LOGIT_ROWS + 1])
def test_head_loss_equals_cross_entropy_of_capped_logits(num_targets: int) -> None:
    generator = torch.Generator().manual_seed(num_targets)
    hidden = torch.randn(num_targets, 8, generator=generator, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (num_targets,), generator=generator)
    expected = F.cross_entropy(20 * torch.tanh(hidden @ head.mT * 3 / 20), targets, reduction="sum")
    expected_grads = torch.autograd.grad(expected, (hidden, head))
    loss = HeadLoss.apply(hidden, head, targets, 3.0, 20.0, softmax_gradient)
    grads = torch.autograd.grad(loss, (hidden, head))
    torch.testing.assert_close(loss, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-4)


def test_a_negative_target_costs_nothing() -> None:
    hidden, head = torch.randn(4, 8, requires_grad=True), torch.randn(50, 8)
    loss = HeadLoss.apply(hidden, head, torch.full((4,), -1), 1.0, 20.0, softmax_gradient)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == 0.0
    assert not np.any(grad.numpy())


def test_grouped_linear_with_an_expert_that_gets_nothing() -> None:
    x = torch.randn(5, 3, requires_grad=True, dtype=torch.float64)
    w = torch.randn(3, 4, 3, requires_grad=True, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: GroupedLinear.apply(x, w, [2, 0, 3]), (x, w))
