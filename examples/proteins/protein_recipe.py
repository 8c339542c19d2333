"""Proteins from their headers, and headers from proteins: a modality that the package lacks.

mmtok train protein_recipe.py --path proteins.fasta
mmtok sample runs/protein --recipe protein_recipe.py --prompt "kinase" --to protein
"""

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
    tasks=(
        Task(("header",), ("protein",), weight=0.8, cond_dropout=0.1),
        Task(("protein",), ("header",), weight=0.2),
    ),
    model=DecoderConfig(trunk=TransformerConfig.from_depth(4)),
    train=TrainConfig(steps=2000, batch_size=8, seq_len=512, learning_rate=2e-3, warmup=50),
    n_samples=32,
    sampling={"protein": Sampling(max_frames=500), "text": Sampling(temperature=0.0)},
)
