"""Conversations that a student is taught on, and their token documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tierwise.runtime.chat import Call, JSONObject, Message, Tool
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.llama import Model
from tierwise.runtime.prompt_tokens import PromptTokenizer

Tokens = np.ndarray[Any, np.dtype[np.int32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

SHORTEST_ANSWER = 2
"""Tokens; a document whose answers hold fewer teaches nothing."""


@dataclass(frozen=True, eq=False)
class Document:
    """One text to learn from.

    Args:
        tokens: int32 ids, shape (n,).
        answer: bool, shape (n,): True where the assistant's reply stands, its end-of-turn token
            included. The token at i is predicted from the logits at i - 1.
        source: Which of the sources it is from: "agent", "python", "made", "chat",
            "transcripts", "corpus" or "packages".
        given: bool, shape (n,): True where the reply is known to be right; in others it is what the
            teacher said, or any text.
        group: Documents of one group ask for the same things (the same tools, or parts of one
            file), so a held-out part is made of whole groups. Not so of "agent", whose few tools
            are in many groups: held out are other requests for them.
        shown: From where to where the made-up conversation stands that shows a model how tools
            are called; (0, 0) if there is none.
    """

    tokens: Tokens
    answer: Mask
    given: Mask
    source: str
    group: str = ""
    shown: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        tokens: list[int],
        answer: list[bool],
        source: str,
        group: str = "",
        shown: tuple[int, int] = (0, 0),
        given: list[bool] | None = None,
    ) -> Document:
        """From lists of the same length; nothing is given where ``given`` is None."""
        right = [False] * len(tokens) if given is None else given
        assert len(tokens) == len(answer) == len(right), (len(tokens), len(answer), len(right))
        ids = np.asarray(tokens, np.int32)
        masks = np.asarray(answer, np.bool_), np.asarray(right, np.bool_)
        for array in (ids, *masks):
            array.flags.writeable = False
        return cls(ids, *masks, source, group, shown)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of which every assistant turn is an answer to learn.

    Args:
        messages: The turns, oldest first.
        tools: What is offered in it.
        source: As of `Document`.
        group: As of `Document`.
        response_schema: That its answers follow, where they do.
        asked: Indexes of assistant turns that the teacher is to write itself.
        written: Of those that it has written.
    """

    messages: tuple[Message, ...]
    source: str
    group: str
    tools: tuple[Tool, ...] = ()
    response_schema: JSONObject | None = None
    asked: tuple[int, ...] = ()
    written: tuple[int, ...] = ()

    def call(self, turn: int) -> Call:
        """The call whose reply is the message of that index."""
        return Call(self.messages[:turn], tools=self.tools, response_schema=self.response_schema)

    def with_answer(self, turn: int, answer: Message) -> Conversation:
        """With another message in that place, which nobody is asked for any more.

        Its calls take over the ids of those that stood there, which results refer to.
        """
        ids = [call.id for call in self.messages[turn].tool_calls]
        calls = [
            replace(call, id=ids[at] if at < len(ids) else f"extra{at:04}")
            for at, call in enumerate(answer.tool_calls)
        ]
        answer = replace(answer, tool_calls=tuple(calls))
        messages = (*self.messages[:turn], answer, *self.messages[turn + 1 :])
        asked = tuple(index for index in self.asked if index != turn)
        return replace(self, messages=messages, asked=asked, written=(*self.written, turn))

    def asking_for_calls(self) -> Conversation:
        """With every turn that calls a tool to be written by the teacher as well."""
        calls = [turn for turn, message in enumerate(self.messages) if message.tool_calls]
        return replace(self, asked=tuple(sorted({*self.asked, *calls})))

    def cut(self, turn: int) -> Conversation:
        """Without the messages from that index on."""
        return replace(
            self,
            messages=self.messages[:turn],
            asked=tuple(index for index in self.asked if index < turn),
        )


def identified(messages: Iterable[Message]) -> Iterator[Message]:
    """The messages with ids in calls and in their results where they have none.

    Some templates want them, nine letters long; a result without an id belongs to the first call
    before it that has none yet.
    """
    number = 0
    open_ids: list[str] = []
    for message in messages:
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                number += 1
                calls.append(replace(call, id=call.id or f"call{number:05}"))
            open_ids = [call.id for call in calls]
            yield replace(message, tool_calls=tuple(calls))
        elif message.role == "tool" and open_ids:
            id_ = message.tool_call_id or open_ids[0]
            if id_ in open_ids:
                open_ids.remove(id_)
            yield replace(message, tool_call_id=id_)
        else:
            yield message


class Renderer:
    """Turns conversations into documents, token by token as the engine would see them.

    A prompt and the reply to it are tokenized apart, for so they meet in use.

    Args:
        model: Its vocabulary and chat template; must stay open.
        max_tokens: Longest document.
    """

    def __init__(self, model: Model, *, max_tokens: int) -> None:
        self.template = ChatTemplate.of(model)
        self._plainer = ChatTemplate.of(model, demonstrates=False)
        self.max_tokens = max_tokens
        self._model = model
        self._tokenize = PromptTokenizer(model)
        ids = range(model.vocab_size)
        ends = (model.token_text(token) for token in ids if model.is_end(token))
        self._ends = tuple(text for text in ends if text)

    def tokens(self, text: str) -> list[int]:
        """Those of any text, as a prompt that holds it has them."""
        return list(self._tokenize(text))

    def documents(self, conversation: Conversation, *, windows: bool = False) -> Iterator[Document]:
        """The conversation in one document, cut after the last answer that fits.

        In several, where the template writes earlier turns anew when the conversation goes on
        (some leave out thoughts); then each begins with all turns before it.

        Args:
            conversation: With all of its answers.
            windows: What does not fit is put into further documents, which begin with the system
                message and the user's turn before the first answer that was left out. An answer
                that does not even fit so is left out.

        Raises:
            UnsupportedModelError: The template refuses the conversation.
        """
        tokens: list[int] = []
        mask: list[bool] = []
        given: list[bool] = []
        text, shown = "", (0, 0)
        for turn, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            prompt = self.template.render(conversation.call(turn))
            goes_on = bool(text) and prompt.startswith(text)
            if tokens and not goes_on:
                yield from _finished(conversation, tokens, mask, given, shown)
            if not goes_on:
                tokens, mask, given, text = [], [], [], ""
                shown = self._shown(conversation.call(turn), prompt)
            before = tokens + self.tokens(prompt[len(text) :])
            answer, text = self._answer(conversation, turn, prompt)
            if len(before) + len(answer) > self.max_tokens:
                yield from _finished(conversation, tokens, mask, given, shown)
                if windows:
                    yield from self.documents(_later(conversation, turn), windows=True)
                return
            unasked = len(before) - len(mask)
            right = turn not in conversation.written
            mask += [False] * unasked + [True] * len(answer)
            given += [False] * unasked + [right] * len(answer)
            tokens = before + answer
        yield from _finished(conversation, tokens, mask, given, shown)

    def _shown(self, call: Call, prompt: str) -> tuple[int, int]:
        """Where the prompt demonstrates tools, in tokens.

        The demonstration is whole turns, so that the rest has the same tokens without it.
        """
        plainer = self._plainer.render(call)
        if len(plainer) == len(prompt):
            return 0, 0
        long, short = self.tokens(prompt), self.tokens(plainer)
        same = next((at for at, (a, b) in enumerate(zip(long, short, strict=False)) if a != b), 0)
        stop = same + len(long) - len(short)
        return (same, stop) if long[:same] + long[stop:] == short else (0, 0)

    def _answer(self, conversation: Conversation, turn: int, prompt: str) -> tuple[list[int], str]:
        """The tokens of the reply to a prompt, and the text up to their end.

        The text is empty where the template would write the reply in another way than the model
        does; then the conversation cannot go on from it.
        """
        message = conversation.messages[turn]
        calls = self.template.tool_format.write(message.tool_calls)
        said = "\n".join(part for part in (message.content, calls) if part)
        if said and not calls:
            said = self.template.tool_format.answer + said
        whole = self.template.render(conversation.call(turn + 1))
        start = len(prompt) if whole.startswith(prompt) else None
        if start is None or not said or not whole.startswith(said, start):
            end = [self._model.eos] if self._model.eos >= 0 else []
            return self._model.tokenize(said, special=bool(calls)) + end, ""
        rest = start + len(said)
        stop = next(
            (at + len(end) for end in self._ends if 0 <= (at := whole.find(end, rest)) <= rest + 2),
            rest,
        )
        tokens = self._model.tokenize(said, special=bool(calls))
        return tokens + self._model.tokenize(whole[rest:stop]), whole[:stop]


def _later(conversation: Conversation, turn: int) -> Conversation:
    """What does not fit: from the user's turn before that answer on, or from the one after."""
    messages = conversation.messages
    start = 1 if messages[0].role == "system" else 0
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    here = max((index for index in users if index < turn), default=turn)
    if here <= start:  # it is too long by itself
        here = min((index for index in users if index > turn), default=len(messages))
    gone = here - start
    written = tuple(index - gone for index in conversation.written if index >= here)
    rest = (*messages[:start], *messages[here:])
    return replace(conversation, messages=rest, asked=(), written=written)


def _finished(
    conversation: Conversation,
    tokens: list[int],
    mask: list[bool],
    given: list[bool],
    shown: tuple[int, int],
) -> Iterator[Document]:
    if sum(mask) >= SHORTEST_ANSWER:
        source, group = conversation.source, conversation.group
        yield Document.of(tokens, mask, source, group, shown, given)
