"""Networks that are called a few rows after another."""

import pytest
import torch

from mmtok.nn.denoisers import DiTConfig, GridDenoiser, in_chunks


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_rows_apart_are_rows_together(monkeypatch, n):
    monkeypatch.setattr("mmtok.nn.denoisers.CHUNK_ROWS", 4)
    torch.manual_seed(0)
    network, sizes = GridDenoiser(DiTConfig(1, 8, 2), (1, 4, 4), 2), []
    for p in network.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    x, c_noise = torch.randn(n, 1, 4, 4), torch.randn(n)
    together = in_chunks(network, x, c_noise)
    assert sizes == [n], "what is learned goes through at once"
    with torch.no_grad():
        torch.testing.assert_close(in_chunks(network, x, c_noise), together)
    assert max(sizes[1:]) <= 4 and sum(sizes[1:]) == n
