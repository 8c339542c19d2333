"""Proteins of a family, and the family of a protein: a modality that the package does not know."""

from protein_reader import FastaFile
from protein_tokenizer import ProteinConfig

from mmtok.data.tasks import Task
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="protein",
    sources=(FastaFile(path=""),),
    tokenizers={"text": BytesConfig(), "protein": ProteinConfig()},
    tasks=(Task(("family",), ("protein",), cond_dropout=0.1), Task(("protein",), ("family",))),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=128)
    ),
    train=TrainConfig(
        steps=60,
        batch_size=4,
        seq_len=128,
        warmup=5,
        learning_rate=5e-3,
        ema_decay=0.0,
        precision="float32",
    ),
    n_samples=8,
    sampling={"protein": Sampling(max_frames=40), "text": Sampling(temperature=0.0, max_frames=8)},
)
