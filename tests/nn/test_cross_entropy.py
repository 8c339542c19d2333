"""Nats of classes are those of the whole table of logits, with its gradients, at a fraction of what
it holds.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmtok.nn.cross_entropy import class_nll

BANNED = (0, 7)
N = 60
M = 8
K = 500


@pytest.fixture
def given():
    """h (N, M), weight (K, M), targets (N,) that can occur, whether the last class can."""
    torch.manual_seed(0)
    last = torch.rand(N) < 0.5
    target = torch.where(last & (torch.rand(N) < 0.3), K - 1, torch.randint(8, K - 1, (N,)))
    h, weight = (torch.randn(n, M, dtype=torch.float64, requires_grad=True) for n in (N, K))
    return h, weight, target, last


def as_user_error(h, weight, target, last):
    logits = F.linear(h, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill(
        1, torch.tensor(BANNED), float("-inf")
    )
    never = torch.zeros_like(logits, dtype=torch.bool)
    never[:, -1] = ~last
    return F.cross_entropy(logits.masked_fill(never, float("-inf")), target, reduction="none")


def in_chunks(chunk):
    return lambda *given: class_nll(*given, BANNED, chunk)


def with_gradients(way, h, weight, *rest):
    nats = way(h, weight, *rest)
    return nats, *torch.autograd.grad((nats * torch.linspace(-1, 2, len(nats))).sum(), (h, weight))


@pytest.mark.parametrize("chunk", [1, 7 * K, N * K, 10**9, None])
def test_nats_and_gradients_are_those_of_the_whole_table(given, chunk):
    for ours, theirs in zip(
        with_gradients(in_chunks(chunk), *given), with_gradients(as_user_error, *given)
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_are_those_of_finite_differences(given):
    h, weight, target, last = given

    def some(h, weight):
        return class_nll(h, weight, target[:4] % 10 + 1, last[:4], (0,), 20)

    assert torch.autograd.gradcheck(
        some, (h[:4].detach().requires_grad_(), weight[:12].detach().requires_grad_())
    )


def test_no_rows_give_no_nats_and_a_gradient_of_zeros(given):
    h, weight, target, last = given
    nats, _, gradient = with_gradients(in_chunks(K), h[:0], weight, target[:0], last[:0])
    assert nats.shape == (0,) and gradient.shape == weight.shape and not gradient.any()


@pytest.mark.parametrize("chunk", [9 * K, None])
def test_under_autocast_they_are_as_near_to_the_truth_as_the_whole_table_is(given, chunk):
    h, weight, *rest = given
    truth = with_gradients(as_user_error, *given)
    halves = [x.detach().float().requires_grad_() for x in (h, weight)]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (
            with_gradients(way, *halves, *rest) for way in (in_chunks(chunk), as_user_error)
        )
    assert [x.dtype for x in ours] == [torch.float32] * 3
    for x, y, exact in zip(ours, theirs, truth):
        assert 0 < (x - exact).norm() < 1.1 * (y - exact).norm() < 0.02 * exact.norm()


def saved_bytes(work):
    """Of all tensors that autograd keeps for the backward pass, views of the same memory counted
    once.
    """
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = work()
    assert made.requires_grad
    return sum(kept.values())


def test_no_table_of_logits_is_kept_for_the_backward_pass(given):
    """But of small ones, what comes back through the softmax, in the products' type."""
    table = N * K * 8
    assert saved_bytes(lambda: as_user_error(*given)) > table
    halves = [x.detach().float().requires_grad_() for x in given[:2]]
    with torch.autocast("cpu", torch.bfloat16):
        assert N * K * 2 < saved_bytes(lambda: class_nll(*halves, *given[2:], BANNED)) < N * K * 3
    assert saved_bytes(lambda: class_nll(*given, BANNED, 5 * K)) < (N + K) * M * 8 + 4 * N * 8


@pytest.mark.parametrize("gradients", [True, False])
def test_no_table_of_logits_is_ever_made(given, gradients):
    """In the forward and in the backward pass, and in scoring: the largest tensor that any
    operation returns is a chunk.
    """

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **kwargs or {})
            self.largest = max(
                [
                    self.largest,
                    *(
                        x.numel()
                        for x in torch.utils._pytree.tree_leaves(made)
                        if isinstance(x, torch.Tensor)
                    ),
                ]
            )
            return made

    with Watch() as watch, torch.set_grad_enabled(gradients):
        nats = class_nll(*given, BANNED, 9 * K)
        if gradients:
            nats.sum().backward()
    assert watch.largest == 9 * K and nats.requires_grad == gradients
