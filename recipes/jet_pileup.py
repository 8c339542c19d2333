r"""Jets without their pile-up: draws of the clean jet, given the jet with pile-up in it.

By set diffusion (VIPR, Algren et al. 2024, arXiv 2410.22074): the decoder reads the particles of
the jet as it is measured, and the head draws how many particles the clean jet has and then all of
them, attending to every particle that was read. Top jets and their pile-up, 60 collisions on
average, are made by Pythia.

    mmtok train recipes/jet_pileup.py
    mmtok sample runs/jet_pileup --prompt measured.npz --to clean_jets -n 100
    mmtok evaluate runs/jet_pileup  # resolution beside soft drop and PUPPI, PIT, coverage
    mmtok report runs/jet_pileup

With 60 collisions a jet has some 460 particles, the clean one rarely more than 160. Those beyond
the 512 hardest are left out, and counted. 200 collisions need room for more:

    mmtok train recipes/jet_pileup.py --mu 200 --max_constituents 2000 --seq_len 4096 \
        --heads.jets.max_frames 2000 --sampling.jets.max_frames 2000
"""

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import CondOT
from mmtok.heads.sampling import Sampling
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.pythia import PythiaJets
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="jet_pileup",
    sources=(PythiaJets(classes=("top",), mu=60.0),),
    tokenizers={"jets": JetLatentsConfig(max_constituents=512)},
    tasks=(Task(("jets",), ("clean_jets",)),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=176),
        heads={
            "jets": SetDiffusion(
                schedule=CondOT(),
                sampler=Heun(),
                steps=30,
                network=DiTConfig(4, 96, 4),
                max_frames=512,
                context=True,
            )
        },
    ),
    # a row holds one jet as it is measured, and the clean one
    train=TrainConfig(
        steps=5000,
        batch_size=16,
        seq_len=1040,
        learning_rate=1e-3,
        warmup=100,
        ema_decay=0.999,
    ),
    sampling={"jets": Sampling(max_frames=512)},
)
