"""Which products of half-precision matrices this processor computes well, as far as torch says."""

import os
from collections.abc import Mapping
from typing import Any

import torch

# The instruction sets without bfloat16 that oneDNN's variable may name, for comparisons between processors.
_WITHOUT_HALF = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


def is_held_back(environment: Mapping[str, str]) -> bool:
    """Whether oneDNN is told to use no instructions for bfloat16."""
    limit = environment.get("ONEDNN_MAX_CPU_ISA", environment.get("DNNL_MAX_CPU_ISA", ""))
    return limit.upper() in _WITHOUT_HALF


def _answers_yes(module: Any, *questions: str) -> bool:
    """Whether torch, which has not had all of these questions in all of its versions, says yes to one."""
    return any(getattr(module, question)() for question in questions if hasattr(module, question))


_HELD_BACK = is_held_back(os.environ)

# By dtype: whether oneDNN has a kernel. Without, torch multiplies in a plain loop.
SERVES = {
    torch.bfloat16: not _HELD_BACK and _answers_yes(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"),
    torch.float16: not _HELD_BACK and _answers_yes(torch.ops.mkldnn, "_is_mkldnn_fp16_supported"),
}
# AVX512_BF16 or AMX: faster than float32, accumulated in float32, and rounded once.
MULTIPLIES_BFLOAT16 = SERVES[torch.bfloat16] and _answers_yes(
    torch.cpu, "_is_avx512_bf16_supported", "_is_amx_tile_supported"
)
