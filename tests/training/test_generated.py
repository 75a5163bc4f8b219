from pathlib import Path

import numpy as np

from musespark.chat.tokenizer import Tokenizer
from musespark.evals.generated.catalogue import samples
from musespark.evals.generated.sample import training_rng
from musespark.training.conversations import tokenise
from musespark.training.generated import generated_conversations
from musespark.training.recipe import GeneratedData
from musespark.training.sources import prepare_chat

TOKENIZER = Tokenizer.bytes_only()


def spell(token_ids: list[int]) -> str:
    return "".join(TOKENIZER.special_name(i) or TOKENIZER.decode([i]) for i in token_ids)


def test_calls_are_learned_as_the_server_would_read_them_and_their_tools_are_in_the_prompt() -> None:
    conversation = next(generated_conversations({"one_call": 1}))
    token_ids, mask = tokenise(conversation, TOKENIZER)
    (call,) = conversation.messages[-1].tool_calls
    text, learned = spell(token_ids), spell(list(np.array(token_ids)[mask]))
    assert all(f'"{tool.name}"' in text.split("<|start|>user")[0] for tool in conversation.tools)
    assert call.name in learned
    assert learned.endswith("<|eot|>")


def test_steps_are_written_only_when_the_effort_asks_for_them() -> None:
    conversations = list(generated_conversations({"arithmetic": 200}))
    thinking = [c for c in conversations if c.messages[-1].reasoning]
    assert 20 < len(thinking) < 150
    assert {c.effort for c in thinking} <= {"medium", "high", "xhigh"}
    assert {c.effort for c in conversations if not c.messages[-1].reasoning} == {"low"}


def test_what_is_trained_on_is_drawn_from_training_seeds() -> None:
    (conversation,) = generated_conversations({"logic": 1}, seed=3)
    (sample,) = samples("logic", training_rng(3000), 1)
    assert conversation.messages[0] == sample.messages[0]


def test_other_counts_or_another_seed_make_another_file(tmp_path: Path) -> None:
    tokenizer_file = tmp_path / "tokenizer.json"
    tokenizer_file.write_text("{}")
    specs = [GeneratedData({"logic": 2}), GeneratedData({"logic": 3}), GeneratedData({"logic": 2}, seed=1)]
    paths = [prepare_chat("drills", spec, tokenizer_file, TOKENIZER, tmp_path, tmp_path) for spec in specs]
    assert len({*paths}) == 3
    assert all(path.exists() for path in paths)
