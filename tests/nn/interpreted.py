"""What test_fused_step.py looks at: the Triton kernels, run by its interpreter on the CPU.

python interpreted.py writes {"figure": largest difference from torch's operations} to stdout.
"""

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
import triton.runtime.interpreter as interpreter  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from mmtok.nn import fused_nll, fused_step  # noqa: E402
from mmtok.nn.attention import rotary, rotate  # noqa: E402


def patch_interpreter() -> None:
    """Triton 3.6 turns arrays of one number into numbers as numpy 2.4 no longer does."""
    patch = interpreter._patch_lang_tensor

    def index(self: Any) -> int:
        return int(self.handle.data.item())

    def patched(tensor: Any, *more: object) -> None:
        patch(tensor, *more)
        tensor.__index__ = index

    interpreter._patch_lang_tensor = patched


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def nll(dtype: torch.dtype) -> dict[str, float]:
    """Rows of more logits than a block, one banned, the last one legal in some."""
    n = fused_nll.BLOCK + 905
    logits = (3 * torch.randn(5, n)).to(dtype)
    logits[:, 3] = -torch.inf
    target = torch.randint(4, n - 1, (5,))
    last_legal = torch.tensor([True, True, False, False, True])
    target[0] = n - 1
    legal = logits.float().clone()
    legal[:, -1].masked_fill_(~last_legal, -torch.inf)
    lse, found = fused_nll.fused_row_sums(logits, target, last_legal)
    d = legal.softmax(1)
    d[range(5), target] -= 1
    expected = F.cross_entropy(legal, target, reduction="none")
    d_found = fused_nll.fused_d_logits(logits, lse, target, last_legal)
    return {
        f"lse {dtype}": difference(lse, legal.logsumexp(1)),
        f"nll {dtype}": difference(found, expected),
        f"derivative {dtype}": difference(d_found, d),
    }


def linear(n_rows: int, n_in: int, n_out: int) -> dict[str, float]:
    """The product of few rows, with each of its options."""
    x = torch.randn(n_rows, n_in)
    weight = torch.randn(n_out, n_in)
    other = torch.randn(n_out, n_in)
    added = torch.randn(n_rows, n_out)
    normed = x / (x.square().sum(1, keepdim=True) + 0.1).sqrt()
    gated = F.silu(normed @ weight.T) * (normed @ other.T)
    name = f"{n_rows} x {n_in} x {n_out}"
    return {
        f"norm {name}": difference(fused_step.linear(x, weight, eps=0.1), normed @ weight.T),
        f"added {name}": difference(
            fused_step.linear(x, weight, added=added), x @ weight.T + added
        ),
        f"gated {name}": difference(fused_step.linear(x, weight, times=other, eps=0.1), gated),
    }


def attention(position: int) -> dict[str, float]:
    """Two rows, one padded, heads that share keys, a cache that other positions fill."""
    heads = fused_step.Heads(4, 2, 24)
    capacity = 300
    padding = torch.tensor([0, 3])
    cos, sin = (x[0, 0].contiguous() for x in rotary(torch.arange(capacity)[None], 24, 1e4))
    cache = torch.randn(2, 4, capacity, 24)
    qkv = torch.randn(2, 8 * 24)
    q, k, v = qkv.view(2, 8, 24).split([4, 2, 2], 1)
    at = position - padding
    q = rotate(q, cos[at][:, None], sin[at][:, None])
    k = rotate(k, cos[at][:, None], sin[at][:, None])
    filled = cache.clone()
    filled[:, :2, position] = k
    filled[:, 2:, position] = v
    expected = []
    for row, first in enumerate(padding.tolist()):
        keys, values = filled[row, :, first : position + 1].repeat_interleave(2, 0).split(4)
        y = F.scaled_dot_product_attention(q[row][:, None], keys, values)
        expected.append(y[:, 0].flatten())
    found = fused_step.attend_step(qkv, heads, cache, (cos, sin), torch.tensor([position]), padding)
    return {
        f"attention {position}": difference(found, torch.stack(expected)),
        f"cache {position}": difference(cache, filled),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    patch_interpreter()
    figures: dict[str, float] = {}
    for kind in (torch.float32, torch.bfloat16):
        figures |= nll(kind)
    for sizes in ((1, 96, 100), (3, 64, 48), (20, 96, 100)):
        figures |= linear(*sizes)
    for place in (3, 150, 299):
        figures |= attention(place)
    json.dump(figures, sys.stdout)
