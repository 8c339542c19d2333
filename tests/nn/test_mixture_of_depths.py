"""Mixture-of-Depths: by the predictor it is causal and normalised, by the highest weights not."""

import itertools
from dataclasses import replace

import pytest
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.model.generate import generate
from mmtok.model.likelihood import score
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.kv_cache import KVCacheDecoder
from mmtok.nn.transformer import RoutedBlock, Transformer, TransformerConfig

CONFIG = TransformerConfig(
    depth=4, width=32, n_heads=4, n_kv_heads=2, feed_forward=48, mod_capacity=0.25
)


def trunk(config=CONFIG, spread=1.0):
    """A trunk in float64 whose predictors keep about half of all positions, by their states."""
    torch.manual_seed(0)
    made = Transformer(config, 40).double().eval()
    for block in made.layers:
        torch.nn.init.normal_(block.self_attn.v_proj.weight, std=0.3)
        if isinstance(block, RoutedBlock):
            for layer in (block.router.weigh, block.router.predictor[0], block.router.predictor[2]):
                torch.nn.init.normal_(layer.weight, std=spread)
    return made


def rows(n_rows=2, length=12, width=32):
    x = torch.randn(n_rows, length, width, dtype=torch.float64)
    position = torch.arange(length).expand(n_rows, -1)
    return x, position, torch.zeros_like(position)


def changed_before(made, x, position, document, at):
    """Whether states before `at` change with what stands there."""
    other = x.clone()
    other[:, at:] = torch.randn_like(other[:, at:]) * 3
    first = made(x, position, document)
    return not torch.equal(first[:, :at], made(other, position, document)[:, :at])


def test_the_predictor_is_causal_and_the_highest_weights_are_not():
    made = trunk()
    for seed in range(5):
        torch.manual_seed(seed)
        assert not changed_before(made, *rows(), at=6)
    made.train()
    assert any(changed_before(made, *rows(), at=6) for _ in range(5))


def test_every_other_block_keeps_its_share_and_the_rest_passes_unchanged():
    made = trunk().train()
    assert [isinstance(block, RoutedBlock) for block in made.layers] == [False, True] * 2
    x, position, document = rows(3, 16)
    from mmtok.nn.attention import rotary
    from mmtok.nn.mixture_of_depths import Documents

    rope = rotary(position, CONFIG.head_size, 10_000.0)
    y = made.layers[1](x, rope, Documents(document))
    assert (y != x).any(-1).sum(1).tolist() == [4, 4, 4]


def test_packed_documents_have_the_states_that_they_have_alone():
    made = trunk()
    x, position, _ = rows(1, 12)
    document = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3])
    position = torch.tensor([[*range(5), *range(4), 0, 0, 0]])
    together = made(x, position, document)
    for d, (a, b) in enumerate(((0, 5), (5, 9))):
        alone = made(x[:, a:b], position[:, a:b], torch.zeros(1, b - a, dtype=torch.long))
        assert torch.allclose(together[:, a:b], alone, atol=1e-12), d


@pytest.mark.parametrize("padded", [False, True])
def test_the_cache_goes_on_as_the_whole(padded):
    made = trunk()
    x, position, document = rows(3, 14)
    whole = made(x, position, document)
    padding = None
    if padded:
        padding = torch.tensor([0, 2, 5])
        shifted = [
            torch.cat([torch.randn(n, 32).double(), x[i, : 14 - n]])
            for i, n in enumerate(padding.tolist())
        ]
        x = torch.stack(shifted)
        whole = torch.stack(
            [
                torch.cat([torch.zeros(n, 32).double(), whole[i, : 14 - n]])
                for i, n in enumerate(padding.tolist())
            ]
        )
    decoder = KVCacheDecoder(made, left_padding=padding, batch_size=3)
    pieces = [decoder.forward(x[:, :6]), decoder.forward(x[:, 6:9])]
    pieces += [decoder.forward(x[:, i : i + 1]) for i in range(9, 12)]
    decoder.select(torch.tensor([2, 0]))
    last = torch.cat([decoder.forward(x[[2, 0], i : i + 1]) for i in range(12, 14)], 1)
    found = torch.cat(pieces, 1)
    for i in range(3):
        start = 0 if padding is None else int(padding[i])
        assert torch.allclose(found[i, start:], whole[i, start:12], atol=1e-10)
    assert torch.allclose(last, whole[[2, 0], 12:], atol=1e-10)
    kept = [int(n.sum()) for n in decoder.n_kept.values()]
    assert sorted(decoder.n_kept) == [1, 3] and 0 < max(kept) < 2 * 14  # fewer than positions


@torch.no_grad()
def test_rows_that_join_go_on_as_alone():
    """Rows of one decoder behind those of another, as prompts that join a queue."""
    made = trunk()
    x, *_ = rows(3, 12)
    one = KVCacheDecoder(made, batch_size=2)
    one.forward(x[:2, :7])
    other = one.emptied(torch.zeros(1, dtype=torch.long))
    other.forward(x[2:, :4])
    one.join(other)
    ahead = torch.stack([*x[:2, 7:], x[2, 4:9]])
    found = torch.cat([one.forward(ahead[:, i : i + 1]) for i in range(5)], 1)
    for i in range(3):
        alone = KVCacheDecoder(made)
        n = 7 if i < 2 else 4
        wanted = alone.forward(x[i : i + 1, : n + 5])[0, n:]
        assert torch.allclose(found[i], wanted, atol=1e-10)


def test_every_parameter_learns_and_the_predictor_from_its_own_loss_alone():
    made = trunk().train()
    x, position, document = rows(2, 16)
    x.requires_grad_()
    made(x, position, document).square().sum().backward()
    for name, p in made.named_parameters():
        if name != "embed_tokens.weight":
            assert p.grad is not None and p.grad.abs().sum() > 0, name
    with_predictor = x.grad.clone()
    x.grad = None
    for block in made.layers:
        if isinstance(block, RoutedBlock):
            block.router.predictor.requires_grad_(False)
    made(x, position, document).square().sum().backward()
    assert torch.equal(with_predictor, x.grad)  # nothing of its loss reaches the states


@pytest.mark.parametrize("cuts", [(1, 3), (3,), (1, 2, 3)])
def test_gradients_are_the_same_however_rows_are_split(cuts):
    """As micro-batches and processes split them: also the predictor's, which has its own mean."""
    x, position, _ = rows(4, 12)
    n_real = torch.tensor([12, 5, 9, 7])
    document = torch.where(torch.arange(12) < n_real[:, None], 0, -1)

    def gradients(bounds):
        made = trunk().train()
        for a, b in itertools.pairwise(bounds):
            made.share_batch(int(n_real[a:b].sum()) / int(n_real.sum()))
            made(x[a:b], position[a:b], document[a:b]).square().sum().backward()
        return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}

    whole = gradients((0, 4))
    split = gradients((0, *cuts, 4))
    for name, grad in whole.items():
        assert torch.allclose(split[name], grad, rtol=1e-9, atol=1e-12), name


def test_a_learned_predictor_finds_the_highest_weights():
    """On states whose weight is one linear map, it keeps about the share that training keeps."""
    torch.manual_seed(0)
    made = Transformer(replace(CONFIG, depth=2), 40).train()
    block = made.layers[1]
    torch.nn.init.normal_(block.router.weigh.weight, std=1.0)
    from mmtok.nn.mixture_of_depths import by_weight

    optimizer = torch.optim.Adam(block.router.predictor.parameters(), lr=0.02)
    real = torch.ones(8, 64, dtype=torch.bool)
    for _ in range(150):
        x = torch.randn(8, 64, 32)
        optimizer.zero_grad()
        *_, attached = by_weight(x.requires_grad_(), real, block.router, 0.25)
        attached.sum().backward()
        optimizer.step()
    index, *_ = by_weight(x, real, block.router, 0.25)
    top = torch.zeros_like(real).scatter(1, index, True)
    found = block.router.predicted(x) > 0
    assert (found == top).float().mean() > 0.9
    assert 0.18 < found.float().mean() < 0.32


TINY = Vocabulary([Signature("text", (3,))])


def tiny_lm():
    torch.manual_seed(0)
    lm = LM(DecoderConfig(replace(CONFIG, depth=2)), TINY).double().eval()
    lm.model.load_state_dict(
        {
            **lm.model.state_dict(),
            **{
                k: torch.randn_like(v) * 0.5
                for k, v in lm.model.state_dict().items()
                if v.ndim == 2
            },
        }
    )
    return lm


def text(codes, truncated=False):
    return Document(
        (Segment("text", codes=torch.tensor(codes).numpy().reshape(-1, 1), truncated=truncated),),
        (True,),
    )


def test_probabilities_of_all_texts_sum_to_one_by_the_predictor_alone():
    """All texts of up to 2 codes with their ends, and the beginnings of those of 3."""
    lm = tiny_lm()
    every = [
        text(list(codes), truncated=n == 3)
        for n in range(4)
        for codes in itertools.product(range(3), repeat=n)
    ]
    total = sum(torch.tensor(-s.nats[0]).exp() for s in score(lm, every))
    assert abs(total - 1) < 1e-9
    # by the highest weights the sum is another: that is no likelihood
    lm.train()
    with torch.no_grad():
        sums = 0.0
        for document in every:
            batch = pack(TINY, [[to_stream(TINY, document)]])
            sums += (-lm(batch).total.sum()).exp()
    assert abs(sums - 1) > 1e-6


def test_samples_follow_the_scores():
    lm = tiny_lm()
    prompts = [Document((Segment("text", codes=torch.zeros(0, 1).long().numpy()),), (True,), True)]
    n = 3000
    drawn = generate(
        lm,
        prompts * n,
        Sampling(max_frames=1, precision="float32"),
        torch.Generator().manual_seed(0),
    )
    empty = sum(len(one.segment) == 0 for one in drawn) / n
    p = torch.tensor(-score(lm, [text([])])[0].nats[0]).exp().item()
    assert abs(empty - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="mod_capacity is 1.5"):
        replace(CONFIG, mod_capacity=1.5)
    for cannot in (dict(depth=1), dict(mod_every=5)):  # no block would be routed
        with pytest.raises(ValueError, match="no block of mixture-of-depths"):
            replace(CONFIG, **cannot)
    with pytest.raises(ValueError, match="mod_every 3 does nothing where mod_capacity is 0"):
        replace(CONFIG, mod_capacity=0.0, mod_every=3)
    assert sum(replace(CONFIG, mod_every=4).is_routed(i) for i in range(4)) == 1
    with pytest.raises(UserError, match="leave --compiled out"):
        KVCacheDecoder(trunk(), compile_length=20)
    from mmtok.model.architectures import exported_as

    with pytest.raises(UserError, match=r"mod_capacity 0.25"):
        exported_as(CONFIG, "llama")
    assert not CONFIG.is_llama and replace(CONFIG, mod_capacity=0.0).is_llama
