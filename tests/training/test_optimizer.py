import torch

from musespark.model.network import MuseSpark
from musespark.model.presets import preset
from musespark.training.optimizer import Muon, build_optimizers, orthogonalise


def test_orthogonalise_brings_every_singular_value_near_one() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for shape in (matrices, matrices.mT):
        singular = torch.linalg.svdvals(orthogonalise(shape).float())
        assert float(singular.min()) > 0.5
        assert float(singular.max()) < 1.3


def test_orthogonalise_keeps_the_directions_of_the_singular_vectors() -> None:
    u, _, v = torch.linalg.svd(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    matrix = u @ torch.diag(torch.linspace(1, 2, 16)) @ v
    cosine = (orthogonalise(matrix[None])[0].float() * (u @ v)).sum() / 16
    assert 0.6 < float(cosine) < 1.3


def test_each_expert_of_a_stack_is_updated_as_if_it_were_alone() -> None:
    gradient = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))
    stack = torch.nn.Parameter(torch.zeros(3, 8, 8))
    alone = torch.nn.Parameter(torch.zeros(8, 8))
    stack.grad, alone.grad = gradient, gradient[1]
    Muon([stack], lr=0.1).step()
    Muon([alone], lr=0.1).step()
    torch.testing.assert_close(stack[1], alone, atol=1e-3, rtol=1e-2)  # bfloat16 iterations in another blocking


def test_every_parameter_has_exactly_one_optimiser_and_muon_takes_only_hidden_matrices() -> None:
    network = MuseSpark(preset("toy"))
    muon, adam = build_optimizers(
        network, matrix_lr=1.0, embedding_lr=1.0, scalar_lr=1.0, router_lr=1.0, vision_lr_scale=0.5, weight_decay=0.0
    )
    ids = [id(p) for optimizer in (muon, adam) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    names = {id(p): name for name, p in network.named_parameters()}
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in matrices
    assert "model.language_model.layers.1.self_attn.o_proj.weight" in matrices
    for kept_out in (
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.mlp.gate.weight",
    ):
        assert kept_out not in matrices
