"""Jets of a class and of a transverse momentum that is asked for.

Gluon, quark and top jets are made by Pythia, or come from a file of yours with a line of captions a
jet; the pt of each jet, that of the sum of its constituents, is a condition beside its caption.

    mmtok train recipes/jets_by_pt.py
    mmtok sample runs/jets_by_pt --prompt "top jet, pt 600 GeV" --to jets -n 1000
    mmtok sample runs/jets_by_pt --prompt "top jet" --prompt pt_gev=600 --to jets -n 1000
    mmtok score runs/jets_by_pt other.npz --condition "top jet, pt 600 GeV"
"""

from mmtok.data.tasks import Task
from mmtok.heads.categorical import Chained
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.pythia import PythiaJets
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.numbers import NumberConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="jets_by_pt",
    sources=(PythiaJets(numbers=("pt_gev",)),),
    tokenizers={
        "text": BytesConfig(),
        "pt_gev": NumberConfig(unit="GeV", low=500.0, high=1500.0, scale="log"),
        "jets": JetGridConfig(bins=(41, 31, 31), totals=("pt_gev", "mass_gev")),
    },
    tasks=(Task(("caption", "pt_gev"), ("jets",), cond_dropout=0.1),),
    model=DecoderConfig(
        trunk=TransformerConfig.from_depth(4, dropout=0.1), heads={"jets": Chained()}
    ),
    train=TrainConfig(steps=5000, batch_size=16, seq_len=512, learning_rate=1e-3, warmup=100),
    sampling={"jets": Sampling(max_frames=130)},  # the two totals, and the constituents
    prompt_format="{caption}, pt {pt_gev} GeV",
)
