"""llama.cpp's types in one table: what each costs in bits, and what it becomes where it cannot be.

Sources: ``ggml/src/ggml.c`` (``type_traits``), ``include/llama.h`` (``llama_ftype``) and
``src/llama-quant.cpp`` (``llama_ftype_get_default_type``, ``tensor_type_fallback``).
"""

from __future__ import annotations

from dataclasses import dataclass

from tierwise.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TensorType:
    """How ggml stores the values of a tensor.

    Args:
        name: ggml's, in capitals.
        number: ``enum ggml_type``.
        file_type: ``enum llama_ftype`` of files that have this type where they can; None if
            llama.cpp makes no such files.
        bits: Per weight, scales included.
        block: Values that share scales; a tensor's width must be a multiple of it.
        needs_imatrix: llama.cpp refuses it for layers without an importance matrix.
        fallback: What llama.cpp takes for widths that are no multiple of ``block``; where that
            does not fit either, F16. Empty if it gives up instead.
    """

    name: str
    number: int
    file_type: int | None
    bits: float
    block: int
    needs_imatrix: bool = False
    fallback: str = ""

    def bytes(self, values: int) -> int:
        """Of so many values, in whole blocks."""
        return round(values * self.bits / 8)


TENSOR_TYPES: dict[str, TensorType] = {
    kind.name: kind
    for kind in (
        TensorType("F32", 0, 0, 32.0, 1),
        TensorType("F16", 1, 1, 16.0, 1),
        TensorType("BF16", 30, 32, 16.0, 1),
        TensorType("Q8_0", 8, 7, 8.5, 32),
        TensorType("Q6_K", 14, 18, 6.5625, 256, fallback="Q8_0"),
        TensorType("Q5_1", 7, 9, 6.0, 32),
        TensorType("Q5_K", 13, 16, 5.5, 256, fallback="Q5_1"),
        TensorType("Q5_0", 6, 8, 5.5, 32),
        TensorType("Q4_1", 3, 3, 5.0, 32),
        TensorType("Q4_K", 12, 14, 4.5, 256, fallback="Q5_0"),
        TensorType("Q4_0", 2, 2, 4.5, 32),
        TensorType("IQ4_NL", 20, 25, 4.5, 32),
        TensorType("NVFP4", 40, None, 4.5, 64),
        TensorType("IQ4_XS", 23, 30, 4.25, 256, fallback="IQ4_NL"),
        TensorType("MXFP4", 39, None, 4.25, 32),
        TensorType("Q3_K", 11, 11, 3.4375, 256, fallback="Q4_0"),
        TensorType("IQ3_S", 21, 26, 3.4375, 256, fallback="IQ4_NL"),
        TensorType("IQ3_XXS", 18, 23, 3.0625, 256, needs_imatrix=True, fallback="IQ4_NL"),
        TensorType("Q2_K", 10, 10, 2.625, 256, fallback="Q4_0"),
        TensorType("IQ2_S", 22, 29, 2.5625, 256, needs_imatrix=True, fallback="IQ4_NL"),
        TensorType("IQ2_XS", 17, 20, 2.3125, 256, needs_imatrix=True, fallback="IQ4_NL"),
        TensorType("Q2_0", 42, 41, 2.25, 64, fallback="Q4_0"),
        TensorType("IQ2_XXS", 16, 19, 2.0625, 256, needs_imatrix=True, fallback="IQ4_NL"),
        TensorType("TQ2_0", 35, 37, 2.0625, 256, fallback="Q4_0"),
        TensorType("IQ1_M", 29, 31, 1.75, 256, needs_imatrix=True, fallback="IQ4_NL"),
        TensorType("TQ1_0", 34, 36, 1.6875, 256, fallback="Q4_0"),
        TensorType("IQ1_S", 19, 24, 1.5625, 256, needs_imatrix=True, fallback="IQ4_NL"),
        TensorType("Q1_0", 41, 40, 1.125, 128),
    )
}
"""By name, most bits first."""

TYPE_OF_NUMBER = {kind.number: kind for kind in TENSOR_TYPES.values()}

_MIXES = {
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "MXFP4_MOE": 38,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "IQ3_M": 27,
    "IQ3_S": 26,
    "IQ3_XS": 22,
    "Q2_K": 10,
    "Q2_K_S": 21,
    "IQ2_M": 29,
    "IQ2_S": 28,
}
"""File types of more than one tensor type, or of another one than their name says."""

_BEST_FIRST = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4_MOE", "IQ4_XS"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S"),
    *("IQ2_M", "IQ2_S", "IQ2_XS", "Q2_0", "IQ2_XXS", "TQ2_0", "IQ1_M", "TQ1_0", "IQ1_S", "Q1_0"),
)

_PURE = {kind.name: kind.file_type for kind in TENSOR_TYPES.values() if kind.file_type is not None}

FILE_TYPES: dict[str, int] = {name: (_PURE | _MIXES)[name] for name in _BEST_FIRST}
"""``enum llama_ftype`` of the types that a whole file can have, best first."""


def tensor_type(name: str) -> TensorType:
    """The type of that name, in capitals or not.

    Raises:
        ConfigError: There is none.
    """
    try:
        return TENSOR_TYPES[name.upper()]
    except KeyError:
        raise ConfigError(
            f"unknown tensor type {name!r}; known are {', '.join(TENSOR_TYPES)}"
        ) from None


def file_type_of(kind: TensorType) -> str | None:
    """The name of files that have this type where they can, e.g. Q4_K_S for Q4_K."""
    return next((name for name, number in FILE_TYPES.items() if number == kind.file_type), None)


def fitting(kind: TensorType, width: int) -> TensorType:
    """What llama.cpp makes of a type for a tensor whose rows have ``width`` values.

    Raises:
        ConfigError: The width does not fit, and llama.cpp knows nothing to take instead.
    """
    if width % kind.block == 0:
        return kind
    if not kind.fallback:
        raise ConfigError(
            f"{kind.name} has blocks of {kind.block} values, and rows of {width} are no multiple "
            f"of that; take a type with smaller blocks, such as Q8_0"
        )
    other = TENSOR_TYPES[kind.fallback]
    return other if width % other.block == 0 else TENSOR_TYPES["F16"]
