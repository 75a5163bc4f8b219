"""`musespark chat`: a conversation in the terminal, answered by the engine inside this process.

The answer streams as it is generated; reasoning is shown dimmed and stays in the history, since the model plans on it.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout
from rich.console import Console

from musespark.api.load import LoadedModel
from musespark.api.settings import Settings
from musespark.chat.images import decode_image
from musespark.chat.messages import Image, Message, Text
from musespark.cli.image_file import read_image
from musespark.cli.inspect_image import view
from musespark.cli.loading import load_with_bar
from musespark.errors import InvalidRequest, MuseSparkError
from musespark.model.config import ModelType
from musespark.providers.base import ChatRequest, ContentDelta, Finished, Provider, ReasoningDelta

HELP = "/image FILE adds an image to the next message · /reset forgets the conversation · /help · /quit (or Ctrl-D)"


@dataclass(frozen=True, slots=True)
class Style:
    """How the answers are asked for; None leaves it to the model."""

    system: str | None = None
    effort: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None


@dataclass(slots=True)
class Conversation:
    provider: Provider
    style: Style
    model_type: ModelType
    console: Console = field(default_factory=Console)
    notes: Console = field(default_factory=lambda: Console(stderr=True))
    messages: list[Message] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.images.clear()
        self.messages = [] if self.style.system is None else [Message("system", (Text(self.style.system),))]

    def add_image(self, path: Path) -> None:
        """Put an image in front of the next message. Raises InvalidImage if it is not one."""
        data = read_image(path.expanduser())
        seen = view(self.model_type, *decode_image(data).size)
        self.images.append(Image(data))
        self.note(f"{path.name}: {seen.image_tokens:,} tokens")

    def note(self, text: str, style: str = "dim") -> None:
        """Say something that is not part of the answer, on standard error."""
        self.notes.print(text, style=style, markup=False, highlight=False)

    async def ask(self, text: str) -> None:
        """Send a message and print the answer as it comes. An answer that fails leaves the history as it was."""
        if not text.strip() and not self.images:
            raise InvalidRequest("the question is empty")
        question = Message("user", (*self.images, Text(text)))
        stream = await self.provider.chat(
            ChatRequest(
                id=f"chat-{secrets.token_hex(8)}",
                messages=(*self.messages, question),
                cache_salt=self.salt,
                reasoning_effort=self.style.effort,
                max_tokens=self.style.max_tokens,
                temperature=self.style.temperature,
                seed=self.style.seed,
            )
        )
        reasoning, content, cut = "", "", False
        try:
            async for event in stream:
                if isinstance(event, ReasoningDelta):
                    reasoning += event.text
                    self._print(event.text, style="dim")
                elif isinstance(event, ContentDelta):
                    if reasoning and not content:
                        self._print("\n")
                    content += event.text
                    self._print(event.text)
                elif isinstance(event, Finished):
                    cut = event.reason == "length"
        finally:
            await stream.aclose()
            self._print("\n")
        if cut:
            self.note("the answer was cut: it had no tokens left", style="yellow")
        self.messages += [question, Message("assistant", (Text(content),), reasoning=reasoning or None)]
        self.images.clear()

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, end="", style=style, markup=False, highlight=False, soft_wrap=True)


def run_chat(settings: Settings, style: Style, prompt: str | None, images: tuple[Path, ...]) -> None:
    """Answer `prompt`, or converse until end of file. Raises what is wrong with the checkpoint, image or question."""
    with Console(stderr=True).status("loading the model"):
        model = load_with_bar(settings)
    asyncio.run(_run(model, Conversation(model.provider, style, model.model_type), settings.state_dir, prompt, images))


async def _run(
    model: LoadedModel, conversation: Conversation, state_dir: Path, prompt: str | None, images: tuple[Path, ...]
) -> None:
    try:
        for path in images:
            conversation.add_image(path)
        if prompt is None and sys.stdin.isatty():
            await _converse(conversation, state_dir)
        else:
            await conversation.ask(sys.stdin.read() if prompt is None else prompt)
    finally:
        await model.close(0.0)


async def _converse(conversation: Conversation, state_dir: Path) -> None:
    state_dir.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(history=FileHistory(str(state_dir / "chat_history")))
    conversation.note(f"{conversation.provider.model.id} · {HELP}")
    while True:
        try:
            with patch_stdout():
                line = (await session.prompt_async("> ")).strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            if not await _obey(conversation, line):
                return
        except (MuseSparkError, ValueError) as error:
            conversation.note(str(error), style="red")


async def _obey(conversation: Conversation, line: str) -> bool:
    """Carry out one line; False ends the conversation. Ctrl-C during an answer stops only the answer."""
    command, _, rest = line.partition(" ")
    match command:
        case "":
            pass
        case "/quit":
            return False
        case "/help":
            conversation.note(HELP)
        case "/reset":
            conversation.reset()
            conversation.note("the conversation is empty")
        case "/image":
            if not rest.strip():
                raise InvalidRequest("/image needs the name of a file")
            for name in shlex.split(rest):
                conversation.add_image(Path(name))
        case _ if command.startswith("/"):
            raise InvalidRequest(f"there is no {command}; {HELP}")
        case _:
            await _interruptible(conversation.ask(line))
    return True


async def _interruptible(answer: Coroutine[None, None, None]) -> None:
    task = asyncio.ensure_future(answer)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)
