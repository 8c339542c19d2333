"""Time series of several channels: forecasts with a density, from what came before.

    mmtok train series_recipe.py --path weather.series.csv
    mmtok sample runs/series --recipe series_recipe.py --prompt begin.series.csv --to series

`--n_bins 64 --model.heads '{"series": {"kind": "Chained"}}'` has bins in place of numbers.
"""

from series_reader import SeriesFile
from series_tokenizer import SeriesConfig

from mmtok.data.tasks import Task
from mmtok.heads.densities import GaussianMixture
from mmtok.heads.regression import Regression
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.train.config import TrainConfig

CHANNELS = ("level [m]", "flow [m3/s]")  # as the file names them
WINDOW = 64  # rows

recipe = Recipe(
    name="series",
    sources=(SeriesFile(channels=CHANNELS, window=WINDOW),),
    tokenizers={"series": SeriesConfig(channels=CHANNELS, window=WINDOW)},
    tasks=(Task((), ("series",)),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=256),
        heads={"series": Regression(GaussianMixture())},
    ),
    train=TrainConfig(
        steps=1500,
        batch_size=8,
        seq_len=4 * (WINDOW + 3),  # four windows, each with its marks
        learning_rate=2e-3,
        warmup=50,
        precision="float32",
    ),
    n_samples=16,
)
