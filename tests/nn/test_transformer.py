from dataclasses import replace

import pytest
import torch

from mmtok.nn.attention import document_mask, rotary, rotate
from mmtok.nn.transformer import RMSNorm, Transformer, TransformerConfig, _RMSNormFunction

CONFIG = TransformerConfig(depth=3, width=32, n_heads=4, n_kv_heads=2, feed_forward=48)


@pytest.fixture
def trunk():
    torch.manual_seed(0)
    trunk = Transformer(CONFIG, 7).double().eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return trunk


def positions(n_rows, length):
    return torch.arange(length).expand(n_rows, length)


def states(n_rows, length):
    torch.manual_seed(2)
    return torch.randn(n_rows, length, CONFIG.width, dtype=torch.float64)


def test_rotary_depends_on_differences_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def at(x, p):
        return rotate(x, *rotary(torch.tensor([[p]]), 16, 10_000.0))

    def product(a, b):
        return (at(q, a) * at(k, b)).sum()

    for shift in (1, 17, 400):
        assert abs(product(5, 3) - product(5 + shift, 3 + shift)) < 1e-4  # angles are float32
    assert abs(product(5, 3) - product(5, 4)) > 1e-2
    assert abs(product(5, 3) - product(3, 5)) > 1e-2
    assert torch.equal(at(q, 0), q)


def test_rotary_turns_pairs_by_position_times_frequency():
    cos, sin = rotary(torch.tensor([[3]]), 4, 100.0)
    angle = torch.tensor([3.0, 0.3, 3.0, 0.3])
    assert torch.allclose(cos[0, 0, 0], angle.cos()) and torch.allclose(sin[0, 0, 0], angle.sin())


def test_a_position_sees_itself_and_its_own_documents_past():
    mask = document_mask(torch.tensor([[0, 0, 1, 1, -1]]), 16)[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_later_input_changes_no_earlier_output_bit_for_bit(trunk):
    x = states(2, 20)
    document = torch.zeros(2, 20, dtype=torch.long)
    before = trunk(x, positions(2, 20), document)
    for t in (1, 7, 19):
        y = x.clone()
        y[:, t] += 1.0
        after = trunk(y, positions(2, 20), document)
        assert torch.equal(before[:, :t], after[:, :t])
        assert (before[:, t:] != after[:, t:]).any(-1).all()  # and every later one hears of it


def test_packed_documents_equal_each_alone(trunk):
    x = states(1, 20)
    position = torch.cat([torch.arange(12), torch.arange(8)])[None]
    packed = trunk(x, position, torch.tensor([[0] * 12 + [1] * 8]))
    for part in (slice(0, 12), slice(12, 20)):
        alone = trunk(x[:, part], position[:, part], torch.zeros_like(position[:, part]))
        assert torch.allclose(packed[:, part], alone, rtol=0, atol=1e-12)


def test_every_weight_has_a_llamas_name():
    names = {
        n
        for n, _ in Transformer(CONFIG, 7).named_parameters()
        if "layers.0." in n or "layers" not in n
    }
    block = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    block += ["input_layernorm", "post_attention_layernorm"]
    assert names == {"embed_tokens.weight", "norm.weight", *(f"layers.0.{x}.weight" for x in block)}


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    trunk = Transformer(TransformerConfig(2, 16, 2, 2, 24, dropout=0.5), 7)

    def call():
        return trunk(torch.ones(1, 4, 16), positions(1, 4), torch.zeros(1, 4, dtype=torch.long))

    assert not torch.equal(call(), call())
    trunk.eval()
    assert torch.equal(call(), call())


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_one_dial_gives_sizes_that_fit_together(depth):
    config = TransformerConfig.from_depth(depth, dropout=0.1)
    assert (
        config.width % config.n_heads == 0
        and config.feed_forward >= config.width * 8 / 3
        and config.dropout == 0.1
    )
    assert Transformer(config, 5).config.depth == depth == len(Transformer(config, 5).layers)


@pytest.mark.parametrize(
    "sizes", [{"width": 30}, {"n_kv_heads": 3}, {"width": 12}, {"dropout": 1.5}]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError):
        TransformerConfig(**{"width": 32, "n_heads": 4, "n_kv_heads": 4, **sizes})


@pytest.mark.parametrize("size", [0, -4])
@pytest.mark.parametrize(
    "name", ["depth", "width", "n_heads", "n_kv_heads", "feed_forward", "max_positions"]
)
def test_sizes_below_one_are_refused_by_name(name, size):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {size}"):
        TransformerConfig(**{name: size})


# ---- activations computed again


def kept_bytes(trunk, n, x):
    """Of all tensors that the backward pass finds, weights aside, views of the same memory counted
    once; and the gradients.
    """
    trunk.checkpoint_activations(n)
    trunk.zero_grad()
    weights = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
    kept = {}

    def pack(y):
        if y.untyped_storage().data_ptr() not in weights:
            kept[y.untyped_storage().data_ptr()] = y, y.untyped_storage().nbytes()
        return y

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda y: y):
        torch.manual_seed(3)  # of the dropout
        state = trunk(x, positions(*x.shape[:2]), torch.zeros(x.shape[:2], dtype=torch.long))
    torch.manual_seed(4)  # whatever state the generator is in when the backward pass comes
    state.square().sum().backward()
    made = [state.detach(), *(p.grad.clone() for p in trunk.parameters() if p.grad is not None)]
    return sum(n_bytes for _, n_bytes in kept.values()), made


@pytest.mark.parametrize("autocast", [False, True])
def test_blocks_that_are_computed_again_keep_less_and_give_the_same_gradients_bit_for_bit(autocast):
    torch.manual_seed(0)
    trunk = Transformer(replace(CONFIG, dropout=0.3), 7).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (most, plain), *others = [
            kept_bytes(trunk, n, states(3, 40).float()) for n in (0, 1, 2, 3, 9)
        ]
    assert len(plain) == 1 + sum(1 for _ in trunk.layers.parameters()) + 1
    for _, made in others:
        assert len(made) == len(plain) and all(torch.equal(a, b) for a, b in zip(made, plain))
    one, two, three, nine = (n_bytes for n_bytes, _ in others)
    assert most > one > two > three == nine and three < 0.35 * most


def test_the_norm_and_its_gradients_are_those_of_its_formula():
    torch.manual_seed(3)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(8, 1e-2).double()
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert torch.autograd.gradcheck(
        lambda x, g: _RMSNormFunction.apply(x, g, 1e-2), (x, norm.weight)
    )
