"""Drafts: guesses at a reply's next tokens, which the model checks all in one step.

A step of several tokens costs more than one of a single token, so a draft pays only where it is
long and almost surely right (arXiv:2211.17192). Both sides are measured: what steps cost on this
machine (`Profile.step_s`), and how often guesses come true, which is learned from every greedy
reply, whether its drafts are read or not.

A hint, the reply of a tier that was given up for a better one, is nearly always worth a draft: most
of it stands in the better reply too.

Replies stay what plain greedy decoding gives, save where llama.cpp's kernels round differently
in steps of another size and the two likeliest tokens are as good as equal (so it is with
quantized weights; batching has the same effect).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import ReferenceType, ref

import numpy as np

from tierwise.runtime.generation import Generation
from tierwise.runtime.hints import Hint

PROMPT_LOOKUP = "prompt_lookup"
"""Key of `Profile.drafting`; the others are the sha256 of smaller tiers."""

WORTH = 1.05
"""Measured gain (seconds without drafts, divided by seconds with them) from which on drafts are
made."""

LONGEST = 15
"""Tokens of a draft: with the token before them a step of 16."""

SHORTEST_MATCH, LONGEST_MATCH = 3, 12
"""Tokens that must have stood before what is guessed, and as many as are told apart."""

_CANDIDATES = 8
"""Places in the text, the latest, among which the longest match is looked for."""

_MOST_UNREAD = 64
"""Tokens in a step beyond which no draft is added: it reads a prompt."""

_MEMORY = 100.0
"""Guesses that count: older ones fade."""

_PRIOR = 8.0
"""Guesses that the chance to begin with stands for."""

_LOOKUP_PRIOR = (0.0, 0.0, 0.0, 0.6, 0.7, 0.75, 0.8, 0.8, 0.8, 0.85, 0.85, 0.85, 0.95)
"""By length of the match. SmolLM2-135M: .5 to .8 after 3 tokens, .98 after 12 and more."""

_TIER_PRIOR = (0.85,)

_HINT_PRIOR = (0.95, 0.95, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9, 0.95, 0.95, 0.95, 0.95, 0.93)
"""By how many tokens reply and hint have in common just before. Wrong tool calls of SmolLM2-135M
as Q4_0, hints for Q4_1: .98 to 1 at first, .7 where the tool is chosen, .93 after 12 tokens."""


class StepCosts:
    """Seconds of a step by its number of tokens.

    Args:
        step_s: Measured ones, of one sequence; between them lines are drawn, and the last goes
            on. Of fewer than two nothing can be told: such costs are false.
    """

    def __init__(self, step_s: Mapping[int, float]) -> None:
        self._seconds: list[float] = []
        if len(step_s) > 1:
            sizes = sorted(step_s)
            seconds = [step_s[size] for size in sizes]
            self._slope = max(0.0, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))
            self._seconds = np.interp(range(sizes[-1] + 1), sizes, seconds).tolist()

    def __bool__(self) -> bool:
        return bool(self._seconds)

    def __getitem__(self, tokens: int) -> float:
        beyond = max(0, tokens - len(self._seconds) + 1)
        return self._seconds[tokens - beyond] + beyond * self._slope


_USUAL_STEPS = StepCosts({1: 1.0, 2: 2.1, 4: 3.1, 8: 4.1, 16: 6.2})
"""For hints where nothing was measured, in steps of one token: SmolLM2-135M on two cores. A GPU's
steps are cheaper, so that drafts are rather too short than too long."""


def best_length(
    costs: StepCosts,
    unread: int,
    token_s: float,
    chances: Sequence[float],
    guess_s: float = 0.0,
) -> tuple[int, float]:
    """How many tokens of a draft to read along, and the seconds that this should save.

    Args:
        costs: Of steps.
        unread: Tokens that the step has anyway. After a run that the grammar forced they are
            many, and further ones are cheap.
        token_s: What a token of the reply costs without drafts.
        chances: Of each token of the draft, that it is right if those before it are.
        guess_s: What it costs to guess one.
    """
    best, most = 0, 0.0
    right, expected = 1.0, 0.0
    for length, chance in enumerate(chances, 1):
        right *= chance
        expected += right
        cost = costs[unread + length] - costs[unread] + length * guess_s
        if expected * token_s - cost > most:
            best, most = length, expected * token_s - cost
    return best, most


class Chances:
    """How often a guess was right, by the length of the match that it came from.

    A running average that begins with ``prior`` and forgets: see `_MEMORY`.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self._right = [chance * _PRIOR for chance in prior]
        self._all = [_PRIOR] * len(prior)

    def __getitem__(self, match: int) -> float:
        match = min(match, len(self._all) - 1)
        return self._right[match] / self._all[match]

    def note(self, match: int, right: bool) -> None:
        """Takes what became of a guess."""
        match = min(match, len(self._all) - 1)
        if self._all[match] >= _MEMORY:
            kept = 1 - 1 / _MEMORY
            self._right[match] *= kept
            self._all[match] *= kept
        self._right[match] += right
        self._all[match] += 1


class PromptLookup:
    """Finds what followed when the latest tokens stood in prompt or reply before.

    Tool calls copy names, identifiers and whole sentences from the prompt (prompt lookup
    decoding, https://github.com/apoorvumang/prompt-lookup-decoding). About 10 µs at 2,000 tokens.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._ids = np.empty(len(tokens) + 512, np.int32)
        self._size = 0

    def guess(self, tokens: list[int]) -> tuple[int, list[int]]:
        """The length of the longest match, and the tokens that followed it.

        Args:
            tokens: Prompt and reply so far; at each call those of the last and more.
        """
        size = len(tokens)
        if size > self._ids.size:
            self._ids = np.resize(self._ids, 2 * size)
        self._ids[self._size : size] = tokens[self._size :]
        self._size = size
        if size <= SHORTEST_MATCH:
            return 0, []
        ids = self._ids[: size - 1]
        found = ids[2:] == tokens[-1]
        found &= ids[1:-1] == tokens[-2]
        found &= ids[:-2] == tokens[-3]
        longest, after = 0, 0
        for place in found.nonzero()[0][: -_CANDIDATES - 1 : -1].tolist():
            match, end = SHORTEST_MATCH, place + SHORTEST_MATCH
            most = min(end, LONGEST_MATCH)
            while match < most and tokens[end - match - 1] == tokens[size - match - 1]:
                match += 1
            if match > longest:
                longest, after = match, end
        return longest, tokens[after : after + LONGEST] if longest else []


class Guesser(Protocol):
    """A smaller model with the same vocabulary."""

    costs: StepCosts

    def lag(self, tokens: Sequence[int]) -> int:
        """How many of the tokens it has yet to read."""
        ...

    def guess(self, tokens: Sequence[int], length: int) -> list[int]:
        """The next tokens, the likeliest each time; none if it has no time or no room."""
        ...


@dataclass(slots=True)
class _Guess:
    """Tokens that somebody thinks will come, and whose chances this will teach."""

    chances: Chances
    match: int
    tokens: list[int]


class Drafter:
    """Gives a reply that has the model to itself a draft, where one should save time.

    A batch of several replies gets none: it has no arithmetic to spare. Sampled replies get none
    either, as theirs could not be checked.

    Args:
        step_s: Measured seconds of a step by its number of tokens. Without them only hints
            are drafted.
        gains: What drafts were measured to gain on this machine, as in `Profile.drafting`.
    """

    def __init__(
        self, step_s: Mapping[int, float] | None = None, gains: Mapping[str, float] | None = None
    ) -> None:
        self.costs = StepCosts(step_s or {})
        self.gains = {name: gain for name, gain in (gains or {}).items() if gain > WORTH}
        self.smaller: Guesser | None = None
        """May be set by other threads at any time."""
        self._by_lookup = Chances(_LOOKUP_PRIOR)
        self._by_tier = Chances(_TIER_PRIOR)
        self._by_hint = Chances(_HINT_PRIOR)
        self._reply: ReferenceType[Generation] | None = None
        self._lookup = PromptLookup(())
        self._hint = Hint((), 0)
        self._start = 0
        self._guesses: list[_Guess] = []

    def prepare(self, replies: Sequence[Generation], room: int) -> None:
        """Sets the drafts of all replies in progress, before a step of ``room`` tokens or less."""
        for reply in replies:
            reply.draft, reply.hinted = [], False
        if len(replies) == 1 and replies[0].greedy and (replies[0].hint or self._gains_here):
            self._draft(replies[0], room - LONGEST)

    @property
    def _gains_here(self) -> bool:
        return bool(self.costs and self.gains)

    def _draft(self, reply: Generation, room: int) -> None:
        tokens = reply.tokens
        if self._reply is None or self._reply() is not reply:
            self._reply, self._lookup, self._guesses = ref(reply), PromptLookup(tokens), []
            self._hint = Hint(reply.hint, len(tokens) - reply.counts[0])
            self._by_tier.note(0, True)  # so that one that was wrong is tried again some day
        self._learn(tokens)
        unread = len(tokens) - reply.read
        if unread > room:
            return
        self._start = len(tokens)
        reply.draft, saved = self._follow(reply, unread)
        reply.hinted = bool(reply.draft)
        if not self._gains_here or unread > _MOST_UNREAD:
            return
        draft, more = self._look_up(reply, unread)
        if more > saved:
            reply.draft, reply.hinted, saved = draft, False, more
        if draft := self._ask(reply, unread, saved):
            reply.draft, reply.hinted = draft, False

    def _follow(self, reply: Generation, unread: int) -> tuple[list[int], float]:
        """A draft from the hint, and what it should save: seconds, or steps of one token. Unlike
        others it may go along with a prompt, beside which further tokens are cheapest."""
        match, guess = self._hint.guess(reply.tokens, LONGEST)
        guess = reply.check_draft(guess)
        self._guesses.append(_Guess(self._by_hint, match, guess))
        return self._as_long_as_it_pays(reply, unread, self._by_hint, match, guess)

    def _look_up(self, reply: Generation, unread: int) -> tuple[list[int], float]:
        """A draft from the text itself, and the seconds that it should save."""
        if PROMPT_LOOKUP not in self.gains:
            return [], 0.0
        match, guess = self._lookup.guess(reply.tokens)
        guess = reply.check_draft(guess)
        self._guesses.append(_Guess(self._by_lookup, match, guess))
        return self._as_long_as_it_pays(reply, unread, self._by_lookup, match, guess)

    def _as_long_as_it_pays(
        self, reply: Generation, unread: int, by_match: Chances, match: int, guess: list[int]
    ) -> tuple[list[int], float]:
        costs = self.costs or _USUAL_STEPS
        chances = [by_match[match + offset] for offset in range(len(guess))]
        length, saved = best_length(costs, unread, _token_s(reply, costs), chances)
        return guess[:length], saved

    def _ask(self, reply: Generation, unread: int, saved: float) -> list[int]:
        """A draft by the smaller model, if it should save more than ``saved`` seconds.

        What it has yet to read of the prompt must cost no more than the reply has cost so far:
        most replies end before that pays.
        """
        smaller = self.smaller
        if smaller is None or not smaller.costs:
            return []
        token_s, costs = _token_s(reply, self.costs), smaller.costs
        chances = [self._by_tier[0]] * LONGEST
        length, more = best_length(self.costs, unread, token_s, chances, costs[1])
        if more <= saved:
            return []
        lag = smaller.lag(reply.tokens)
        if lag > LONGEST + unread and costs[lag] > reply.counts[0] * token_s:
            return []
        guess = reply.check_draft(smaller.guess(reply.tokens, length))
        if guess:
            self._guesses.append(_Guess(self._by_tier, 0, guess))
        return guess

    def _learn(self, tokens: Sequence[int]) -> None:
        """Compares the last guesses with what came."""
        came = tokens[self._start :]
        for guess in self._guesses:
            for offset, (token, true) in enumerate(zip(guess.tokens, came, strict=False)):
                guess.chances.note(guess.match + offset, token == true)
                if token != true:
                    break
        self._guesses = []


def _token_s(reply: Generation, costs: StepCosts) -> float:
    """Seconds that a token of this reply costs without drafts, those that the grammar forces going
    along with the next one drawn."""
    count, forced = reply.counts
    run = max(1.0, count / max(1, count - forced))
    return costs[round(run)] / run
