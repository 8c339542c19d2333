"""The neutrino of a W boson: what a mass leaves open, as a posterior with two solutions.

Of a W -> l nu decay in Pythia's collisions the lepton's momentum and the missing transverse
momentum are given; pz of the neutrino is drawn by a conditional normalising flow. The W's mass
leaves two solutions for it (`mmtok.sources.neutrinos`), each as wide as the W's mass is. Needs the
extras `jets` and `flows`.

    mmtok train recipes/neutrino.py
    mmtok sample runs/neutrino --prompt lepton=38,20 --prompt met=-31,5 --to neutrino_pz -n 500
    mmtok score runs/neutrino neutrino_pz=60 --condition lepton=38,20 --condition met=-31,5
    mmtok evaluate runs/neutrino
"""

from mmtok.data.tasks import Task
from mmtok.heads.flows import NormalisingFlow
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.neutrinos import NeutrinoEvents
from mmtok.tokenizers.vectors import VectorConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="neutrino",
    sources=(NeutrinoEvents("W"),),
    tokenizers={
        "lepton": VectorConfig(size=2, unit="GeV"),
        "met": VectorConfig(size=2, unit="GeV"),
        "neutrino_pz": VectorConfig(unit="GeV"),
    },
    tasks=(Task(("lepton", "met"), ("neutrino_pz",)),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=256),
        heads={"neutrino_pz": NormalisingFlow(n_maps=2, n_bins=16, hidden=128)},
    ),
    train=TrainConfig(
        steps=4000, batch_size=16, seq_len=96, learning_rate=3e-3, warmup=50, precision="float32"
    ),
)
