"""A ConvNeXt in pieces: the same bits whatever the pieces, and the values of the whole."""

import pytest
import torch

from mmtok.nn.convnext import ROWS, ConvNeXt, ConvNeXtConfig, ConvNeXtStream


@pytest.mark.parametrize("look_ahead", [-1, 0, 4])
def test_pieces_change_no_bit(look_ahead):
    torch.manual_seed(0)
    network = ConvNeXt(20, 33, ConvNeXtConfig(width=48, depth=2, look_ahead=look_ahead)).eval()
    frames = torch.randn(2 * ROWS + 5, 20)
    found = []
    for piece in (1, 7, ROWS, len(frames)):
        stream = ConvNeXtStream(network)
        found.append(torch.cat([*(stream.push(p) for p in frames.split(piece)), stream.finish()]))
    with torch.no_grad():
        whole = network(frames[None])[0]
    assert all(torch.equal(pieces, found[0]) for pieces in found[1:])
    assert torch.allclose(found[0], whole, atol=1e-5)


def test_nothing_pushed_is_nothing():
    stream = ConvNeXtStream(ConvNeXt(4, 5, ConvNeXtConfig(width=8, depth=1)))
    assert stream.push(torch.zeros(0, 4)).shape == (0, 5) == stream.finish().shape
