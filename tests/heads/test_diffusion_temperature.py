"""What the temperature scales where a head draws by diffusion."""

import pytest
import torch

from mmtok.core.segment import Signature
from mmtok.diffusion.samplers import DDIM, Churn, Heun
from mmtok.heads.diffusion import FrameDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.nn.denoisers import TokenMLPConfig


@pytest.mark.parametrize(
    "sampler", [Heun(), Heun(Churn(30.0)), DDIM(1.0)], ids=["Heun", "churn", "DDIM"]
)
def test_at_temperature_0_nothing_is_random(sampler):
    """Neither the noise at the start nor what comes on the way: two rows of one draw are equal.

    Warmer ones are not.
    """
    torch.manual_seed(0)
    head = FrameDiffusion(sampler=sampler, steps=6, network=TokenMLPConfig(1, 8)).build(
        8, Signature("sound", latent_size=3)
    )
    for p in head.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))

    def draw(temperature):
        generator = torch.Generator().manual_seed(0)
        return head.sample(
            [torch.ones(2, 8)], Sampling(temperature=temperature), generator
        ).detach()

    cold = draw(0.0)
    warm = draw(1.0)
    torch.testing.assert_close(cold[0], cold[1], rtol=0, atol=0)
    assert (warm[0] - warm[1]).abs().max() > 0.1
