"""Options that people type out of habit, from other programs: an answer in one line that names
ours.
"""

from __future__ import annotations

from collections.abc import Collection

SELF = "nothing: the same command goes on where it stopped"
HALF = "--train.precision bf16, auto (the default) or float32; there is no fp16"

FIELDS = {  # of what sets a recipe's fields
    "lr": "--train.learning_rate", "max_lr": "--train.learning_rate", "wd": "--train.weight_decay",
    "epochs": "--train.steps: training is counted in steps", "num_epochs": "--train.steps: training is counted in steps",
    "num_train_epochs": "--train.steps: training is counted in steps", "n_epochs": "--train.steps: training is counted in steps",
    "max_steps": "--train.steps", "max_iters": "--train.steps", "num_steps": "--train.steps", "iters": "--train.steps",
    "iterations": "--train.steps", "n_steps": "--train.steps", "total_steps": "--train.steps",
    "bs": "--train.batch_size, rows of --train.seq_len positions a step", "batch": "--train.batch_size, rows of --train.seq_len positions a step",
    
    "per_device_train_batch_size": "--train.batch_size, rows of all processes together",
    "block_size": "--train.seq_len", "seq_length": "--train.seq_len",
    "max_seq_len": "--train.seq_len", "max_seq_length": "--train.seq_len", "context_length": "--train.seq_len",
    "context": "--train.seq_len", "sequence_length": "--train.seq_len", "n_ctx": "--train.seq_len",
    "fp16": HALF, "bf16": HALF, "fp32": HALF, "half": HALF, "amp": HALF, "mixed_precision": HALF, "dtype": HALF,
    "resume": SELF, "resume_from_checkpoint": SELF, "resume_from": SELF, "continue": SELF,
    "warmup_steps": "--train.warmup", "warmup_iters": "--train.warmup", "num_warmup_steps": "--train.warmup",
    "grad_accum": "--train.grad_accum_steps", "gradient_accumulation_steps": "--train.grad_accum_steps", "accumulate_grad_batches": "--train.grad_accum_steps",
    "max_grad_norm": "--train.grad_clip", "gradient_clip_val": "--train.grad_clip",
    "save_every": "--train.checkpoint_every", "save_steps": "--train.checkpoint_every", "save_interval": "--train.checkpoint_every",
    "log_interval": "--train.log_every", "logging_steps": "--train.log_every",
    "gradient_checkpointing": "--train.activation_checkpointing, with how many blocks", "ema": "--train.ema_decay",
    "n_layer": "--trunk.depth", "n_layers": "--trunk.depth", "num_layers": "--trunk.depth",
    "layers": "--trunk.depth", "n_embd": "--trunk.width", "d_model": "--trunk.width", "hidden_size": "--trunk.width",
    "embed_dim": "--trunk.width", "n_head": "--trunk.n_heads", "num_heads": "--trunk.n_heads", "vocab_size": "--n_pieces, of a text in pieces",
}  # fmt: skip
OPTIONS = {  # of verbs
    **dict.fromkeys(("output", "output_dir", "out_dir", "outdir", "save_dir", "run_dir", "output_path"), "--out"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "use_gpu", "use_cuda"), "--device cuda (or cuda:1, the second one)"),
    **dict.fromkeys(("cpu", "no_cuda", "no_gpu"), "--device cpu"),
    **dict.fromkeys(("num_samples", "n_samples", "samples", "num_return_sequences", "count"), "-n"),
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_length", "max_len", "length"), "--max-frames"),
    **dict.fromkeys(("batch_size", "bs"), "-n for how many; how many at once is seen to"),
    **dict.fromkeys(("ckpt", "ckpt_path", "checkpoint_path", "iteration"), "--checkpoint, with the step"),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale"), "--guidance"),
    **dict.fromkeys(("num_inference_steps", "sampling_steps", "num_steps", "ddim_steps"), "--steps"),
    **dict.fromkeys(("fp16", "bf16", "half", "dtype", "int8", "load_in_8bit"), "--precision"),
    **dict.fromkeys(("given", "cond", "context"), "--condition"),
    "temp": "--temperature", "topk": "--top-k", "topp": "--top-p", "modality": "--to", "target": "--to", "overwrite": "--force",
    "text": "--prompt", "input": "--prompt", "random_seed": "--seed", "wandb": "--tensorboard", "report_to": "--tensorboard",
}  # fmt: skip


def _name(option: str) -> str:
    """--Batch-Size=3 -> batch_size"""
    return option.partition("=")[0].lstrip("-").replace("-", "_").lower()


def option_hint(option: str, options: Collection[str]) -> str | None:
    """What to say instead of an option that a verb with these options does not have; None where
    nobody says such a thing.
    """
    answer = OPTIONS.get(_name(option))
    return answer if answer and answer.split()[0].rstrip(",") in options else None


def field_hint(name: str) -> str | None:
    """What to say instead of a field that no recipe has, where fields are set."""
    return FIELDS.get(_name(name))
