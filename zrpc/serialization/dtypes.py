"""The numbers that dtypes, layouts and memory formats have on the wire.

One rule: a number is never given to something else. A kind that this torch does not have is simply absent from the
tables; a message that names it is refused with its number.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

_DTYPE_NUMBERS: Final[dict[str, int]] = {
    "float32": 1,
    "float64": 2,
    "float16": 3,
    "bfloat16": 4,
    "int64": 5,
    "int32": 6,
    "int16": 7,
    "int8": 8,
    "uint8": 9,
    "bool": 10,
    "complex64": 11,
    "complex128": 12,
    "complex32": 13,
    "uint16": 14,
    "uint32": 15,
    "uint64": 16,
    "float8_e4m3fn": 20,
    "float8_e4m3fnuz": 21,
    "float8_e5m2": 22,
    "float8_e5m2fnuz": 23,
    "float8_e8m0fnu": 24,
    "float4_e2m1fn_x2": 25,
    "quint8": 30,
    "qint8": 31,
    "qint32": 32,
    "quint4x2": 33,
    "quint2x4": 34,
    "bits8": 40,
    "bits16": 41,
    "bits1x8": 42,
    "bits2x4": 43,
    "bits4x2": 44,
    "int1": 51,
    "int2": 52,
    "int3": 53,
    "int4": 54,
    "int5": 55,
    "int6": 56,
    "int7": 57,
    "uint1": 61,
    "uint2": 62,
    "uint3": 63,
    "uint4": 64,
    "uint5": 65,
    "uint6": 66,
    "uint7": 67,
}

DTYPES: Final[dict[int, torch.dtype]] = {
    number: getattr(torch, name) for name, number in _DTYPE_NUMBERS.items() if hasattr(torch, name)
}
DTYPE_NUMBERS: Final[dict[torch.dtype, int]] = {dtype: number for number, dtype in DTYPES.items()}

NUMPY_DTYPES: Final[dict[int, np.dtype]] = {
    _DTYPE_NUMBERS[name]: np.dtype(name)
    for name in (
        "float32",
        "float64",
        "float16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "uint16",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
    )
}
"""The dtypes for which numpy and torch share memory at once: the fast way in both directions."""

PACKED_BITS: Final[dict[int, int]] = {33: 4, 34: 2}
"""Bits of an element of the quantized dtypes that put several elements in a byte."""

_LAYOUT_NAMES: Final[dict[int, str]] = {
    0: "strided",
    1: "sparse_coo",
    2: "sparse_csr",
    3: "sparse_csc",
    4: "sparse_bsr",
    5: "sparse_bsc",
    6: "_mkldnn",
    7: "jagged",
}
LAYOUTS: Final[dict[int, torch.layout]] = {
    number: getattr(torch, name) for number, name in _LAYOUT_NAMES.items() if hasattr(torch, name)
}
LAYOUT_NUMBERS: Final[dict[torch.layout, int]] = {layout: number for number, layout in LAYOUTS.items()}

MEMORY_FORMATS: Final[dict[int, torch.memory_format]] = {
    0: torch.contiguous_format,
    1: torch.preserve_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
}
MEMORY_FORMAT_NUMBERS: Final[dict[torch.memory_format, int]] = {
    memory_format: number for number, memory_format in MEMORY_FORMATS.items()
}
