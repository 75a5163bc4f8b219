"""The obvious scorer: every continuation alone, as one sequence through the torch network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from musespark.chat.formats import make_format
from musespark.chat.messages import Message
from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer
from musespark.model.network import Network


class ReferenceScorer:
    """Implements `musespark.evals.model_under_test.Scorer`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.tokenizer = Tokenizer.bytes_only()
        self._chat = make_format("muse_spark", self.tokenizer)

    def render(self, messages: Sequence[Message]) -> Prompt:
        return self._chat.render(messages)

    def reply(self, text: str) -> list[int]:
        return self._chat.reply(text)

    @torch.no_grad()
    def log_probs(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[float]:
        features = list(self.network.encode_images(prompt.images)) if prompt.images else []
        found = []
        for continuation in continuations:
            tokens = torch.tensor([[*prompt.token_ids, *continuation]])
            hidden, _ = self.network.hidden_states(tokens[:, :-1], images=features)
            logits = self.network.logits(hidden[0, len(prompt.token_ids) - 1 :])
            found.append(-float(F.cross_entropy(logits, torch.tensor(continuation), reduction="sum")))
        return found
