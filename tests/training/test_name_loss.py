import math

import pytest
import torch

from musespark.training.name_loss import SPREAD_FLOOR, contrast, spread

EMBEDDINGS = torch.eye(6)
NAMES = EMBEDDINGS[3:], torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])  # three pictures, one token each


def test_pictures_that_point_at_their_own_answers_cost_little() -> None:
    assert contrast(5 * EMBEDDINGS[3:], *NAMES).item() < 1e-3


def test_pictures_that_are_all_alike_cost_what_guessing_costs() -> None:
    assert contrast(torch.ones(3, 6), *NAMES).item() == pytest.approx(math.log(3))


def test_an_answer_that_every_picture_favours_changes_nothing() -> None:
    pooled = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    favoured = pooled + 7 * EMBEDDINGS[4]
    assert contrast(favoured, *NAMES).item() == pytest.approx(contrast(pooled, *NAMES).item(), rel=1e-4)


def test_pictures_with_equal_answers_are_not_told_apart() -> None:
    tokens = torch.tensor([3, 3, 5])
    loss = contrast(5 * EMBEDDINGS[tokens], EMBEDDINGS[tokens], torch.tensor([0, 1, 2]), tokens)
    assert loss.item() < 1e-3


def test_one_picture_alone_costs_nothing() -> None:
    assert contrast(EMBEDDINGS[3:4], EMBEDDINGS[3:4], torch.tensor([0]), torch.tensor([3])).item() == 0.0


def test_a_batch_without_spread_pays_the_whole_floor_and_a_spread_one_nothing() -> None:
    assert spread(torch.ones(5, 6)).item() == pytest.approx(SPREAD_FLOOR, abs=2e-3)
    assert spread(torch.randn(50, 6, generator=torch.Generator().manual_seed(0))).item() == 0.0
    assert spread(torch.ones(1, 6)).item() == 0.0
