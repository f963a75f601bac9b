"""What bounds the engine on this machine: memory bandwidth, arithmetic, and llama.cpp itself.

    python benchmarks/roofline.py GGUF [--threads N] [--json FILE]

Decoding one sequence reads every weight once per token, so bandwidth bounds it; prefill takes
two operations per weight and token, so arithmetic does (S. Williams et al., Roofline, 2009).
The bare loop is `llama_decode` and nothing else: no sampler, no text, hardly any Python. No
engine over this build of llama.cpp can be faster.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import llama_cpp as lib
import numpy as np
from common import arguments, report

from tierwise.runtime.llama import Model
from tierwise.runtime.resources import probe

_PREFILL = 512


class BareLoop:
    """One context in which batches are decoded as fast as llama.cpp can.

    Args:
        path: GGUF file.
        threads: For llama.cpp.
        sequences: Most that are decoded at once.
    """

    def __init__(self, path: Path, *, threads: int, sequences: int) -> None:
        self.model = Model(path)
        params = lib.llama_context_default_params()
        params.n_ctx = 4096
        params.n_batch = params.n_ubatch = _PREFILL
        params.n_seq_max = sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self.model.handle, params)
        self._batch = lib.llama_batch_init(_PREFILL, 0, 1)

    def prefill_tokens_per_s(self) -> float:
        """Of one batch into an empty context."""
        self._clear()
        return self._run([(0, position) for position in range(_PREFILL)])

    def decode_tokens_per_s(self, sequences: int, steps: int, prefix: int) -> float:
        """Of all sequences together, each with ``prefix`` tokens behind it."""
        self._clear()
        for sequence in range(sequences):
            self._run([(sequence, position) for position in range(prefix)])
        began = time.perf_counter()
        for step in range(steps):
            self._run([(sequence, prefix + step) for sequence in range(sequences)])
        return sequences * steps / (time.perf_counter() - began)

    def _clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def _run(self, places: list[tuple[int, int]]) -> float:
        """Decodes one token at each (sequence, position); tokens per second.

        The last of each sequence gives logits, as in generation.
        """
        batch: Any = self._batch
        batch.n_tokens = len(places)
        last = dict(places)
        for index, (sequence, position) in enumerate(places):
            batch.token[index] = 100 + position % 1000
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = last[sequence] == position
        began = time.perf_counter()
        if lib.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama.cpp could not decode the bare loop's batch")
        lib.llama_synchronize(self._context)
        return len(places) / (time.perf_counter() - began)

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_bandwidth(size: int, threads: int, repeats: int) -> float:
    """Bytes per second, the best of ``repeats``, of reading ``size`` bytes with all threads.

    The block is as large as the weights, so that whatever caches do for these they do for it.
    """
    parts = [np.ones(size // threads // 4, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(lambda part: part.max(), parts))
            best = max(best, size / (time.perf_counter() - began))
    return best


def copy_bandwidth(size: int, threads: int, repeats: int) -> float:
    """The same for a copy, which reads and writes each byte."""
    pairs = [(np.ones(size // threads, np.uint8), np.empty(size // threads, np.uint8))] * 1
    pairs += [(np.ones_like(a), np.empty_like(b)) for a, b in pairs * (threads - 1)]
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best = max(best, 2 * size / (time.perf_counter() - began))
    return best


def roofline(path: Path, threads: int, *, repeats: int = 20, steps: int = 128) -> dict[str, Any]:
    """Bounds and what the bare loop reaches of them. Rates are tokens/s, bytes/s, operations/s."""
    size = path.stat().st_size
    bandwidth = max(read_bandwidth(size, threads, repeats), copy_bandwidth(size, threads, repeats))
    prefix = 256
    with BareLoop(path, threads=threads, sequences=8) as loop:
        loop.prefill_tokens_per_s()  # pages the weights in, repacks them
        prefill = max(loop.prefill_tokens_per_s() for _ in range(max(2, repeats // 4)))
        single = loop.decode_tokens_per_s(1, steps, prefix)
        eight = loop.decode_tokens_per_s(8, steps // 4, prefix)
        model = loop.model
        embedding = model.vocab_size * lib.llama_model_n_embd(model.handle)
        # Embeddings are looked up; where tied they are multiplied once, for the last token.
        operations = 2 * (model.parameters - embedding)
        bytes_per_token = size + (prefix + steps // 2) * model.kv_bytes_per_token
    bound = bandwidth / bytes_per_token
    return {
        "bandwidth_bytes_per_s": round(bandwidth),
        "bytes_per_decoded_token": bytes_per_token,
        "decode_bound_tokens_per_s": round(bound, 1),
        "bare_decode_tokens_per_s": round(single, 1),
        "share_of_bandwidth_bound": round(single / bound, 3),
        "bare_decode_of_8_tokens_per_s": round(eight, 1),
        "bare_prefill_tokens_per_s": round(prefill, 1),
        "operations_per_prefilled_token": operations,
        "prefill_operations_per_s": round(prefill * operations),
        "batch_of_8_share_of_prefill_rate": round(eight / prefill, 3),
        "llama_cpp": lib.llama_print_system_info().decode(),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--threads", type=int, default=probe().threads)
    options = parser.parse_args()
    report({"roofline": roofline(options.model, options.threads)}, options.json)


if __name__ == "__main__":
    main()
