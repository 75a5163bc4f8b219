import math

import pytest
import torch

from musespark.training.name_loss import SPREAD_FLOOR, contrast, spread

HEAD = torch.eye(6)
NAMES = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])  # three pictures, one token each


def test_pictures_that_point_at_their_own_answers_cost_little() -> None:
    assert contrast(5 * HEAD[3:], HEAD, *NAMES).item() < 1e-3


def test_pictures_that_are_all_alike_cost_what_guessing_costs() -> None:
    assert contrast(torch.ones(3, 6), HEAD, *NAMES).item() == pytest.approx(math.log(3))


def test_an_answer_that_every_picture_favours_changes_nothing() -> None:
    pooled = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    favoured = pooled + 7 * HEAD[4]
    assert contrast(favoured, HEAD, *NAMES).item() == pytest.approx(contrast(pooled, HEAD, *NAMES).item(), rel=1e-4)


def test_pictures_with_equal_answers_are_not_told_apart() -> None:
    pooled = 5 * torch.stack([HEAD[3], HEAD[3], HEAD[5]])
    loss = contrast(pooled, HEAD, torch.tensor([0, 1, 2]), torch.tensor([3, 3, 5]))
    assert loss.item() < 1e-3


def test_one_picture_alone_costs_nothing() -> None:
    assert contrast(HEAD[3:4], HEAD, torch.tensor([0]), torch.tensor([3])).item() == 0.0


def test_a_batch_without_spread_pays_the_whole_floor_and_a_spread_one_nothing() -> None:
    assert spread(torch.ones(5, 6)).item() == pytest.approx(SPREAD_FLOOR, abs=2e-3)
    assert spread(torch.randn(50, 6, generator=torch.Generator().manual_seed(0))).item() == 0.0
    assert spread(torch.ones(1, 6)).item() == 0.0
