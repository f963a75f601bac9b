"""Measures what drafts gain on this machine: the same replies with and without them.

    python -m tierwise.evaluation.drafting FILE [--smaller FILE] [--threads N] [--runs N]

prints the gains (seconds without drafts, divided by seconds with them) as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tierwise.evaluation.profiling import measure_profile
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.drafting import LONGEST, PROMPT_LOOKUP, Drafter, StepCosts, best_length
from tierwise.runtime.files import FileHashes
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.profile import Profile
from tierwise.runtime.resources import probe

CONTEXT_TOKENS = 2048
REPLY_TOKENS = 64

LOOKUP_RIGHT, TIER_RIGHT = 0.98, 0.9
"""Shares of guesses that are right at best, by prompt lookup (SmolLM2-135M, after 12 tokens in
common) and by a smaller tier. Who would not pay even so is not measured."""

_TEXTS = (
    "Dear Ms Hartmann, order 4471-K of 12 March left our warehouse in Rotterdam this morning and "
    "will reach you on Friday between nine and eleven. Please have form B-17 ready for the driver.",
    "The heat pump in building 3 reports error E204 since 06:40; pressure fell from 4.1 to 1.7 "
    "bar. Spare valve VX-220-88 is on shelf 14. Nobody should restart it before Ms Okafor has "
    "looked.",
)

_SAVE_NOTE = Tool(
    "save_note",
    "Saves a text exactly as it was given.",
    {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
        "additionalProperties": False,
    },
)


def worth_measuring(profile: Profile, smaller: Profile | None = None) -> list[str]:
    """What might draft for a tier and was not measured: keys of `Profile.drafting`.

    Prompt lookup, and the smaller tier, each only if it would pay at its best, by what steps
    cost.
    """
    costs = StepCosts(profile.step_s)
    if not costs or profile.context_tokens < CONTEXT_TOKENS:
        return []
    best = {PROMPT_LOOKUP: (LOOKUP_RIGHT, 0.0)}
    if smaller is not None and smaller.step_s:
        best[smaller.tier_sha256] = TIER_RIGHT, StepCosts(smaller.step_s)[1]
    return [
        source
        for source, (chance, guess_s) in best.items()
        if source not in profile.drafting
        and best_length(costs, 1, costs[1], [chance] * LONGEST, guess_s)[0]
    ]


def measure_drafting(
    path: Path,
    profile: Profile,
    *,
    smaller: tuple[Path, Profile] | None = None,
    runs: int = 2,
) -> Profile:
    """The profile with what drafts gained; nothing else should be running.

    Replies are tool calls that copy a text from their prompt, where drafts gain the most. Each
    run makes them without and with drafts. Measures what is `worth_measuring`.

    Args:
        path: The GGUF file.
        profile: Of that file, with the costs of steps.
        smaller: A tier that might draft for it, and its profile; by default only prompt lookup
            is measured.
        runs: Of which each gain is the median; a single one makes one reply only.

    Raises:
        ModelError: A file cannot be loaded.
        OutOfMemoryError: There is no room for both tiers.
    """
    gains = dict(profile.drafting)
    for source in worth_measuring(profile, smaller and smaller[1]):
        helper = None if source == PROMPT_LOOKUP else smaller
        gains[source] = _gain(path, profile, source, helper, runs)
    return profile.model_copy(update={"drafting": gains})


def _gain(
    path: Path, profile: Profile, source: str, smaller: tuple[Path, Profile] | None, runs: int
) -> float:
    with ExitStack() as stack:

        def load(path: Path, profile: Profile) -> LoadedTier:
            drafter = Drafter(profile.step_s)
            return stack.enter_context(
                LoadedTier(path, n_ctx=CONTEXT_TOKENS, threads=profile.threads, drafter=drafter)
            )

        tier = load(path, profile)
        if smaller is not None and not tier.engine.draft_with(load(*smaller).engine):
            return 1.0  # another vocabulary: nothing is drafted, nothing gained
        texts = _TEXTS if runs > 1 else _TEXTS[:1]
        seconds = _timed(tier, [_call(text) for text in texts])
        seconds({})  # reads the prompts
        ratios = [seconds({}) / seconds({source: float("inf")}) for _ in range(runs)]
    return statistics.median(ratios)


def _timed(tier: LoadedTier, calls: list[Call]) -> Callable[[dict[str, float]], float]:
    def seconds(gains: dict[str, float]) -> float:
        tier.engine.drafter.gains = gains
        return sum(tier.reply(call).usage.decode_s for call in calls)

    return seconds


def _call(text: str) -> Call:
    asked = Message("user", f"Save this note, word for word: {text}")
    return Call((asked,), (_SAVE_NOTE,), tool_choice="any", max_tokens=REPLY_TOKENS)


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(prog="tierwise.evaluation.drafting", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--smaller", type=Path, help="a tier that might draft")
    parser.add_argument("--threads", type=int, default=probe().threads)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    def profiled(path: Path) -> Profile:
        sha256 = FileHashes.shared().sha256(path)
        return measure_profile(path, sha256, threads=options.threads)

    helper = options.smaller and (options.smaller, profiled(options.smaller))
    profile = profiled(options.file)
    done = measure_drafting(options.file, profile, smaller=helper, runs=options.runs)
    print(json.dumps({"step_s": done.step_s, "drafting": done.drafting}, indent=2))


if __name__ == "__main__":
    main()
