r"""Jets as clouds of particles: all particles of a jet at once, by flow matching or diffusion.

The head draws a number of particles and then the particles, as a set: its network has no positions,
so no order of particles means anything. By EPiC-FM (Buhmann et al. 2023, arXiv 2310.00049) and
PC-JeDi (Leigh et al. 2023, arXiv 2303.05376), with a transformer's attention over particles.

    mmtok train recipes/jet_clouds.py --path jets.npz
    mmtok sample runs/jet_clouds --to jets -n 1000
    mmtok score runs/jet_clouds other.npz  # nats per particle: a density of sets, estimated

With captions, a line of FILE per jet, the task can be conditional, and guided:

    mmtok train recipes/jet_clouds.py --path jets.npz --labels FILE \
        --tasks '[{"inputs": ["caption"], "targets": ["jets"], "cond_dropout": 0.1}]'

Diffusion (Karras et al. 2022) in the place of flow matching:

    mmtok train recipes/jet_clouds.py --path jets.npz \
        --model.heads.jets.schedule '{"kind": "EDM", "sigma_data": 1.0, "p_mean": -0.5}'
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
from mmtok.sources.jets import JetFile
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="jet_clouds",
    sources=(JetFile(path=""),),
    tokenizers={"text": BytesConfig(), "jets": JetLatentsConfig()},
    tasks=(Task((), ("jets",)),),
    model=DecoderConfig(
        # the trunk only reads the condition; the head draws
        trunk=TransformerConfig(depth=2, width=64, n_heads=2, n_kv_heads=2, feed_forward=176),
        # the particles' numbers have mean 0 and variance 1, so flow matching needs no constants
        heads={
            "jets": SetDiffusion(
                schedule=CondOT(), sampler=Heun(), steps=30, network=DiTConfig(4, 96, 4)
            )
        },
    ),
    # some 30 jets per step
    train=TrainConfig(
        steps=5000,
        batch_size=4,
        seq_len=512,
        learning_rate=1e-3,
        warmup=100,
        ema_decay=0.999,
    ),
    sampling={"jets": Sampling(max_frames=128)},
)
