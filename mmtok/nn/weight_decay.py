"""Which parameters decay, decided by the class of their module, never by their name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
MATRICES = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)  # modules whose `weight` is a linear map


def decay_groups(weight_decay: float, *modules: nn.Module) -> list[dict]:
    """All parameters of the modules that learn, each once, as two groups of an optimiser.

    The first group decays: the weights of linear maps and convolutions, those of torch's own
    attention and recurrent modules, and parameters that a module's class names in its attribute
    `decaying`, a tuple of names. The second does not: embeddings, gains of norms, biases and all
    else. A tensor that two modules share decays only if it does in both: a head tied to an
    embedding is the embedding.
    """
    decays: dict[Tensor, bool] = {}
    for module in modules:
        for parameter, decays_here in _parameters(module):
            if parameter.requires_grad:
                decays[parameter] = decays_here and decays.get(parameter, True)
    decaying = [p for p, decay in decays.items() if decay]
    others = [p for p, decay in decays.items() if not decay]
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def matrices(module: nn.Module) -> list[Tensor]:
    """The weights of the linear maps inside a module, each once.

    They are the parameters that decay, and those that would if they were not frozen.
    """
    decays: dict[Tensor, bool] = {}
    for parameter, decays_here in _parameters(module):
        decays[parameter] = decays_here and decays.get(parameter, True)
    return [p for p, decay in decays.items() if decay]


def _parameters(root: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """Each parameter with whether it decays, once for every module that holds it."""
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, name in getattr(module, "decaying", ()) or _is_matrix(module, name)


def _is_matrix(module: nn.Module, name: str) -> bool:
    if isinstance(module, MATRICES):
        return name == "weight"
    if isinstance(module, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith("weight_")
