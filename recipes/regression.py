"""Unknowns from measurements: the posterior of a linear model, beside its exact form.

Two unknowns theta are measured three times with noise; the run learns p(theta | x), a Gaussian
whose mean and covariance the decoder decides. With a table of yours the source is a HubTable whose
columns are numbers, and each quantity a VectorConfig of size 1.

    mmtok train recipes/regression.py
    mmtok sample runs/regression --prompt x=0.5,-1,2 --to theta -n 500
    mmtok score runs/regression theta=0.3,-0.2 --condition x=0.5,-1,2
    mmtok evaluate runs/regression
"""

from mmtok.data.tasks import Task
from mmtok.heads.densities import Gaussian
from mmtok.heads.regression import Regression
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.linear_gaussian import LinearGaussian
from mmtok.tokenizers.vectors import VectorConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="regression",
    sources=(LinearGaussian(),),
    tokenizers={"x": VectorConfig(size=3), "theta": VectorConfig(size=2)},
    tasks=(Task(("x",), ("theta",)),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=128),
        heads={"theta": Regression(Gaussian())},
    ),
    train=TrainConfig(
        steps=1500, batch_size=16, seq_len=96, learning_rate=3e-3, warmup=50, precision="float32"
    ),
)
