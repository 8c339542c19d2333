"""A file written tensor by tensor is the file that is written at once."""

import torch
from safetensors.torch import load_file

from mmtok.io.files import save_tensors
from mmtok.io.tensor_stream import TensorStream, stream_order

TENSORS = {
    "b.weight": torch.randn(3, 5),
    "a": torch.tensor(2.5),
    'größe "x"': torch.arange(6).view(2, 3).T,
    "half": torch.randn(7).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.zeros(0, 4),
}


def test_the_bytes_are_those_of_save_tensors(tmp_path):
    save_tensors(tmp_path / "whole", TENSORS)
    stream = TensorStream(tmp_path / "stream", TENSORS)
    for name in stream_order(TENSORS):
        stream.write(TENSORS[name])
    stream.close()
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "whole").read_bytes()
    read = load_file(tmp_path / "stream")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(x, TENSORS[name]) for name, x in read.items())
