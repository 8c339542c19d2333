"""The architectures of `transformers` that a trunk can be, as switches of the one trunk.

What a config.json of each says, what it leaves out, and what of it no trunk here can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmtok.errors import UserError
from mmtok.nn.transformer import Activation, Norms, QKNorm, TransformerConfig

ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "gemma", "olmo2"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Architecture:
    """One model_type of `transformers`.

    Attributes:
        model_type: its name in a config.json.
        model: its class.
        defaults: of fields that a config.json may leave out. `None` is for a field that then
            follows from others.
        qkv_bias, qk_norm, norms, activation, scale_embedding: as of `TransformerConfig`.
        has_window: its layers may all have a sliding window.
        gain_offset: what is added to the weights of its norms in a file: 1 for a Gemma's, whose
            norms multiply by 1 + weight.
    """

    model_type: ModelType
    model: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    qkv_bias: bool = False
    qk_norm: QKNorm = "none"
    norms: Norms = "before"
    activation: Activation = "silu"
    scale_embedding: bool = False
    has_window: bool = False
    gain_offset: float = 0.0

    def default(self, key: str) -> Any:
        """The value of a field that a config.json leaves out; None where there is none."""
        return self.defaults.get(key)

    def differences(self, trunk: TransformerConfig) -> list[str]:
        """The switches of a trunk that this architecture does not have, in words."""
        switches = ("qkv_bias", "qk_norm", "norms", "activation", "scale_embedding")
        found = [
            f"{name} {getattr(trunk, name)}"
            for name in switches
            if getattr(trunk, name) != getattr(self, name)
        ]
        if trunk.sliding_window is not None and not self.has_window:
            found.append(f"sliding_window {trunk.sliding_window}")
        if trunk.odd_blocks:
            found.append(trunk.odd_blocks)
        return found


ARCHITECTURES: dict[str, Architecture] = {
    x.model_type: x
    for x in (
        Architecture("llama", "LlamaForCausalLM"),
        Architecture(
            "mistral",
            "MistralForCausalLM",
            {"num_key_value_heads": 8, "sliding_window": 4096},
            has_window=True,
        ),
        Architecture("qwen2", "Qwen2ForCausalLM", {"num_key_value_heads": 32}, qkv_bias=True),
        Architecture(
            "qwen3",
            "Qwen3ForCausalLM",
            {"num_key_value_heads": 32, "head_dim": 128},
            qk_norm="head",
        ),
        Architecture(
            "gemma",
            "GemmaForCausalLM",
            {
                "num_key_value_heads": 16,
                "head_dim": 256,
                "hidden_act": "gelu_pytorch_tanh",
                "tie_word_embeddings": True,
            },
            activation="gelu_tanh",
            scale_embedding=True,
            gain_offset=1.0,
        ),
        Architecture(
            "olmo2",
            "Olmo2ForCausalLM",
            {"rms_norm_eps": 1e-5},
            qk_norm="all_heads",
            norms="after",
        ),
    )
}


def architecture_of(config: Mapping[str, Any], where: object) -> Architecture:
    """The architecture that a config.json names.

    where: what messages call its folder. Raises UserError for one that is not in the table.
    """
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in ARCHITECTURES:
        return ARCHITECTURES[kind]
    why = ""
    if any(config.get(key) for key in EXPERTS):
        why = ", and its layers are mixtures of experts"
    elif config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        why = ", and it caps its logits softly"
    elif config.get("text_config"):
        why = ", which reads more than text"
    raise UserError(
        f"{where} holds a model of type {kind!r}{why}; what can be opened is"
        f" {', '.join(ARCHITECTURES)}"
    )


def refused(config: Mapping[str, Any], kind: Architecture) -> str:
    """Why a trunk cannot be what a config.json of this architecture describes; "" if it can."""
    act = config.get("hidden_act")
    if kind.model_type == "gemma":
        # the first Gemmas say "gelu" and mean it by tanh; later ones name it anew
        act = config.get("hidden_activation") or {"gelu": "gelu_pytorch_tanh"}.get(str(act), act)
    act = act or kind.default("hidden_act") or "silu"
    wanted = kind.default("hidden_act") or "silu"
    n_windowed = config.get("num_hidden_layers", 0)
    if isinstance(n_windowed, int) and isinstance(config.get("max_window_layers"), int):
        n_windowed -= config["max_window_layers"]
    reasons = {
        "its layers have biases": config.get("attention_bias") or config.get("mlp_bias"),
        f"its activation is {act!r}, not {wanted!r}": (
            ACTIVATIONS.get(str(act)) != kind.activation
        ),
        "its weights are quantised": config.get("quantization_config") is not None,
        "some of its layers have a sliding window (use_sliding_window)": (
            config.get("use_sliding_window") and n_windowed > 0
        ),
        "some of its layers have a sliding window (layer_types)": (
            not kind.has_window
            and any(x != "full_attention" for x in config.get("layer_types") or ())
        ),
        "it attends in both directions": config.get("use_bidirectional_attention"),
        "its layers are mixtures of experts": any(config.get(key) for key in EXPERTS),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def exported_as(trunk: TransformerConfig, wished: str) -> Architecture:
    """The architecture that a trunk is exported as: the one wished for, else the first that fits.

    Raises UserError where none has all of the trunk's switches.
    """
    for kind in (ARCHITECTURES[wished], *ARCHITECTURES.values()):
        if not kind.differences(trunk):
            return kind
    odd = ", ".join(ARCHITECTURES["llama"].differences(trunk))
    raise UserError(
        f"no architecture of transformers has this trunk's switches ({odd}): it cannot be exported"
    )
