"""A run's adapters as a folder that `peft` opens on the checkpoint that the run started from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mmtok.errors import UserError
from mmtok.io.files import write_tensors, write_text
from mmtok.model.llama_folder import FINGERPRINT
from mmtok.model.lm import LM
from mmtok.nn.lora import adapters

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of peft, before those of the model itself


def to_adapter(lm: LM, folder: Path | str, start: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    start: the checkpoint that the adapters belong to. With an int8 base they were trained beside
    rounded weights, and `peft` puts them beside those of the checkpoint.

    Raises UserError where there are no adapters, or where more than they was trained.
    """
    config = lm.config.adapters()
    if config is None:
        raise UserError(
            "export: --adapter is of runs that were trained with --lora, and this one was not:"
            " leave it out"
        )
    if lm.more_than_text:
        raise UserError(
            f"export: --adapter holds adapters alone, and this run learned embeddings of its other"
            f" modalities too ({', '.join(lm.vocabulary.signatures)}): leave it out for a model"
            " with all of it"
        )
    if config.base == "int8":
        warnings.warn(
            "export: these adapters were trained beside int8 weights, and peft puts them beside the"
            " checkpoint's own, so its logits differ by that rounding; leave --adapter out for"
            " equal ones",
            stacklevel=2,
        )
    tensors = {}
    targets: dict[str, None] = {}  # in order, each once
    for name, layer in adapters(lm):
        targets[name.rpartition(".")[2]] = None
        for matrix in ("lora_A", "lora_B"):
            x = getattr(layer, matrix).detach()
            tensors[f"{PREFIX}{name}.{matrix}.weight"] = x.contiguous()
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": start,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    folder = Path(folder)
    metadata = {"format": "pt", FINGERPRINT: lm.vocabulary.fingerprint}
    write_tensors(folder / WEIGHTS, tensors, metadata)
    write_text(folder / CONFIG, json.dumps(about, indent=2) + "\n")


def is_exported_adapter(folder: Path) -> bool:
    """Whether a folder's adapters were written by `to_adapter`, and not saved again by others."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return FINGERPRINT in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
