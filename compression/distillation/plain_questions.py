"""Questions that need no tool: the teacher answers them in its own words."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tierwise.compression.distillation.conversations import Conversation
from tierwise.runtime.chat import Message

_THINGS = tuple(
    """
    rainbows; volcanoes; the moon; honey bees; photosynthesis; inflation; democracy; the Silk Road;
    chess; jazz; origami; bread; coral reefs; glaciers; gravity; magnets; tea; the printing press;
    vaccines; penguins; earthquakes; the human heart; solar panels; bicycles; recycling; compost;
    poetry; opera; friendship; time zones; the alphabet; maps; bridges; lighthouses; windmills;
    rivers; deserts; clouds; snow; thunder; tides; dreams; memory; sleep; running; swimming;
    gardening; cooking rice; public libraries; trains; elections; taxes; insurance; databases;
    programming; the internet; passwords; encryption; batteries; steel; glass; paper; cotton; silk;
    chocolate; coffee; salt; vinegar; cheese; soap; cats; dogs; owls; whales; ants; spiders; wolves
    """.replace("\n", " ").split(";")
)
_ASKING = tuple(
    line.strip()
    for line in """
    What should everyone know about {thing}?
    Explain {thing} to a child in two sentences.
    Write three short sentences about {thing}.
    Why do people care about {thing}?
    Give me one surprising fact about {thing}.
    Write a two-line poem about {thing}.
    Name three words that go with {thing}.
    How would you describe {thing} to somebody from another planet?
    What is a good question to ask about {thing}?
    Tell me something interesting about {thing}, briefly.
    Write a short title for an essay about {thing}.
    In one sentence, what are your thoughts on {thing}?
    Suggest a hobby that has to do with {thing}.
    What is a common mistake that people make about {thing}?
    """.strip().splitlines()
)
_FOLLOWING = (
    "Can you say that in fewer words?",
    "Thank you. What else?",
    "Could you give an example?",
    "Say it again, as a question.",
)
_SYSTEMS = ("", "", "You are a helpful assistant.", "Answer briefly.", "Be kind and short.")


def plain_conversations(seed: int) -> Iterator[Conversation]:
    """Each question once, in one turn or two; every answer is the teacher's to give."""
    rng = random.Random(f"tierwise-distil-chat-{seed}")
    questions = [ask.format(thing=thing.strip()) for ask in _ASKING for thing in _THINGS]
    rng.shuffle(questions)
    for number, question in enumerate(questions):
        system = rng.choice(_SYSTEMS)
        messages = [Message("system", system)] if system else []
        asked = []
        for turn in (question, *((rng.choice(_FOLLOWING),) if rng.random() < 0.3 else ())):
            messages.append(Message("user", turn))
            asked.append(len(messages))
            messages.append(Message("assistant"))
        yield Conversation(tuple(messages), "chat", f"chat-{number}", asked=tuple(asked))
