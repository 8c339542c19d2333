"""Masked diffusion in blocks: blocks of one code are autoregression, one block is the head as it
was, and in between the bound is what its sum over all subsets says.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from mmtok.core.segment import Signature
from mmtok.diffusion.discrete import subset_weights
from mmtok.errors import UserError
from mmtok.heads.base import Known
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.heads.sampling import Sampling
from mmtok.nn.code_denoiser import block_mask
from mmtok.nn.denoisers import DiTConfig

K = 3  # codes
H = 5  # width of the hidden states
SMALL = MaskedDiffusion(network=DiTConfig(2, 16, 2), grid=(1, 4))


def built(block, n_frames=4, **changes):
    """A head whose weights say something, in float64."""
    torch.manual_seed(0)
    signature = Signature("picture", levels=(K,), frames=n_frames)
    config = replace(SMALL, block=block, grid=(1, n_frames), **changes)
    head = config.build(H, signature).double()
    for p in head.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return head


def states(n=1):
    return torch.randn(n, H, generator=dice(), dtype=torch.float64)


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def every(n_frames=4):
    """All segments: (K^T, T)."""
    return torch.tensor(list(itertools.product(range(K), repeat=n_frames)))


def by_blocks(head, h, noisy, clean):
    """Logits as drawing computes them, block after block with kept keys and values."""
    pasts = head.network.begin(h)
    logits = []
    for first in range(0, head.n_frames, head.block):
        span = slice(first, first + head.block)
        logits.append(head.network.next_block(noisy[:, span], h, first, pasts))
        head.network.next_block(clean[:, span], h, first, pasts, keep=True)
    return torch.cat(logits, 1)


# ---- the network


@pytest.mark.parametrize(("n_frames", "block"), [(4, 1), (4, 2), (5, 2), (6, 4)])
def test_kept_keys_and_values_give_the_logits_of_training(n_frames, block):
    head = built(block, n_frames)
    noisy = torch.randint(0, K + 1, (7, n_frames), generator=dice())
    clean = torch.randint(0, K, (7, n_frames), generator=dice(1))
    h = states(7)
    torch.testing.assert_close(by_blocks(head, h, noisy, clean), head.network(noisy, h, clean))


@pytest.mark.parametrize(("n_frames", "block"), [(4, 1), (5, 2), (6, 3)])
def test_a_block_reads_what_stands_before_it_and_its_own_masked_codes_alone(n_frames, block):
    head = built(block, n_frames)
    noisy = torch.full((1, n_frames), K)
    clean = torch.zeros(1, n_frames, dtype=torch.long)
    h = states()
    before = head.network(noisy, h, clean)
    for place in range(n_frames):
        own = place // block
        number = torch.arange(n_frames) // block
        for told, reads in ((clean, number > own), (noisy, number == own)):
            changed = told.clone()
            changed[0, place] = 1
            after = head.network(*((changed, h, clean) if told is noisy else (noisy, h, changed)))
            moved = (after - before).abs().amax(2)[0] > 0
            assert moved.equal(reads)


def test_of_one_block_the_mask_says_that_masked_codes_read_each_other_and_the_prefix():
    mask = block_mask(3, 3)
    assert mask[0].tolist() == [True] + 6 * [False]
    assert mask[4:].equal(torch.tensor([[1, 0, 0, 0, 1, 1, 1]] * 3).bool())


# ---- the bound


def test_blocks_of_one_code_have_exact_probabilities_that_sum_to_one():
    head = built(1, bound_draws=1)
    x = every()[..., None]
    h = states().expand(len(x), -1)
    log_p = head.log_prob(h, x, dice())
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_p.equal(head.log_prob(h, x, dice(1)))


@pytest.mark.parametrize("block", [2, 3, 4])
def test_the_bound_is_the_sum_over_blocks_and_their_subsets(block):
    head = built(block)
    x = every()[40:43]
    h = states(3)
    exact = torch.zeros(3, dtype=torch.float64)
    for first in range(0, 4, block):
        size = min(block, 4 - first)
        weights = subset_weights(size)
        for subset in itertools.product((False, True), repeat=size):
            hidden = torch.zeros(4, dtype=torch.bool)
            hidden[first : first + size] = torch.tensor(subset)
            clean = () if block == 4 else (x,)
            model = head._model([h], *clean)
            nats = head.masked.hidden_nll(model, x, hidden.expand_as(x))
            exact += weights[hidden.sum()] * nats
    many = [-head.log_prob(h, x[..., None], dice(seed)) for seed in range(60)]
    means = torch.stack(many)
    error = means.std(0) / 60**0.5
    assert ((means.mean(0) - exact).abs() < 4 * error).all()


def test_a_block_as_long_as_the_segment_is_no_block():
    x = every()[:9, :, None]
    h = states(9)
    whole = built(0)
    assert built(4).loss(h, x).isfinite().all()
    assert built(7).log_prob(h, x, dice()).equal(whole.log_prob(h, x, dice()))


# ---- drawing


@pytest.mark.parametrize("block", [1, 2])
def test_drawn_one_at_a_time_segments_have_the_probabilities_of_their_order(block):
    """With blocks of one: p itself; with two codes in a block: the mean over their two orders."""
    head = built(block)
    n = 20_000
    with torch.no_grad():
        drawn = head.sample([states().expand(n, -1)], Sampling(), dice())[..., 0]
    x = every()
    h = states().expand(len(x), -1)
    p = torch.zeros(len(x), dtype=torch.float64)
    orders = list(itertools.permutations(range(block)))
    for choice in itertools.product(orders, repeat=4 // block):
        log_p = torch.zeros(len(x), dtype=torch.float64)
        for b, order in enumerate(choice):
            for i in range(block):
                hidden = torch.zeros(4, dtype=torch.bool)
                hidden[[b * block + k for k in order[i:]]] = True
                noisy = x.masked_fill(hidden, K)
                logits = head.network(noisy, h, x).log_softmax(-1)
                at = b * block + order[i]
                log_p += logits[:, at].gather(1, x[:, at : at + 1])[:, 0]
        p += log_p.exp() / len(orders) ** (4 // block)
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    seen = torch.bincount(drawn @ torch.tensor([27, 9, 3, 1]), minlength=81).double()
    chi2 = ((seen - n * p) ** 2 / (n * p)).sum()
    assert chi2 < 135  # of 80 degrees of freedom: p = 1e-4


def test_known_codes_stay_and_those_behind_a_drawn_block_are_refused():
    head = built(2)
    values = torch.tensor([[2, 1, 0, 2]])[..., None]
    free = torch.tensor([[False, True, True, True]])
    drawn = head.sample([states()], Sampling(steps=2), dice(), Known(values, free))
    assert drawn[0, 0, 0] == 2
    with pytest.raises(UserError, match="blocks of 2 codes.*infill from some place to the end"):
        head.sample([states()], Sampling(), dice(), Known(values, ~free))


def test_who_watches_sees_whole_segments_at_as_many_steps_as_were_promised():
    for steps in (0, 2):
        head = built(2, 5, steps=steps)
        seen = []
        head.sample([states(3)], Sampling(), dice(), callback=lambda i, x: seen.append((i, x)))
        assert [i for i, _ in seen] == list(range(head.n_steps(Sampling(), 5)))
        assert all(x.shape == (3, 5, 1) for _, x in seen)
        assert (seen[-1][1] < K).all()
