"""The measurements against peers; each gives its figure by key, and its details."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from common import spread
from engine_answer import Answer
from engine_peers import Side, WholeCalls
from engine_setup import Bench, Figures, in_turn, quotients
from engine_workloads import Agent, in_words, long_call, tool_requests

from tierwise.evaluation.tasks import Task
from tierwise.runtime.chat import Call, Reply

# --- One agent ----------------------------------------------------------------------------------


def tool_call(bench: Bench) -> Figures:
    """Seconds per forced call over one set of tools, ChatLlamaCpp ÷ ours.

    ChatLlamaCpp is measured in two forms; in each run the faster one counts.
    """
    sides = (bench.ours, bench.peer, WholeCalls(bench.peer))
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    right = dict.fromkeys(seconds, 0)
    tokens = dict.fromkeys(seconds, 0)
    of = 0
    for run in range(bench.runs):
        tasks = tool_requests(run, bench.few(40, 4))
        of += len(tasks)
        for side in in_turn(run, *sides):
            bench.peer.forget()
            answers = [side.reply(task.call) for task in tasks]
            seconds[side.name].append(statistics.mean(answer.seconds for answer in answers))
            right[side.name] += sum(map(_right, tasks, answers))
            tokens[side.name] += sum(answer.tokens for answer in answers)
    ours, *peers = seconds.values()
    return {
        "tool_call_speedup": quotients([min(pair) for pair in zip(*peers, strict=True)], ours),
        "details": {
            "seconds_per_call": {name: spread(values) for name, values in seconds.items()},
            "speedup_over": {name: quotients(seconds[name], ours) for name in [*seconds][1:]},
            "right": right,
            "of": of,
            "reply_tokens_per_call": {name: round(n / of, 1) for name, n in tokens.items()},
            "prompt_tokens": len(bench.prompts.tokens(tasks[-1].call)),
            "tools": len(tasks[-1].call.tools),
        },
    }


def _right(task: Task, answer: Answer) -> bool:
    return task.check(Reply(answer.text, answer.tool_calls))


def long_decode(bench: Bench) -> Figures:
    """Tokens/s of one long reply, ours ÷ ``Llama.create_completion``."""
    limit = bench.few(1024, 32)
    rates: dict[str, list[float]] = {"ours": [], "Llama": []}
    counts: dict[str, list[int]] = {"ours": [], "Llama": []}
    same = []
    for run in range(bench.runs):
        call = long_call(run, limit)
        asked: list[tuple[str, Callable[[Call], Answer]]]
        asked = [("ours", bench.ours.reply), ("Llama", bench.peer.complete)]
        texts = []
        for name, ask in in_turn(run, *asked):
            answer = ask(call)
            rates[name].append(answer.tokens / answer.seconds)
            counts[name].append(answer.tokens)
            texts.append(answer.text)
        same.append(_common_share(*texts))
    return {
        "long_decode_ratio": spread(
            [a / b for a, b in zip(rates["ours"], rates["Llama"], strict=True)]
        ),
        "details": {
            "tokens_per_s": {name: spread(values) for name, values in rates.items()},
            "reply_tokens": counts,
            "share_of_text_in_common": spread(same),
        },
    }


# --- Agents that take turns ---------------------------------------------------------------------


def agents_ttft(bench: Bench) -> Figures:
    """Time to first token from turn 2 on: 4 agents, each with tools of its own."""
    return _first_tokens(bench, "agents_ttft_speedup", count=bench.few(4, 2), own_tools=True)


def shared_prefix_ttft(bench: Bench) -> Figures:
    """The same, 6 conversations over one tool prompt."""
    return _first_tokens(
        bench, "shared_prefix_ttft_speedup", count=bench.few(6, 2), own_tools=False
    )


def _first_tokens(bench: Bench, key: str, *, count: int, own_tools: bool) -> Figures:
    sides = (bench.ours, bench.peer)
    first: dict[str, list[float]] = {side.name: [] for side in sides}
    later: dict[str, list[float]] = {side.name: [] for side in sides}
    held_back = dict.fromkeys(later, 0)
    prompts: list[int] = []
    for run in range(bench.runs):
        agents = bench.agents(count, own_tools=own_tools)
        for side in in_turn(run, *sides):
            talks = [agent.turns(side.stream) for agent in agents]
            by_turn = [[next(talk) for talk in talks] for _ in range(bench.turns)]
            answers = [answer for turn in by_turn[1:] for answer in turn]
            shown = [answer.first_s for answer in answers if in_words(answer)]
            first[side.name].append(statistics.median(answer.first_s for answer in by_turn[0]))
            later[side.name].append(statistics.median(shown))
            held_back[side.name] += len(answers) - len(shown)
            prompts += [answer.prompt_tokens for answer in answers]
    return {
        key: quotients(later[bench.peer.name], later[bench.ours.name]),
        "details": {
            "first_token_s_from_turn_2": {name: spread(values) for name, values in later.items()},
            "first_token_s_in_turn_1": {name: spread(values) for name, values in first.items()},
            "prompt_tokens_from_turn_2": spread(prompts),
            "left_out_as_tool_calls": held_back,
            "turns": bench.turns,
        },
    }


# --- Agents at once -----------------------------------------------------------------------------


def parallel(bench: Bench) -> Figures:
    """Total seconds of 8 agents at once, ChatLlamaCpp behind a lock ÷ ours.

    Each agent has a system prompt and tools of its own. ``one_prompt`` has the same figure for
    8 conversations of one agent.
    """
    apart, together = (_parallel(bench, own_tools=own) for own in (True, False))
    details = apart.pop("details")
    return {**apart, "details": {**details, "one_prompt": together}}


def _parallel(bench: Bench, *, own_tools: bool) -> Figures:
    sides = (bench.ours, bench.peer)
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    tokens: dict[str, list[int]] = {side.name: [] for side in sides}
    for run in range(bench.runs):
        agents = bench.agents(bench.few(8, 2), own_tools=own_tools)
        for side in in_turn(run, *sides):
            work = _at_once([agent.turns(side.reply) for agent in agents], bench.turns)
            seconds[side.name].append(work.seconds)
            tokens[side.name].append(work.tokens)
    return {
        "parallel_speedup": quotients(seconds[bench.peer.name], seconds[bench.ours.name]),
        "details": {
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "reply_tokens": tokens,
            "turns": bench.turns,
        },
    }


def server_parallel(bench: Bench) -> Figures:
    """Reply tokens/s of the same 8 agents, ours ÷ the server with 8 slots.

    The server is measured with a KV cache for all slots and with one for each; the better rate
    of each run counts. ``warm`` leaves out each agent's first turn, in which the prompts are
    read.
    """
    rates: dict[str, list[float]] = {"ours": [], "server": []}
    warm: dict[str, list[float]] = {"ours": [], "server": []}
    unified_won = 0
    for run in range(bench.runs):
        agents = bench.agents(bench.few(8, 2), own_tools=True)
        measured = {"ours": _turns_apart(bench.ours, agents, bench.turns)} if run % 2 == 0 else {}
        for unified in (False, True):
            with bench.server(len(agents), unified=unified) as server:
                server.reply(long_call(run, 8))  # its first request warms it up
                measured[f"server {unified}"] = _turns_apart(server, agents, bench.turns)
        if "ours" not in measured:
            measured["ours"] = _turns_apart(bench.ours, agents, bench.turns)
        whole = {name: (cold + later).rate for name, (cold, later) in measured.items()}
        unified_won += whole["server True"] > whole["server False"]
        rates["ours"].append(whole["ours"])
        rates["server"].append(max(whole["server True"], whole["server False"]))
        warm["ours"].append(measured["ours"][1].rate)
        warm["server"].append(max(measured[f"server {u}"][1].rate for u in (False, True)))
    return {
        "server_ratio_parallel": quotients(rates["ours"], rates["server"]),
        "details": {
            "tokens_per_s": {name: spread(values) for name, values in rates.items()},
            "warm_ratio": quotients(warm["ours"], warm["server"]),
            "warm_tokens_per_s": {name: spread(values) for name, values in warm.items()},
            "runs_in_which_one_cache_for_all_slots_was_better": unified_won,
            "reply_tokens": {name: (a + b).tokens for name, (a, b) in measured.items()},
            "server": _server_build(bench),
        },
    }


def server_single(bench: Bench) -> Figures:
    """Tokens/s of one plain 256-token reply, ours ÷ the server with one slot."""
    limit = bench.few(256, 32)
    rates: dict[str, list[float]] = {"ours": [], "server": []}
    tokens: dict[str, list[int]] = {"ours": [], "server": []}
    with bench.server(1) as server:
        server.reply(long_call(-1, 8))
        bench.ours.reply(long_call(-1, 8))
        for run in range(bench.runs):
            call = long_call(run, limit)
            for side in in_turn(run, bench.ours, server):
                answer = side.reply(call)
                name = "ours" if side is bench.ours else "server"
                rates[name].append(answer.tokens / answer.seconds)
                tokens[name].append(answer.tokens)
    return {
        "server_ratio_single": quotients(rates["ours"], rates["server"]),
        "details": {
            "tokens_per_s": {name: spread(values) for name, values in rates.items()},
            "reply_tokens": tokens,
            "server": _server_build(bench),
        },
    }


@dataclass(frozen=True, slots=True)
class _Work:
    """Tokens replied, and the seconds it took from first request to last reply."""

    tokens: int
    seconds: float

    def __add__(self, other: _Work) -> _Work:
        return _Work(self.tokens + other.tokens, self.seconds + other.seconds)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def _at_once(talks: Sequence[Iterator[Answer]], turns: int) -> _Work:
    """Each agent in a thread of its own, turn after turn."""

    def hold(talk: Iterator[Answer]) -> int:
        return sum(answer.tokens for answer in itertools.islice(talk, turns))

    with ThreadPoolExecutor(len(talks)) as pool:
        began = time.perf_counter()
        tokens = sum(pool.map(hold, talks))
        return _Work(tokens, time.perf_counter() - began)


def _turns_apart(side: Side, agents: Sequence[Agent], turns: int) -> tuple[_Work, _Work]:
    """All first turns at once, then all the others at once."""
    talks = [agent.turns(side.reply) for agent in agents]
    return _at_once(talks, 1), _at_once(talks, turns - 1)


def _server_build(bench: Bench) -> str:
    if bench.llama_server is not None:
        return str(bench.llama_server.name)
    import xllamacpp

    return f"xllamacpp {xllamacpp.__version__}: {xllamacpp.get_system_info()}"


def _common_share(a: str, b: str) -> float:
    """How much of the longer text both begin with: kernels of other batch sizes round apart."""
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    return same / max(len(a), len(b), 1)
