"""The class of a jet, read from its particles: gluon, quark or top, from labels few or many.

The name of the class is written as text, so p(class | jet) is that of its letters, and any names
will do. `evaluate` gives the accuracy, the AUC of every two classes, and how reliable p is. A run
that has learned jets without labels is a start that needs fewer of them:

    mmtok train recipes/jets.py --path jets.npz --out runs/jets
    mmtok train recipes/jet_tagging.py --start runs/jets
    mmtok evaluate runs/jet_tagging
    mmtok sample runs/jet_tagging --prompt other.npz --to text -n 1

A deep ensemble is several runs of other seeds (--train.seed 1 --out runs/second):

    mmtok evaluate runs/jet_tagging --ensemble runs/second --ensemble runs/third

With jets of a file of yours, and a line of FILE for each:

    mmtok train recipes/jet_tagging.py --sources '[{"kind": "JetFile", "path": "jets.npz",
        "labels": "FILE"}]'
"""

from mmtok.data.tasks import Task
from mmtok.heads.categorical import Chained
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.pythia import PythiaJets
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="jet_tagging",
    sources=(PythiaJets(),),
    tokenizers={
        "text": BytesConfig(),
        "jets": JetGridConfig(bins=(41, 31, 31), totals=("pt_gev", "mass_gev")),
    },
    tasks=(Task(("jets",), ("caption",)),),
    model=DecoderConfig(
        # all as in recipes/jets.py, whose runs are a start
        trunk=TransformerConfig.from_depth(4, dropout=0.1),
        heads={"jets": Chained()},
    ),
    train=TrainConfig(steps=1000, batch_size=16, seq_len=512, learning_rate=5e-4, warmup=50),
    sampling={"text": Sampling(temperature=0.0, max_frames=40)},
)
