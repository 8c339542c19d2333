"""Options of other programs that people type out of habit, and what they are called here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def _by_name(names_of: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """{hint: names} -> {name: hints}, in their order."""
    hints: dict[str, tuple[str, ...]] = {}
    for hint, names in names_of.items():
        for name in names:
            hints[name] = (*hints.get(name, ()), hint)
    return hints


# names of other programs for fields of a recipe
FIELDS = _by_name(
    {
        "--train.learning_rate": (
            "lr",
            "max_lr",
        ),
        "--train.weight_decay": ("wd",),
        "--train.steps: training is counted in steps": (
            "epochs",
            "num_epochs",
            "num_train_epochs",
            "n_epochs",
        ),
        "--train.steps": (
            "max_steps",
            "max_iters",
            "num_steps",
            "iters",
            "iterations",
            "n_steps",
            "total_steps",
        ),
        "--train.batch_size, rows of --train.seq_len positions a step": (
            "bs",
            "batch",
            "batchsize",
            "train_batch_size",
        ),
        "--train.batch_size, rows of all processes together": ("per_device_train_batch_size",),
        "--train.seq_len": (
            "block_size",
            "seq_length",
            "row_length",
            "n_positions",
            "max_seq_len",
            "max_seq_length",
            "context_length",
            "context",
            "sequence_length",
            "n_ctx",
        ),
        "--train.precision bf16, auto (the default) or float32; there is no fp16": (
            "fp16",
            "bf16",
            "fp32",
            "half",
            "amp",
            "mixed_precision",
            "dtype",
        ),
        "nothing: the same command goes on where it stopped": (
            "resume",
            "resume_from_checkpoint",
            "resume_from",
            "continue",
        ),
        "--train.warmup": (
            "warmup_steps",
            "warmup_iters",
            "num_warmup_steps",
        ),
        "--train.grad_accum_steps": (
            "accumulate",
            "grad_accum",
            "gradient_accumulation_steps",
            "accumulate_grad_batches",
        ),
        "--train.grad_clip": (
            "clip",
            "clip_grad_norm",
            "max_grad_norm",
            "gradient_clip_val",
        ),
        "--train.checkpoint_every": (
            "save_every",
            "save_steps",
            "save_interval",
        ),
        "--train.log_every": (
            "log_interval",
            "logging_steps",
        ),
        "--train.activation_checkpointing, with how many blocks": (
            "gradient_checkpointing",
            "recompute",
        ),
        "--train.fsdp": (
            "shard",
            "zero",
        ),
        "--train.replicas, with --train.fsdp true": (
            "hsdp",
            "hybrid_shard",
        ),
        "nothing: tokens are made once, and then read from files": (
            "workers",
            "num_workers",
            "dataloader_num_workers",
        ),
        "nothing: `mmtok evaluate RUN` measures a trained run": (
            "eval_every",
            "eval_interval",
            "eval_steps",
        ),
        "the recipe's file itself, before the options": (
            "config",
            "recipe",
        ),
        "--path, of most sources": (
            "data",
            "data_dir",
            "data_path",
            "dataset",
            "train_file",
        ),
        "--train.ema_decay": ("ema",),
        "--lora, the rank of the adapters of a pretrained trunk": (
            "lora_r",
            "lora_rank",
            "use_lora",
            "peft",
            "use_peft",
        ),
        "--lora_base int8, with --lora RANK": (
            "load_in_8bit",
            "load_in_4bit",
            "qlora",
        ),
        "--trunk.depth": (
            "n_layer",
            "n_layers",
            "num_layers",
            "layers",
        ),
        "--trunk.width": (
            "n_embd",
            "d_model",
            "hidden_size",
            "embed_dim",
        ),
        "--trunk.n_heads": (
            "n_head",
            "num_heads",
        ),
        "--n_pieces, of a text in pieces": ("vocab_size",),
    }
)
# names of other programs for options of verbs; of several hints, the first whose option a verb has
OPTIONS = _by_name(
    {
        "--out": (
            "output",
            "output_dir",
            "out_dir",
            "outdir",
            "save_dir",
            "run_dir",
            "output_path",
        ),
        "--device cuda (or cuda:1, the second one)": (
            "gpu",
            "gpus",
            "cuda",
            "use_gpu",
            "use_cuda",
        ),
        "--device cpu": (
            "cpu",
            "no_cuda",
            "no_gpu",
        ),
        "-n": (
            "n",
            "num",
            "num_samples",
            "n_samples",
            "samples",
            "num_return_sequences",
            "count",
        ),
        "--max-frames": (
            "max_new_tokens",
            "max_tokens",
            "max_length",
            "max_len",
            "length",
        ),
        "-n for how many; how many at once is seen to": (
            "batch_size",
            "bs",
        ),
        "--checkpoint, with the step": (
            "ckpt",
            "ckpt_path",
            "checkpoint_path",
            "iteration",
        ),
        "--tokenizer": ("model",),
        "--shard I/N": (
            "num_shards",
            "n_shards",
        ),
        "--guidance": (
            "cfg",
            "cfg_scale",
            "guidance_scale",
        ),
        "--steps": (
            "num_inference_steps",
            "sampling_steps",
            "n_steps",
            "num_steps",
            "ddim_steps",
        ),
        "--precision": (
            "fp16",
            "bf16",
            "half",
            "dtype",
            "int8",
            "load_in_8bit",
        ),
        "--condition": (
            "given",
            "cond",
            "context",
            "prompt",
        ),
        "--prompt, for what is given: the condition, or the beginning": (
            "given",
            "cond",
            "condition",
            "context",
            "start",
            "prefix",
        ),
        "--infill FILE:START:STOP": (
            "hole",
            "holes",
            "inpaint",
            "mask",
        ),
        "--aug-noise": (
            "level",
            "aug_level",
            "noise_level",
        ),
        "--temperature 0": (
            "greedy",
            "argmax",
        ),
        "--temperature, with 0 for the likeliest": ("do_sample",),
        "--temperature": ("temp",),
        "--top-k": ("topk",),
        "--top-p": ("topp",),
        "--to": (
            "modality",
            "target",
            "task",
        ),
        "--force": ("overwrite",),
        "--prompt": (
            "text",
            "input",
        ),
        "--seed": ("random_seed",),
        "--tensorboard": (
            "wandb",
            "report_to",
        ),
    }
)


def _name(option: str) -> str:
    """The name in an option: --Batch-Size=3 -> batch_size."""
    return option.partition("=")[0].lstrip("-").replace("-", "_").lower()


def option_hint(option: str, options: Collection[str]) -> str | None:
    """What an option of another program is called in a verb with these options, else None."""
    for hint in OPTIONS.get(_name(option), ()):
        if hint.split()[0].rstrip(",") in options:
            return hint
    return None


def field_hint(name: str) -> str | None:
    """What a field of another program is called in a recipe, else None."""
    hints = FIELDS.get(_name(name), ())
    return next(iter(hints), None)
