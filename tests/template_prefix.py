"""Where a chat template breaks the prefix that the cache lives on.

A turn's prompt and reply should be the beginning of the next turn's prompt: then only what is
new is computed. Some templates go back on what they wrote; here one can see which, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tierwise.runtime.chat import Call, Message
from tierwise.runtime.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class PrefixBreak:
    """A prompt does not begin with the prompt and reply before it.

    Args:
        turn: Index of the assistant's message whose prompt and reply were not kept.
        message: Index of the message that changed what was written before.
        role: That message's role.
        prompt_chars: Length of the turn's prompt.
        reply_chars: Length of its reply.
        kept_chars: How much of both the next prompt begins with.
        was: What stood where they part.
        became: What stands there now.
    """

    turn: int
    message: int
    role: str
    prompt_chars: int
    reply_chars: int
    kept_chars: int
    was: str
    became: str

    @property
    def in_prompt(self) -> bool:
        """Whether the prompt itself was changed, not just the reply to it."""
        return self.kept_chars < self.prompt_chars

    def __str__(self) -> str:
        return (
            f"message {self.message} ({self.role}) changes the prompt of turn {self.turn}: "
            f"{self.kept_chars:,} of its {self.prompt_chars:,} + {self.reply_chars:,} characters "
            f"are kept; {self.was!r} became {self.became!r}"
        )


def prefix_breaks(template: ChatTemplate, call: Call) -> Iterator[PrefixBreak]:
    """All breaks of a conversation, turn by turn.

    Raises:
        UnsupportedModelError: The template refuses a part of the conversation.
    """
    messages = call.messages
    turns = [index for index, m in enumerate(messages) if m.role == "assistant"]
    for turn, following in zip(turns, [*turns[1:], len(messages)], strict=True):
        before = template.render(replace(call, messages=messages[:turn]))
        reply = reply_text(template, messages[turn])
        grown = range(turn + 2, following + 1)  # prompts end with another's message
        texts = [template.render(replace(call, messages=messages[:end])) for end in grown]
        if not texts:
            continue
        kept = [_shared(before + reply, text) for text in texts]
        if kept[-1] == len(before + reply):
            continue
        last = messages[turn - 1].content if turn else ""
        own = before.rfind(last) + len(last) if last in before else len(before)
        # From the end of the last message on it is this turn itself that is written otherwise.
        changed = turn if kept[-1] >= own else turn + 1 + kept.index(min(kept))
        yield PrefixBreak(
            turn=turn,
            message=changed,
            role=messages[changed].role,
            prompt_chars=len(before),
            reply_chars=len(reply),
            kept_chars=kept[-1],
            was=(before + reply)[kept[-1] :][:40],
            became=texts[-1][kept[-1] :][:40],
        )


def reply_text(template: ChatTemplate, message: Message) -> str:
    """What the model writes when it answers with this message."""
    calls = template.tool_format.write(message.tool_calls)
    answer = "\n".join(filter(None, (message.content, calls)))
    if not calls:
        answer = template.tool_format.answer + answer
    thinking = template.thinking()
    if thinking == "no" or not message.reasoning:
        return answer
    thoughts = template.tool_format.thoughts
    begin = f"{thoughts.open}\n" if thinking == "may" else ""
    return f"{begin}{message.reasoning}\n{thoughts.close}\n\n{answer}"


def _shared(one: str, other: str) -> int:
    """Length of the common prefix."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
