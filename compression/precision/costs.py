"""What a multiplication by a weight of each type costs on this machine, measured with ggml itself.

The types' speeds differ by processor and by build: Q4_1 may prefill at half the speed of Q8_0,
and types that ggml repacks at load (``ggml/src/ggml-cpu/repack.cpp``) are quicker than their
neighbours. So matrices of one width are multiplied as llama.cpp would, in the layout that it
would choose, and seconds per row of weights are kept for this machine.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import llama_cpp as lib
import numpy as np
from llama_cpp import _ggml
from pydantic import Field, ValidationError

from tierwise.compression.precision.ggml import Weight
from tierwise.compression.precision.header import library
from tierwise.compression.precision.types import TensorType
from tierwise.runtime.errors import EngineError
from tierwise.runtime.files import home, write_atomically
from tierwise.runtime.llama import captured_log
from tierwise.runtime.profile import machine_fingerprint
from tierwise.runtime.record import Record

PREFILL_TOKENS = 256
ROWS = 768
"""Of each matrix that is multiplied; a multiple of all repacked layouts' rows."""
DECODE_BYTES = 48 << 20
"""Of the matrices that one token is multiplied by in turn, so that no cache holds them all: a
token of a reply reads every weight of the model once."""
RUNS = 5

_CPU, _GPU = 0, 1  # enum ggml_backend_dev_type
_F32 = 0
_CONTEXT_BYTES = 1 << 20

Progress = Callable[[str, float], None]


class RowCost(Record):
    """Seconds that a row of weights takes.

    Args:
        prefill_s: For each token of a prompt.
        decode_s: For each token of a reply.
    """

    prefill_s: float = Field(ge=0, allow_inf_nan=False)
    decode_s: float = Field(ge=0, allow_inf_nan=False)


class CostTable(Record):
    """Of one machine with so many threads, by `_key` of type and width."""

    threads: int
    rows: dict[str, RowCost] = Field(default={})

    def seconds(
        self, weight: Weight, kind: TensorType, *, prompt: float, reply: float, tied: bool = True
    ) -> float:
        """What a tensor adds to a call.

        Args:
            kind: The type that it is to have.
            prompt: Tokens of the prompt that are not cached.
            reply: Tokens of the reply.
            tied: Whether the embeddings are the output's weights too.
        """
        if weight.name == "token_embd.weight" and not tied:
            return 0.0  # rows are looked up, never multiplied
        cost = self.rows[_key(kind, weight.width)]
        if weight.name in ("output.weight", "token_embd.weight"):
            prompt = 0.0  # only a prompt's last token is answered
        return weight.rows * (prompt * cost.prefill_s + reply * cost.decode_s)


def measured_costs(
    wanted: Iterable[tuple[TensorType, int]], *, threads: int, progress: Progress | None = None
) -> CostTable:
    """Costs of types at widths (values of a row), measured where that was not done already.

    About 0.1 s for each; kept in ``home()/costs``. Nothing else should be running.

    Raises:
        EngineError: ggml failed.
    """
    path = home() / "costs" / f"{machine_fingerprint()}-{threads}.json"
    try:
        known = CostTable.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        known = CostTable(threads=threads)
    missing = {_key(kind, width): (kind, width) for kind, width in wanted}
    missing = {key: value for key, value in missing.items() if key not in known.rows}
    if not missing:
        return known
    found = dict(known.rows)
    for number, (key, (kind, width)) in enumerate(sorted(missing.items())):
        if progress is not None:
            progress(key, number / len(missing))
        found[key] = measure(kind, width, threads=threads)
    table = CostTable(threads=threads, rows=found)
    write_atomically(path, table.model_dump_json(indent=1) + "\n")
    return table


def _key(kind: TensorType, width: int) -> str:
    return f"{kind.name} {width}"


def measure(kind: TensorType, width: int, *, threads: int) -> RowCost:
    """Of one type at one width, on the device that llama.cpp would use."""
    size = kind.bytes(width) * ROWS
    copies = max(2, DECODE_BYTES // size)
    prefill_s = _seconds(kind, width, PREFILL_TOKENS, 2, threads)
    decode_s = _seconds(kind, width, 1, copies, threads)
    return RowCost(prefill_s=prefill_s / PREFILL_TOKENS, decode_s=decode_s)


def _seconds(kind: TensorType, width: int, tokens: int, copies: int, threads: int) -> float:
    """Of multiplying one row by so many tokens; the median of `RUNS`."""
    ggml, device = _ggml_library(), _device()
    with captured_log(), ExitStack() as stack:  # ggml tells of each matrix that it repacks
        backend = stack.enter_context(
            _owned(ggml.ggml_backend_dev_init(device, None), ggml.ggml_backend_free)
        )
        _set_threads(backend, device, threads)
        weights, inputs, graphs = (stack.enter_context(_tensors()) for _ in range(3))
        matrices = [
            ggml.ggml_new_tensor_2d(weights, kind.number, width, ROWS) for _ in range(copies)
        ]
        activations = ggml.ggml_new_tensor_2d(inputs, _F32, width, tokens)
        products = [ggml.ggml_mul_mat(graphs, matrix, activations) for matrix in matrices]
        plain = ggml.ggml_backend_dev_buffer_type(device)
        layout = _layout(device, products[0], matrices[0]) or plain
        for context, place in ((weights, layout), (inputs, plain), (graphs, plain)):
            buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, place)
            stack.enter_context(_owned(buffer, ggml.ggml_backend_buffer_free))
        noise = np.random.default_rng(0).standard_normal((tokens, width), np.float32)
        ggml.ggml_backend_tensor_set(activations, noise.ctypes.data, 0, noise.nbytes)
        rows = np.zeros((ROWS, kind.bytes(width)), np.uint8)  # as quick as any other values
        for matrix in matrices:
            ggml.ggml_backend_tensor_set(matrix, rows.ctypes.data, 0, rows.nbytes)
        graph = ggml.ggml_new_graph(graphs)
        for product in products:
            ggml.ggml_build_forward_expand(graph, product)
        times = []
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            if ggml.ggml_backend_graph_compute(backend, graph) != 0:
                raise EngineError(f"ggml could not multiply by a matrix of {kind.name}")
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / (ROWS * copies)


def _layout(device: int, operation: int, weight: int) -> int | None:
    """The buffer type that llama.cpp's loader would place the weight in; None for plain memory
    (``select_weight_buft``)."""
    ggml = _ggml_library()
    registry = ggml.ggml_backend_dev_backend_reg(device)
    found = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not found:
        return None
    kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
    index = 0
    while kinds and (kind := kinds[index]):
        index += 1
        head = _TensorBuffer.from_address(weight)
        head.buffer = buffer = ggml.ggml_backend_buft_alloc_buffer(kind, 0)
        try:
            if ggml.ggml_backend_dev_supports_op(device, operation):
                return int(kind)
        finally:
            head.buffer = None
            ggml.ggml_backend_buffer_free(buffer)
    return None


class _TensorBuffer(ctypes.Structure):
    """The first fields of ``struct ggml_tensor``."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p))


class _ContextParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("memory", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@contextmanager
def _tensors() -> Iterator[int]:
    """A ``ggml_context`` for records of tensors, whose data lies elsewhere."""
    ggml = _ggml_library()
    context = ggml.ggml_init(_ContextParams(_CONTEXT_BYTES, None, True))
    try:
        yield context
    finally:
        ggml.ggml_free(context)


@contextmanager
def _owned(handle: int | None, free: Callable[[int], None]) -> Iterator[int]:
    if not handle:
        raise EngineError("ggml could not allocate what measuring a type's speed needs")
    try:
        yield handle
    finally:
        free(handle)


def _set_threads(backend: int, device: int, threads: int) -> None:
    ggml = _ggml_library()
    registry = ggml.ggml_backend_dev_backend_reg(device)
    found = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
    if found:  # GPUs have none
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(found)(backend, threads)


@lru_cache(maxsize=1)
def _device() -> int:
    """The GPU where llama.cpp was built for one and finds it, else the processor."""
    find = _ggml.libggml.ggml_backend_dev_by_type
    find.argtypes, find.restype = [ctypes.c_int], ctypes.c_void_p
    gpu = find(_GPU) if lib.llama_supports_gpu_offload() else None
    return int(gpu or find(_CPU))


@lru_cache(maxsize=1)
def _ggml_library() -> Any:
    base = library()
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    signatures: Mapping[str, tuple[Any, ...]] = {
        "ggml_init": (pointer, _ContextParams),
        "ggml_new_tensor_2d": (pointer, pointer, ctypes.c_int, number, number),
        "ggml_mul_mat": (pointer, pointer, pointer, pointer),
        "ggml_new_graph": (pointer, pointer),
        "ggml_build_forward_expand": (None, pointer, pointer),
        "ggml_backend_dev_init": (pointer, pointer, ctypes.c_char_p),
        "ggml_backend_free": (None, pointer),
        "ggml_backend_dev_backend_reg": (pointer, pointer),
        "ggml_backend_dev_buffer_type": (pointer, pointer),
        "ggml_backend_dev_supports_op": (ctypes.c_bool, pointer, pointer),
        "ggml_backend_reg_get_proc_address": (pointer, pointer, ctypes.c_char_p),
        "ggml_backend_alloc_ctx_tensors_from_buft": (pointer, pointer, pointer),
        "ggml_backend_buft_alloc_buffer": (pointer, pointer, size),
        "ggml_backend_buffer_free": (None, pointer),
        "ggml_backend_tensor_set": (None, pointer, pointer, size, size),
        "ggml_backend_graph_compute": (ctypes.c_int, pointer, pointer),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base
