"""Jets like those of a file.

A file, a folder or a pattern; mmtok/sources/jet_formats.py says which layouts are read.

    mmtok train recipes/jets.py --path jets.npz
    mmtok sample runs/jets --to jets -n 1000
    mmtok score runs/jets other.npz  # nats per particle, jet by jet

With captions, a line of FILE per jet, the task can be conditional:

    mmtok train recipes/jets.py --path jets.npz --labels FILE --tasks.0.inputs '["caption"]'
"""

from mmtok.data.tasks import Task
from mmtok.heads.categorical import Chained
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.jets import JetFile
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="jets",
    sources=(JetFile(path=""),),
    tokenizers={
        "text": BytesConfig(),
        "jets": JetGridConfig(bins=(41, 31, 31), totals=("pt_gev", "mass_gev")),
    },
    tasks=(Task((), ("jets",)),),
    model=DecoderConfig(
        trunk=TransformerConfig.from_depth(4, dropout=0.1), heads={"jets": Chained()}
    ),
    train=TrainConfig(steps=5000, batch_size=16, seq_len=512, learning_rate=1e-3, warmup=100),
    sampling={"jets": Sampling(max_frames=130)},  # the two totals, and the constituents
)
