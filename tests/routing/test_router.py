"""Decisions on a family of three real tiers: no weights are run but where the text says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from tiny_models import CHATML, write_tiny_gguf

from tierwise.routing.answer import Answer, Attempt
from tierwise.routing.budget import Budget
from tierwise.routing.router import Router
from tierwise.runtime.chat import Call, Message, Reply, Tool, Usage
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import (
    ConfigError,
    ContextOverflowError,
    NoFeasibleTierError,
)
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.resources import Resources
from tierwise.runtime.room import MARGIN_SHARE

PLENTY = Resources(available_bytes=4 * 2**30, total_bytes=8 * 2**30, threads=1)
CALL = Call((Message("user", "hello Paris"),), max_tokens=10)
NAMES = ("small", "middle", "large")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ggufs")
    layers = dict(zip(NAMES, (1, 3, 6), strict=True))
    return {
        name: write_tiny_gguf(folder / f"{name}.gguf", layers=count, context=4096)
        for name, count in layers.items()
    }


@pytest.fixture
def family(files: dict[str, Path], tmp_path: Path) -> Family:
    """Each tier is better than the one before, and takes twice as long."""
    shares = {"small": 0.5, "middle": 0.75, "large": 1.0}
    kls = {"small": 0.2, "middle": 0.05, "large": 0.0}
    specs = [
        TierSpec(
            name,
            files[name],
            kl=kls[name],
            success=dict.fromkeys(("easy", "medium", "hard"), shares[name]),
            n=400,
            prefill=4000 / 2**rank,
            decode=400 / 2**rank,
            load_s=0.5 * 2**rank,
        )
        for rank, name in enumerate(NAMES)
    ]
    return make_family(tmp_path / "family", specs)


class Machine:
    """A resource probe whose answer a test may change."""

    def __init__(self) -> None:
        self.now = PLENTY

    def __call__(self) -> Resources:
        return self.now


MakeRouter = Callable[..., Router]


@pytest.fixture
def make_router(family: Family) -> Iterator[MakeRouter]:
    pools: list[Pool] = []

    def make(
        budget: Budget | None = None, *, memory_bytes: int | None = None, **options: Any
    ) -> Router:
        probe = options.setdefault("probe", Machine())
        pools.append(Pool(family, memory_bytes=memory_bytes, probe=probe, threads=1))
        return Router(family, pools[-1], budget, **options)

    yield make
    for pool in pools:
        pool.close()


def needs(router: Router) -> dict[str, int]:
    return {f.tier: f.memory_bytes for f in router.decide(CALL).forecasts}


def test_the_dial(make_router: MakeRouter) -> None:
    chosen = {q: make_router(Budget(quality=q)).decide(CALL).tier for q in (0.0, 0.7, 1.0)}
    assert chosen == {0.0: "small", 0.7: "middle", 1.0: "large"}


def test_every_tier_is_given_the_prompt_that_it_was_trained_on(
    tmp_path: Path,
) -> None:
    files = [
        write_tiny_gguf(tmp_path / f"{n}.gguf", layers=n, context=4096, chat_template=CHATML)
        for n in (1, 2)
    ]
    specs = [
        TierSpec("small", files[0], kl=0.2, demonstration_tokens=0),
        TierSpec("large", files[1], kl=0.0, demonstration_tokens=200),
    ]
    family = make_family(tmp_path / "mixed", specs)
    call = replace(CALL, tools=(Tool("get_weather", "The weather.", {"type": "object"}),))
    with Pool(family, probe=Machine(), threads=1) as pool:
        router = Router(family, pool, probe=Machine())
        for name in ("small", "large"):
            decision = router.decide(call, pin=name)
            with pool.acquire(family.tier(name), context_tokens=1024) as lease:
                demonstrates = name == "large"
                template = ChatTemplate.of(lease.tier.model, demonstrates=demonstrates)
                text = template.render(call)
                assert decision.prompt == tuple(lease.tier.model.tokenize(text))
            new = {forecast.tier: forecast.new_tokens for forecast in decision.forecasts}
            assert decision.prompt_tokens == new[name] == len(decision.prompt)
            assert new["small"] < new["large"]
        # What is too long for one kind of prompt may still fit the other.
        reply = 4096 - new["small"] - 8
        tight = router.decide(replace(call, max_tokens=reply))
        assert tight.tier == "small"
        trimmed = router.decide(replace(call, max_tokens=reply, overflow="trim"), pin="small")
        assert trimmed.prompt_tokens == new["small"]


def test_a_budget_of_the_call_goes_before_the_router_s(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=0.0))
    assert router.decide(CALL).tier == "small"
    assert router.decide(CALL, budget=Budget(quality=1.0)).tier == "large"


def test_forecasts_are_in_order_and_add_up(make_router: MakeRouter, family: Family) -> None:
    decision = make_router().decide(CALL)
    assert tuple(f.tier for f in decision.forecasts) == NAMES
    assert decision.forecast.tier == decision.tier
    profiles = family_profiles(family)
    for f in decision.forecasts:
        assert f.cold and f.feasible and f.memory_bytes > 0
        assert f.new_tokens == decision.prompt_tokens > 10
        first = profiles[f.tier].seconds(decision.prompt_tokens, 1, cold=True)
        assert f.first_token_s == pytest.approx(first)
        all_of_it = profiles[f.tier].seconds(decision.prompt_tokens, 10, cold=True)
        assert f.seconds == pytest.approx(all_of_it)  # CALL allows ten tokens
    assert decision.to_json()["forecasts"][0]["tier"] == "small"


def test_a_cold_tier_pays_for_loading(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=0.0))
    cold = router.decide(CALL).forecasts[0]
    router.pool.acquire("small", context_tokens=100).release()
    warm = router.decide(CALL).forecasts[0]
    assert cold.cold and not warm.cold
    assert cold.seconds - warm.seconds == pytest.approx(0.5)


def test_a_loaded_tier_may_be_quicker_than_a_smaller_one(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=0.0))
    router.pool.acquire("large", context_tokens=100).release()
    assert router.decide(CALL).tier == "large"


def test_what_is_cached_need_not_be_read_again(make_router: MakeRouter) -> None:
    router = make_router()
    with router.pool.acquire("middle", context_tokens=100) as lease:
        lease.tier.reply(CALL)
    before, cached, after = router.decide(CALL).forecasts
    assert cached.new_tokens == 1  # the last token's logits are always needed
    assert before.new_tokens == after.new_tokens == router.decide(CALL).prompt_tokens
    again = CALL.with_messages(Message("assistant", "yes"), Message("user", "and Oslo?"))
    longer = router.decide(again)
    middle = longer.forecasts[1]
    assert 1 < middle.new_tokens < longer.prompt_tokens
    fresh = make_router().decide(again).forecasts[1]
    assert middle.seconds < fresh.seconds and middle.first_token_s < fresh.first_token_s


def test_a_context_that_is_too_small_keeps_what_it_has_read(make_router: MakeRouter) -> None:
    """It grows where it is: nothing is loaded again, and next to nothing read."""
    router = make_router()
    with router.pool.acquire("small", context_tokens=100) as lease:
        lease.tier.reply(CALL)
    assert router.pool.resident()["small"].context_tokens == 2048
    small = router.decide(Call(CALL.messages, max_tokens=2500)).forecasts[0]
    assert not small.cold and small.new_tokens == 1


def test_the_deadline_drops_slow_tiers(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=1.0))
    seconds = {f.tier: f.seconds for f in router.decide(CALL).forecasts}
    allowed = (seconds["middle"] + seconds["large"]) / 2
    decision = router.decide(CALL, budget=Budget(quality=1.0, seconds_per_call=allowed))
    assert decision.tier == "middle" and "comes nearest" in decision.reason
    large = decision.forecasts[2]
    assert not large.feasible
    assert large.verdict == f"{large.seconds:.2f} s is over the {allowed:.2f} s allowed"
    with pytest.raises(NoFeasibleTierError, match=r"small: .* is over the 0\.01 s allowed"):
        router.decide(CALL, budget=Budget(seconds_per_call=0.01))


def test_the_first_token_has_a_deadline_of_its_own(make_router: MakeRouter) -> None:
    router = make_router()
    first = {f.tier: f.first_token_s for f in router.decide(CALL).forecasts}
    allowed = (first["small"] + first["middle"]) / 2
    limited = Budget(quality=1.0, seconds_to_first_token=allowed)
    decision = router.decide(CALL, budget=limited)
    assert decision.tier == "small"
    assert "to the first token" in decision.forecasts[2].verdict


def test_a_shorter_reply_is_forecast_quicker(make_router: MakeRouter) -> None:
    router = make_router()
    open_end = Call(CALL.messages)
    seconds = [
        router.decide(open_end, budget=Budget(reply_tokens=n)).forecasts[0].seconds
        for n in (5, 20, 60, 500)
    ]
    assert seconds[0] < seconds[1] < seconds[2] == seconds[3]  # 60 is what is expected


def test_a_cap_of_the_pool_drops_big_tiers(make_router: MakeRouter) -> None:
    need = needs(make_router())
    decision = make_router(Budget(quality=1.0), memory_bytes=need["middle"]).decide(CALL)
    assert decision.tier == "middle"
    assert decision.forecasts[2].verdict.startswith("large needs ")


def test_a_memory_budget_of_the_call_drops_big_tiers(make_router: MakeRouter) -> None:
    router = make_router()
    need = needs(router)
    tight = Budget(quality=1.0, memory=need["middle"])
    decision = router.decide(CALL, budget=tight)
    assert decision.tier == "middle"
    assert decision.forecasts[2].verdict.startswith("large needs ")
    with pytest.raises(NoFeasibleTierError, match="small needs "):
        router.decide(CALL, budget=Budget(memory=1))
    # Loaded or not: what is over the budget of the call does not take it.
    router.pool.acquire("large", context_tokens=100).release()
    again = router.decide(CALL, budget=tight)
    assert again.tier == "middle" and not again.forecasts[2].feasible


def test_decisions_follow_the_machine_down_and_up_again(make_router: MakeRouter) -> None:
    machine = Machine()
    router = make_router(Budget(quality=1.0), probe=machine)
    need = needs(router)
    enough = int(need["small"] / (1 - MARGIN_SHARE)) + 1
    chosen = []
    for free in (PLENTY.available_bytes, enough, PLENTY.available_bytes):
        machine.now = Resources(free, PLENTY.total_bytes, 1)
        chosen.append(router.decide(CALL).tier)
    assert chosen == ["large", "small", "large"]
    machine.now = Resources(0, PLENTY.total_bytes, 1)
    with pytest.raises(NoFeasibleTierError) as caught:
        router.decide(CALL)
    for name in NAMES:
        assert f"{name} needs " in str(caught.value)


def test_pinning(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=0.0))
    decision = router.decide(CALL, pin="large")
    assert (decision.tier, decision.reason) == ("large", "large was asked for by name")
    assert decision.forecasts[0].verdict == "large is pinned"
    with pytest.raises(NoFeasibleTierError) as caught:
        router.decide(CALL, pin="large", budget=Budget(seconds_per_call=0.2))
    assert "the pinned tier 'large' cannot answer this call" in str(caught.value)
    assert "over the 0.20 s allowed" in str(caught.value)
    with pytest.raises(ConfigError, match="no tier 'huge'; it has: small, middle, large"):
        router.decide(CALL, pin="huge")


def test_only_some_tiers(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=1.0), tiers=["middle", "small"])
    decision = router.decide(CALL)
    assert [f.tier for f in decision.forecasts] == ["small", "middle"]
    assert decision.tier == "middle"
    with pytest.raises(NoFeasibleTierError, match="not among the enabled tiers"):
        router.decide(CALL, pin="large")
    assert [tier.name for tier in router.better_than("small")] == ["middle"]
    assert router.better_than("middle") == ()


def test_unknown_names_are_refused(make_router: MakeRouter) -> None:
    with pytest.raises(ConfigError, match="no tier 'tiny'; it has: small, middle, large"):
        make_router(tiers=["small", "tiny"])
    with pytest.raises(ConfigError, match="leaves no tier"):
        make_router(tiers=[])
    with pytest.raises(ConfigError, match="no tier 'tiny'"):
        make_router().decide(CALL, above="tiny")


def test_profiles_may_be_given_for_some_tiers(make_router: MakeRouter, family: Family) -> None:
    slow = family_profiles(family)["small"].model_copy(update={"decode_tokens_per_s": 0.1})
    decision = make_router(Budget(quality=0.0), profiles={"small": slow}).decide(CALL)
    assert decision.tier == "middle" and decision.forecasts[0].seconds > 100


def test_only_better_tiers_for_an_escalation(make_router: MakeRouter) -> None:
    router = make_router(Budget(quality=0.0))
    decision = router.decide(CALL, above="small")
    assert decision.tier == "middle"
    assert decision.forecasts[0].verdict == "no better than small"
    assert router.decide(CALL, above="small", without=["middle"]).tier == "large"
    with pytest.raises(NoFeasibleTierError, match="large: no better than large"):
        router.decide(CALL, above="large")


def test_a_prompt_that_no_context_holds(make_router: MakeRouter) -> None:
    router = make_router()
    long = Call((Message("user", "hello " * 4000),))
    with pytest.raises(ContextOverflowError) as caught:
        router.decide(long)
    assert "the longest context of the enabled tiers is 4,096" in str(caught.value)
    with pytest.raises(ContextOverflowError, match="the reply may have 5,000"):
        router.decide(Call(CALL.messages, max_tokens=5000))
    # Without a limit the reply takes what is left.
    almost = Call((Message("user", "hello " * 1900),))
    assert router.decide(almost).prompt_tokens in range(3500, 4096)


def long_talk(turns: int, **options: Any) -> Call:
    """A system prompt, then exchanges of some 77 tokens in the tiny vocabulary."""
    messages = [Message("system", "be brief")]
    for turn in range(turns):
        messages += (Message("user", f"u{turn} " + "hello " * 25), Message("assistant", "yes"))
    return Call((*messages, Message("user", "last")), **options)


def test_a_conversation_is_trimmed_if_the_call_says_so(make_router: MakeRouter) -> None:
    router = make_router()
    call = long_talk(80, max_tokens=50)
    whole = router.pool.prompt(call)
    assert len(whole) > 4096
    with pytest.raises(ContextOverflowError, match=f"{len(whole):,} tokens and the reply"):
        router.decide(call)
    call = replace(call, overflow="trim")
    decision = router.decide(call)
    assert decision.call is not None
    assert decision.prompt == router.pool.prompt(decision.call)
    assert 3000 < decision.prompt_tokens <= 4096 - 50
    kept = decision.call.messages
    assert kept[:3] == call.messages[:3] and kept[-20:] == call.messages[-20:]
    assert decision.call == replace(call, messages=kept)
    # The next turn extends this one.
    again = call.with_messages(Message("assistant", "yes"), Message("user", "more"))
    later = router.decide(again).call
    assert later is not None and later.messages == kept + again.messages[-2:]


def test_a_conversation_that_fits_is_not_trimmed(make_router: MakeRouter) -> None:
    router = make_router()
    call = long_talk(20, max_tokens=50)
    plain, trimmed = router.decide(call), router.decide(replace(call, overflow="trim"))
    assert trimmed.call is None and trimmed.prompt == plain.prompt
    # A reply of unknown length is given the usual room: here 1,024 tokens.
    open_end = replace(long_talk(45), overflow="trim")
    assert 3072 < len(router.pool.prompt(open_end)) < 4096
    assert router.decide(replace(open_end, overflow="error")).prompt_tokens > 3072
    assert router.decide(open_end).prompt_tokens <= 3072


def test_what_cannot_be_trimmed_enough(make_router: MakeRouter) -> None:
    router = make_router()
    request = Message("user", "hello " * 4000)
    call = Call((*long_talk(3).messages, Message("assistant", "yes"), request), overflow="trim")
    with pytest.raises(ContextOverflowError, match="tokens without the turns in its middle and"):
        router.decide(call)
    with pytest.raises(ContextOverflowError, match="tokens and the reply"):
        router.decide(Call((request,), overflow="trim"))
    # What would do without trimming does with it, if there is nothing to leave out.
    alone = Call((Message("user", "hello " * 1700),), overflow="trim")
    decision = router.decide(alone)
    assert decision.call is None and decision.prompt_tokens > 3072


def test_it_is_trimmed_to_what_the_tiers_in_question_hold(
    files: dict[str, Path], tmp_path: Path
) -> None:
    short = write_tiny_gguf(tmp_path / "short.gguf", layers=1, context=1024)
    made = make_family(
        tmp_path / "mixed", [TierSpec("short", short, kl=0.1), TierSpec("long", files["large"])]
    )
    call = long_talk(20, max_tokens=50, overflow="trim")
    with Pool(made, probe=Machine(), threads=1) as pool:
        router = Router(made, pool, Budget(quality=0.0), probe=Machine())
        assert router.decide(call).tier == "long"
        for narrowed in ({"pin": "short"}, {"without": ["long"]}):
            decision = router.decide(call, **narrowed)
            assert decision.tier == "short" and decision.call is not None
            assert decision.prompt_tokens <= 1024 - 50


def test_a_decision_carries_the_prompt_but_does_not_show_it(make_router: MakeRouter) -> None:
    router = make_router()
    decision = router.decide(CALL)
    assert decision.prompt == router.pool.prompt(CALL)
    assert decision.prompt_tokens == len(decision.prompt)
    assert decision.call is None
    assert set(decision.to_json()) == {
        "tier",
        "reason",
        "difficulty",
        "prompt_tokens",
        "forecasts",
    }
    assert json.loads(json.dumps(decision.to_json())) == decision.to_json()
    assert "prompt=" not in repr(decision) and "call=" not in repr(decision)
    assert decision == replace(decision, prompt=(), call=CALL)


def test_a_short_context_rules_out_its_tier_only(
    make_router: MakeRouter, files: dict[str, Path], tmp_path: Path
) -> None:
    short = write_tiny_gguf(tmp_path / "short.gguf", layers=1, context=512)
    made = make_family(
        tmp_path / "mixed", [TierSpec("short", short, kl=0.1), TierSpec("long", files["large"])]
    )
    with Pool(made, probe=Machine(), threads=1) as pool:
        router = Router(made, pool, Budget(quality=0.0), probe=Machine())
        assert router.decide(CALL).tier == "short"
        decision = router.decide(Call((Message("user", "hello " * 1000),)))
    assert decision.tier == "long"
    assert "was trained for 512" in decision.forecasts[0].verdict


def test_a_vanished_file_is_passed_over(make_router: MakeRouter, family: Family) -> None:
    router = make_router(Budget(quality=1.0))
    family.path("large").unlink()
    decision = router.decide(CALL)
    assert decision.tier == "middle"
    large = decision.forecasts[2]
    assert not large.feasible and "large.gguf' is missing" in large.verdict
    for name in ("small", "middle"):
        family.path(name).unlink()
    with pytest.raises(NoFeasibleTierError) as caught:
        router.decide(CALL)
    assert str(caught.value).count("is missing") == 3


def test_a_damaged_file_is_passed_over(make_router: MakeRouter, family: Family) -> None:
    path = family.path("large")
    path.write_bytes(bytes(path.stat().st_size))
    decision = make_router(Budget(quality=1.0)).decide(CALL)
    assert decision.tier == "middle"
    assert "cannot be loaded" in decision.forecasts[2].verdict


def test_explain_prints_every_tier(
    make_router: MakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router = make_router()
    router.pool.acquire("small", context_tokens=100).release()
    decision = router.explain(CALL, budget=Budget(quality=0.7, seconds_per_call=1.9))
    printed = capsys.readouterr().out
    assert printed == decision.table() + "\n"
    head, columns, *rows = printed.splitlines()
    assert decision.reason in head and f"{decision.prompt_tokens} prompt tokens" in head
    names = ["tier", "success", "seconds", "joules", "memory", "prefill", "verdict"]
    assert columns.split() == names
    assert [row.removeprefix("→").split()[0] for row in rows] == list(NAMES)
    assert [row.startswith("→") for row in rows] == [
        f.tier == decision.tier for f in decision.forecasts
    ]
    assert rows[1].endswith("chosen (cold)")
    assert "over the 1.90 s allowed" in rows[2]


def answered(router: Router, call: Call, tier: str, **usage: int) -> Answer:
    """An answer that took no time, of which nothing is learned of speed."""
    decision = router.decide(call, pin=tier)
    reply = Reply("yes", usage=Usage(**usage))
    return Answer((Attempt(decision, reply, 0.0, ""),))


def test_a_conversation_keeps_its_tier_for_a_small_saving(
    make_router: MakeRouter, family: Family
) -> None:
    twin = family_profiles(family)["small"].model_copy(
        update={"decode_tokens_per_s": 380.0, "tier_sha256": family.tier("middle").sha256}
    )
    router = make_router(Budget(quality=0.0), profiles={"middle": twin})
    assert router.decide(CALL).tier == "small"
    router.learn(CALL, answered(router, CALL, "middle"))
    later = CALL.with_messages(Message("assistant", "yes"), Message("user", "ok"))
    assert router.decide(later).tier == "small"  # nobody has read anything
    router.pool.acquire("small", context_tokens=100).release()
    with router.pool.acquire("middle", context_tokens=100) as lease:
        lease.tier.reply(CALL)
    # Without what it has cached it would be slower than the other.
    slower = {"prefill_tokens_per_s": 3000.0, "decode_tokens_per_s": 300.0}
    router.cost.profiles = {**router.cost.profiles, "middle": twin.model_copy(update=slower)}
    stays = router.decide(later)
    assert stays.tier == "middle" and "stays with middle" in stays.reason
    assert router.decide(later).forecasts[0].seconds < stays.forecast.seconds
    other = Call((Message("user", "something else"),), max_tokens=10)
    assert router.decide(other).tier == "small"


def test_expected_length_is_learned_by_kind(make_router: MakeRouter) -> None:
    router = make_router()
    tool = Tool("f", "", {"type": "object", "properties": {}})
    text, call = Call(CALL.messages), Call(CALL.messages, tools=(tool,))

    def seconds(each: Call) -> float:
        return router.decide(each).forecasts[0].seconds

    text_before, call_before = seconds(text), seconds(call)
    for _ in range(20):
        router.learn(text, answered(router, text, "small", completion_tokens=600))
    assert seconds(text) > text_before
    assert seconds(call) == call_before


def test_difficulty_and_policy_are_extension_points(make_router: MakeRouter) -> None:
    seen: list[Call] = []

    def hard(call: Call) -> float:
        seen.append(call)
        return 0.9

    router = make_router(difficulty=hard, policy=lambda f, b, c: (f[-1].tier, "my own", tuple(f)))
    decision = router.decide(CALL)
    assert (decision.tier, decision.reason, decision.difficulty) == ("large", "my own", 0.9)
    assert seen == [CALL]
