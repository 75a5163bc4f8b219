"""The cases of logits: checkpoints made from recipes, prompts, expected logits, and what mistakes do to them.

A prompt is drawn again until no router is in doubt, rounding does not show and every mistake does: a tie may fall
either way in two right engines, some prompts make much of little, and a case that lets its mistake pass guards nothing.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from musespark.conformance.mistakes import all_mistakes, assemble
from musespark.conformance.prompts import Prompt, draw, to_arrays
from musespark.conformance.recipes import LogitCase, Recipe
from musespark.conformance.seeded import make_weights, raw
from musespark.conformance.suite import Arrays, Case, Guard
from musespark.errors import DataError
from musespark.model.config import ModelConfig
from musespark.model.network import Network
from musespark.model.network.llama4 import Llama4Router
from musespark.model.network.moe import Router, Routing

TOLERANCE = 3e-4  # float32 engines differ by about 1e-5; where a norm magnifies what is nearly zero, by 1e-4
LARGEST_NOISE = TOLERANCE / 3  # what a change of every weight in its last places may do at the most
SMALLEST_SHOW = 4 * TOLERANCE  # what a mistake must do at the least
SMALLEST_MARGIN = 2e-3  # between the last expert chosen and the first one not chosen
MAX_ATTEMPTS = 200


def build(recipe: Recipe, seed: int) -> tuple[ModelConfig, dict[str, np.ndarray], Network]:
    """Configuration, weights and the reference network of one checkpoint."""
    config = ModelConfig.from_dict(recipe.config)
    weights = make_weights(config, seed)
    network = assemble(config, {name: torch.from_numpy(values.copy()) for name, values in weights.items()})
    return config, weights, network


@torch.no_grad()
def make_case(recipe: Recipe, case: LogitCase, seed: int, network: Network) -> tuple[Case, Arrays, Arrays]:
    """The case, what goes in and what must come out; `network` is the recipe's.

    Raises DataError if no prompt brings its mistakes to light.
    """
    shaken = _shaken(network, seed)
    mistakes = all_mistakes()[recipe.family]
    wrong = {name: mistakes[name].make(copy.deepcopy(network)) for name in case.mistakes}
    case_id = f"{recipe.name}.{case.name}"
    hidden: list[str] = []
    for attempt in range(MAX_ATTEMPTS):
        prompt = draw(recipe, case, seed, f"{case_id} {attempt}")
        if _margin(network, prompt) < SMALLEST_MARGIN:
            continue
        positions = _positions(case, len(prompt.token_ids))
        expected = logits(network, prompt, positions)
        if np.abs(logits(shaken, prompt, positions) - expected).max() > LARGEST_NOISE:
            continue
        moves = {name: float(np.abs(logits(one, prompt, positions) - expected).max()) for name, one in wrong.items()}
        hidden = [name for name, moved in moves.items() if not moved > SMALLEST_SHOW]
        if not hidden:
            guards = tuple(Guard(mistakes[name].says, float(f"{moved:.2g}")) for name, moved in moves.items())
            made = Case(case_id, "logits", recipe.family, case.about, guards, TOLERANCE, recipe.name)
            return made, to_arrays(prompt, positions), {"logits": expected}
    why = f"{hidden[0]} does not show" if hidden else "routers stay in doubt, or rounding shows"
    raise DataError(f"seed {seed}: no prompt for {case_id}: {why}; choose another seed")


def logits(network: Network, prompt: Prompt, positions: list[int]) -> np.ndarray:
    """(P, V) float32."""
    hidden, _ = network.hidden_states(torch.tensor([prompt.token_ids]), images=prompt.images)
    return network.logits(hidden[0, positions]).numpy()


def _shaken(network: Network, seed: int) -> Network:
    """The network with every weight moved by two units in its last place, up or down: what rounding may do."""
    shaken = copy.deepcopy(network)
    for name, weight in shaken.state_dict().items():
        up = raw(seed, f"{name} up", weight.numel()).reshape(tuple(weight.shape)) & np.uint64(1)
        weight.mul_(1 + (torch.from_numpy(up.astype(np.float32)) * 2 - 1) * 2**-22)
    return shaken


def _positions(case: LogitCase, num_tokens: int) -> list[int]:
    chosen = range(num_tokens) if case.positions is None else case.positions
    return [position % num_tokens for position in chosen]


def _margin(network: Network, prompt: Prompt) -> float:
    _, routings = network.hidden_states(torch.tensor([prompt.token_ids]), images=prompt.images)
    routers = [module for module in network.modules() if isinstance(module, Router | Llama4Router)]
    return min((_one_margin(router, routing) for router, routing in zip(routers, routings, strict=True)), default=1.0)


def _one_margin(router: Router | Llama4Router, routing: Routing) -> float:
    scores = routing.logits.sigmoid()
    if isinstance(router, Router):
        scores = scores + router.e_score_correction_bias
    k = routing.indices.shape[1]
    if k == scores.shape[1]:
        return 1.0
    ranked = scores.sort(dim=-1, descending=True).values
    return float((ranked[:, k - 1] - ranked[:, k]).min())
