"""Which noise goes with which example: minibatch optimal transport for flow matching.

Source: Tong et al. 2024 (arXiv 2302.00482).
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

Conditional = Literal["off", "within", "across"]


def optimal_pairing(data: Tensor, noise: Tensor) -> Tensor:
    """The permutation (B,) that minimises the sum of |data - noise[permutation]|^2, exactly.

    data and noise (B, ...). Needs the extra `eval` (POT), else ValueError. O(B^3): for minibatches.
    """
    try:
        import ot
    except ModuleNotFoundError:
        raise ValueError(
            "optimal-transport pairing needs the extra: pip install 'mmtok[eval]'"
        ) from None
    if data.shape != noise.shape:
        raise ValueError(
            f"data and noise must be of one shape, got {tuple(data.shape)} and {tuple(noise.shape)}"
        )
    if len(data) < 2:
        return torch.arange(len(data), device=data.device)
    cost = torch.cdist(
        data.flatten(1).double(),
        noise.flatten(1).double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).square()
    # with equal weights the optimal plan is a permutation
    plan = ot.emd([], [], cost.cpu().numpy(), numItermax=10_000_000)
    return torch.from_numpy(plan.argmax(1)).to(data.device)


def pair_noise(
    data: Tensor, noise: Tensor, labels: Tensor | None = None, conditional: Conditional = "off"
) -> Tensor:
    """`noise` (B, ...) reordered to go with `data`: straighter paths, which need fewer steps.

    labels (B,): the condition of each example. Pairing over a whole batch makes the noise of each
    label differ from N(0, I), while sampling starts from N(0, I) for every label. So where there
    are labels, pairing is "off" by default: "within" pairs examples of one label among themselves,
    which keeps N(0, I) for every label; "across" pairs all, and warns.
    """
    if labels is None:
        return noise[optimal_pairing(data, noise)]
    if len(labels) != len(data) or labels.dim() != 1:
        raise ValueError(
            f"labels must be one number per example, got shape {tuple(labels.shape)} for"
            f" {len(data)} examples"
        )
    if conditional == "off":
        return noise
    if conditional == "across":
        warnings.warn(
            "optimal-transport pairing across labels ties the noise to the label, which sampling"
            " does not do: conditional samples will be skewed; pair within labels, or not at all",
            stacklevel=2,
        )
        return noise[optimal_pairing(data, noise)]
    if conditional != "within":
        raise ValueError(f'conditional pairing is "off", "within" or "across", got {conditional!r}')
    paired = noise.clone()
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        paired[rows] = noise[rows][optimal_pairing(data[rows], noise[rows])]
    return paired
