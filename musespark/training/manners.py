"""Short conversations written here: greetings, who are you, say X, counting, colours, small sums, capitals.

They teach a small model to answer in the chat format, to the point, and to end by itself. Turns are drawn from the
topics below; a conversation has one to four of them. With higher effort a turn is preceded by a sentence of reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from musespark.chat.messages import Message, Text
from musespark.training.conversations import Conversation
from musespark.training.facts import (
    ABILITIES,
    ABOUT,
    ANIMALS,
    BYE,
    CAN,
    COLOURS,
    DEFINITIONS,
    FACTS,
    FAREWELL,
    FEEL,
    FINE,
    HELLO,
    NAMES,
    NUMBER_WORDS,
    OPPOSITES,
    ORDERS,
    PLURALS,
    THANKS,
    WELCOME,
    WHO,
    WORDS,
    YES_NO,
)
from musespark.training.shards import read_images, read_texts

Rng = np.random.Generator
Turn = tuple[str, str, str]  # question, answer, reasoning
Topic = Callable[[Rng], Turn]

THINKING = ("medium", "high", "xhigh")


def manners_conversations(data: Path, *, seed: int = 0, count: int = 14_000) -> Iterator[Conversation]:
    rng = np.random.default_rng(seed)
    topics = [*PLAIN_TOPICS, _capital_topic(data)]
    stories = _short_stories(data)
    weights = np.array([WEIGHTS.get(topic.__name__.strip("_"), 1.0) for topic in topics])
    for _ in range(count):
        if rng.random() < 0.05:
            yield _story(stories, rng)
            continue
        if rng.random() < 0.05:
            yield _remembered_name(rng)
            continue
        thinks = rng.random() < 0.2
        messages: list[Message] = []
        for topic in rng.choice(len(topics), size=int(rng.choice([1, 1, 2, 3, 4])), p=weights / weights.sum()):
            question, answer, reasoning = topics[topic](rng)
            messages.append(Message("user", (Text(question),)))
            messages.append(Message("assistant", (Text(answer),), reasoning=reasoning if thinks else None))
        yield Conversation(tuple(messages), effort=str(rng.choice(THINKING)) if thinks else "low")


def _pick(options: tuple[str, ...] | list[str], rng: Rng) -> str:
    return options[int(rng.integers(len(options)))]


def _hello(rng: Rng) -> Turn:
    word = _pick(HELLO, rng)
    mark = _pick(("", "!", ".", ", how are you?"), rng)
    answer = "Hello! I am fine, thank you. How can I help you?" if "how" in mark else "Hello! How can I help you today?"
    return word + mark, answer, "The user greets me. I greet back."


def _who(rng: Rng) -> Turn:
    question = _pick(WHO, rng)
    about = _pick(ABOUT, rng)
    if question.startswith("Are you"):
        about = "I am not a human. " + ABOUT[0] if "human" in question else "I am a computer program. " + ABOUT[0]
    return question, about, "The user asks who I am. I am Muse Spark nano."


def _can(rng: Rng) -> Turn:
    return _pick(CAN, rng), _pick(ABILITIES, rng), "The user asks what I can do."


def _feel(rng: Rng) -> Turn:
    return _pick(FEEL, rng), _pick(FINE, rng), "The user asks how I am."


def _thanks(rng: Rng) -> Turn:
    return _pick(THANKS, rng), _pick(WELCOME, rng), "The user thanks me."


def _bye(rng: Rng) -> Turn:
    return _pick(BYE, rng), _pick(FAREWELL, rng), "The user says goodbye."


def _say(rng: Rng) -> Turn:
    words = " ".join(_pick(WORDS, rng) for _ in range(int(rng.integers(1, 4))))
    question = _pick(
        ("Say {}.", "Say {}", "Repeat after me: {}", "Please say: {}", "Say the word {}.", "Write {}.", "Repeat: {}",
         "Reply with {}.", "Reply with exactly: {}", "Just say {}."), rng,
    )  # fmt: skip
    if rng.random() < 0.3:
        words = words.capitalize()
    return question.format(words), words, f"The user wants me to say {words}."


def _count(rng: Rng) -> Turn:
    start, length = int(rng.integers(0, 12)), int(rng.integers(2, 9))
    start = 1 if rng.random() < 0.5 else start
    numbers = list(range(start, start + length + 1))
    question = _pick(("Count from {} to {}.", "Count from {} to {}", "Please count from {} to {}."), rng)
    question = question.format(numbers[0], numbers[-1])
    if start == 1 and rng.random() < 0.5:
        question = f"Count to {numbers[-1]}."
    return question, ", ".join(map(str, numbers)), f"I count from {numbers[0]} to {numbers[-1]}."


def _sum(rng: Rng) -> Turn:
    a, b = int(rng.integers(0, 11)), int(rng.integers(0, 11))
    if rng.random() < 0.3:
        a, b = max(a, b), min(a, b)
        sign, word, result = "-", "minus", a - b
    else:
        sign, word, result = "+", "plus", a + b
    question = _pick((f"What is {a} {sign} {b}?", f"{a} {sign} {b}", f"What is {a} {word} {b}?", f"{a}{sign}{b}=?",
                      f"Calculate {a} {sign} {b}."), rng)  # fmt: skip
    return question, f"{a} {sign} {b} = {result}", f"I calculate {a} {sign} {b}. It is {result}."


def _colour(rng: Rng) -> Turn:
    thing, colour = _pair(COLOURS, rng)
    question = _pick(("What colour is {}?", "What color is {}?", "Which colour does {} have?"), rng).format(thing)
    return question, f"{thing.capitalize()} is {colour}.", f"{thing.capitalize()} is {colour}."


def _opposite(rng: Rng) -> Turn:
    one, other = _pair(OPPOSITES, rng)
    if rng.random() < 0.5:
        one, other = other, one
    question = _pick(("What is the opposite of {}?", "Give me the opposite of {}.", "Opposite of {}?"), rng).format(one)
    return question, f"The opposite of {one} is {other}.", f"The opposite of {one} is {other}."


def _animal(rng: Rng) -> Turn:
    animal, sound = _pair(ANIMALS, rng)
    question = _pick(("What does a {} say?", "What sound does a {} make?", "Which sound does a {} make?"), rng)
    return question.format(animal), f"A {animal} says {sound}.", f"A {animal} says {sound}."


def _plural(rng: Rng) -> Turn:
    one, many = _pair(PLURALS, rng)
    return f"What is the plural of {one}?", f"The plural of {one} is {many}.", f"One {one}, two {many}."


def _define(rng: Rng) -> Turn:
    word, meaning = _pair(DEFINITIONS, rng)
    question = _pick(("What is {}?", "What is {}", "Explain {}.", "Can you tell me what {} is?", "Define {}."), rng)
    return question.format(word), f"{word[0].upper()}{word[1:]} is {meaning}.", f"I explain what {word} is."


def _fact(rng: Rng) -> Turn:
    question, answer = _pair(FACTS, rng)
    return question, answer, "I know this."


def _yes_no(rng: Rng) -> Turn:
    question, answer = _pair(YES_NO, rng)
    return question, answer, "I think about whether this is true."


def _order(rng: Rng) -> Turn:
    kind, items = ORDERS[int(rng.integers(len(ORDERS)))]
    i = int(rng.integers(len(items) - 1))
    if rng.random() < 0.3:
        return (
            f"What comes before {items[i + 1]}?",
            f"{items[i]} comes before {items[i + 1]}.",
            f"I think of the {kind}.",
        )
    return f"What comes after {items[i]}?", f"{items[i + 1]} comes after {items[i]}.", f"I think of the {kind}."


def _list(rng: Rng) -> Turn:
    kind, items = ORDERS[int(rng.integers(len(ORDERS)))]
    question = _pick(("List the {}.", "What are the {}?", "Name the {}.", "Tell me the {}."), rng).format(kind)
    return question, ", ".join(items) + ".", f"I list the {kind}."


def _number_word(rng: Rng) -> Turn:
    n = int(rng.integers(len(NUMBER_WORDS)))
    if rng.random() < 0.5:
        return f"Write {n} as a word.", f"{NUMBER_WORDS[n]}", f"{n} is {NUMBER_WORDS[n]}."
    return f"Write {NUMBER_WORDS[n]} as a number.", f"{n}", f"{NUMBER_WORDS[n]} is {n}."


def _unknown(rng: Rng) -> Turn:
    question = _pick(
        ("What is the weather today?", "What time is it?", "What is today's date?", "Where am I?", "Who won the game?",
         "What is in the news?", "What will happen tomorrow?", "How much money do I have?"), rng,
    )  # fmt: skip
    return question, "I do not know that. I have no access to the internet or a clock.", "I can't know this."


def _capital_topic(data: Path) -> Topic:
    pairs = [
        (row["name"], row["answer"])
        for path in sorted((data / "images").glob("flags-*.tar"))
        for _, _, row in read_images(path)
        if "answer" in row and "capital" in row.get("question", "")
    ]

    def _capital(rng: Rng) -> Turn:
        country, capital = pairs[int(rng.integers(len(pairs)))]
        question = _pick(("What is the capital of {}?", "What's the capital of {}?", "Capital of {}?"), rng)
        return (
            question.format(country),
            f"The capital of {country} is {capital}.",
            f"The capital of {country} is {capital}.",
        )

    return _capital


def _short_stories(data: Path) -> list[str]:
    """The first paragraphs of children's stories, up to about 700 characters."""
    openings = []
    for path in sorted((data / "text").glob("stories-*.jsonl.zst")):
        for text in read_texts(path):
            opening = text[: text.rfind(".", 0, 700) + 1].strip()
            if len(opening) > 200 and len(text) < 6000:
                openings.append(opening)
    return openings


def _story(stories: list[str], rng: Rng) -> Conversation:
    question = _pick(
        ("Tell me a story.", "Write a short story.", "Tell me a short story.", "Can you tell me a story?",
         "Write a story for children."), rng,
    )  # fmt: skip
    return Conversation((Message("user", (Text(question),)), Message("assistant", (Text(_pick(stories, rng)),))))


def _remembered_name(rng: Rng) -> Conversation:
    name = _pick(NAMES, rng)
    turns = [
        (
            _pick(("My name is {}.", "I am {}.", "Hi, I'm {}.", "Call me {}."), rng).format(name),
            f"Hello {name}! How can I help you?",
        ),
        (_pick(("What is my name?", "Who am I?", "Do you know my name?"), rng), f"Your name is {name}."),
    ]
    messages: list[Message] = []
    for question, answer in turns[: int(rng.integers(1, 3))]:
        messages += [Message("user", (Text(question),)), Message("assistant", (Text(answer),))]
    return Conversation(tuple(messages))


def _pair(pairs: tuple[tuple[str, str], ...], rng: Rng) -> tuple[str, str]:
    return pairs[int(rng.integers(len(pairs)))]


PLAIN_TOPICS: tuple[Topic, ...] = (
    _hello, _who, _can, _feel, _thanks, _bye, _say, _count, _sum, _colour, _opposite, _animal, _plural, _define, _fact,
    _yes_no, _order, _list, _number_word, _unknown,
)  # fmt: skip
WEIGHTS = {
    "hello": 1.5,
    "who": 1.5,
    "say": 2.0,
    "count": 1.5,
    "sum": 1.5,
    "define": 2.0,
    "fact": 1.5,
    "capital": 1.5,
    "feel": 0.7,
}
