"""A safetensors file written tensor by tensor, so that only one of them is in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # as the headers name them


class TensorStream:
    """A safetensors file that is being written; not atomic, for a path that is temporary already.

    It takes the tensors in the order of `stream_order`. The bytes are those that `save_tensors`
    writes.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Begin the file; of the tensors only types and shapes are looked at."""
        named = {dtype: name for name, dtype in DTYPES.items()}
        header = {}
        end = 0
        for name in stream_order(tensors):
            x = tensors[name]
            begin = end
            end += x.numel() * x.element_size()
            header[name] = {
                "dtype": named[x.dtype],
                "shape": list(x.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.file = open(path, "wb")  # noqa: SIM115  closed by close
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, x: Tensor) -> None:
        """Write the next tensor."""
        flat = x.detach().cpu().contiguous().reshape(-1)
        self.file.write(flat.view(torch.uint8).numpy().data)

    def close(self) -> None:
        """End the file."""
        self.file.close()


def stream_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in a file's order: numbers of many bytes first, so that all are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
