"""Experts sorted by expert equal the obvious loop, gradients included."""

from __future__ import annotations

import pytest
import torch

from musespark.model.network.grouped import grouped_linear, permute_rows
from musespark.model.network.moe import MixtureOfExperts, Routing, experts_grouped, experts_looped
from tests.model.network.builders import random_config


def experts_and_input(seed: int) -> tuple[MixtureOfExperts, torch.Tensor, Routing]:
    config = random_config(seed).text
    moe = MixtureOfExperts(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in moe.state_dict().values():
            tensor.normal_(std=0.5, generator=generator)
    latent = torch.randn(23, config.moe_hidden_size, generator=generator)
    routing = moe.gate(torch.randn(23, config.hidden_size, generator=generator))
    return moe, latent, routing


@pytest.mark.parametrize("seed", range(12))
def test_grouped_experts_equal_looped_ones_and_so_do_their_gradients(seed: int) -> None:
    moe, latent, routing = experts_and_input(seed)
    results = []
    for run in (experts_looped, experts_grouped):
        inputs = [latent.clone().requires_grad_(), routing.weights.detach().clone().requires_grad_()]
        out = run(moe.experts, inputs[0], routing._replace(weights=inputs[1]))
        wanted = [*inputs, *moe.experts.parameters()]
        grads = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), wanted)
        results.append((out, *grads))
    for looped, grouped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, looped, rtol=1e-4, atol=1e-4)


def test_an_expert_without_tokens_gets_zero_gradients() -> None:
    weight = torch.randn(3, 4, 5, requires_grad=True)
    out = grouped_linear(torch.randn(6, 5), weight, torch.tensor([2, 0, 4]))
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert torch.equal(grad[1], torch.zeros(4, 5))
    assert grad[0].abs().sum() > 0


def test_the_grouped_product_is_a_correct_torch_operator() -> None:
    """torch's own checks: schema, fake shapes for compilation, and gradients against finite differences."""
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([3, 0, 1, 3])
    torch.library.opcheck(torch.ops.musespark.grouped_linear.default, (x, weight, counts))
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, counts), (x, weight))


def test_permuted_rows_send_their_gradient_back() -> None:
    order = torch.tensor([2, 0, 3, 1])
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(permute_rows(x, order, torch.argsort(order)), x[order])
    torch.library.opcheck(torch.ops.musespark.permute_rows.default, (x, order, torch.argsort(order)))
    assert torch.autograd.gradcheck(lambda x: permute_rows(x, order, torch.argsort(order)), (x,))


def test_counts_say_how_many_tokens_each_expert_got() -> None:
    indices = torch.tensor([[0, 2], [2, 3], [2, 0]])
    routing = Routing(torch.zeros(3, 5), indices, torch.zeros(3, 2))
    assert routing.counts().tolist() == [2, 0, 3, 1, 0]
