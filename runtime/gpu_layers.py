"""How many layers of a model go to the GPU, by the memory that is free there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as lib

from tierwise.runtime.context import KVType
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.resources import gpu_names, probe
from tierwise.runtime.tensors import Tensor, read_tensors

MARGIN_BYTES = 512 * 2**20
"""GPU memory left alone: what the driver takes as it goes, and other programs' windows."""


def choose_gpu_layers(path: Path, n_ctx: int, *, kv_type: KVType = "f16") -> int:
    """``gpu_layers`` for `Model`, by the GPU memory that is free now.

    0 at once where llama.cpp was built without a GPU, or finds none.

    Raises:
        ModelNotFoundError, DamagedModelError, UnsupportedModelError: As `predict_memory`.
    """
    if not lib.llama_supports_gpu_offload() or not (gpus := gpu_names()):
        return 0
    need = predict_memory(path, n_ctx, kv_type=kv_type)
    layers, output = weights_by_layer(read_tensors(path))
    return layers_that_fit(
        layers,
        kv_bytes=need.kv_bytes // max(1, len(layers)),
        output_bytes=output,
        compute_bytes=need.compute_bytes * len(gpus),  # each has buffers of its own
        free_bytes=probe().gpu_free_bytes - MARGIN_BYTES * len(gpus),
    )


def layers_that_fit(
    layers: Sequence[int],
    *,
    kv_bytes: int,
    output_bytes: int,
    compute_bytes: int,
    free_bytes: int,
) -> int:
    """llama.cpp's ``n_gpu_layers`` that takes at most ``free_bytes`` on the GPU.

    The output counts as the layer after the last, and is the first to go to the GPU; then come
    the layers from the last to the first (llama.cpp, ``llama_model::load_tensors``). The
    embeddings always stay in the machine's memory.

    Args:
        layers: Bytes of each layer's weights, from the first to the last.
        kv_bytes: Of one layer's keys and values.
        output_bytes: Of the output's weights.
        compute_bytes: Of the buffers that are needed as soon as anything is on the GPU.

    Returns:
        0 to ``len(layers) + 1``.
    """
    left = free_bytes - compute_bytes
    count = 0
    for size in (output_bytes, *(weights + kv_bytes for weights in reversed(layers))):
        left -= size
        if left < 0:
            break
        count += 1
    return count if count > 1 else 0  # the output alone saves nothing


def weights_by_layer(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """(bytes of each layer from the first to the last, bytes of the output)."""
    layers: Counter[int] = Counter()
    rest: dict[str, int] = {}
    for tensor in tensors:
        if tensor.layer is None:
            rest[tensor.name] = tensor.bytes
        else:
            layers[tensor.layer] += tensor.bytes
    embeddings = rest.pop("token_embd.weight", 0)
    if "output.weight" not in rest:
        rest["output.weight"] = embeddings  # tied: the output gets a copy
    return tuple(layers[number] for number in sorted(layers)), sum(rest.values())
