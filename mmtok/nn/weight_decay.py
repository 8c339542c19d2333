"""Which weights decay: a question of what their module is, never of what it is called."""

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
MATRICES = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)  # modules whose `weight` mixes what they read


def decay_groups(weight_decay: float, *modules: nn.Module) -> list[dict]:
    """All parameters of the modules, each once, as an optimiser's two groups: those that decay, and
    those that do not.

    The weights of linear maps and convolutions decay. Embeddings, the gains of norms, biases, and
    whatever else a module holds by itself do not, unless its class names them in `decaying`, a
    tuple of names, or it is one of torch's own attention and recurrent modules. A tensor that two
    modules share decays where both say so: a head tied to an embedding is the embedding.
    """
    decays: dict[Tensor, bool] = {}
    for module in modules:
        for parameter, says_so in _verdicts(module):
            decays[parameter] = says_so and decays.get(parameter, True)
    chosen = [p for p, says_so in decays.items() if says_so]
    others = [p for p, says_so in decays.items() if not says_so]
    return [
        {"params": chosen, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def matrices(module: nn.Module) -> list[Tensor]:
    """What something is multiplied with inside: the parameters that decay by their module's kind,
    each once.
    """
    return decay_groups(0.0, module)[0]["params"]


def _verdicts(root: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """(parameter, whether the module that holds it lets it decay), for every module that holds it."""
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, name in getattr(module, "decaying", ()) or _is_matrix(module, name)


def _is_matrix(module: nn.Module, name: str) -> bool:
    if isinstance(module, MATRICES):
        return name == "weight"
    if isinstance(module, nn.MultiheadAttention):
        return name.endswith("proj_weight")
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith("weight_")
