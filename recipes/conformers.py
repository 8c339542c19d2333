"""Conformers of molecules: given the atoms and bonds of a molecule, where its atoms are.

The atoms are a set with what is known of each (element, charge, ring sizes, CIP label) and the
graph of the bonds; their positions are drawn all at once by diffusion, without equivariance, as by
MCF (Wang et al. 2023, arXiv 2311.17932), but in the axes of inertia. The data are minima of
drug-like molecules by RDKit (extra `molecules`), made on first use.

    mmtok train recipes/conformers.py
    mmtok train recipes/conformers.py --path molecules.smi
    mmtok sample runs/conformers --prompt "CC(=O)Oc1ccccc1C(=O)O" --to conformer -n 20 -o out
    mmtok evaluate runs/conformers  # COV and AMR of seen and held-out molecules, beside ETKDG
"""

from mmtok.data.tasks import Task
from mmtok.diffusion.samplers import Heun
from mmtok.diffusion.schedules import EDM
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.conformers import Conformers
from mmtok.tokenizers.molecules import ConformerConfig, MoleculeConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="conformers",
    sources=(Conformers(),),
    tokenizers={"molecule": MoleculeConfig(), "conformer": ConformerConfig()},
    tasks=(Task(("molecule",), ("conformer",)),),
    model=DecoderConfig(
        # the head reads the atoms itself
        trunk=TransformerConfig(depth=1, width=32, n_heads=2, n_kv_heads=2, feed_forward=64),
        heads={
            "conformer": SetDiffusion(
                schedule=EDM(sigma_data=1.0, sigma_max=20.0, p_mean=-0.8, p_std=1.4),
                sampler=Heun(),
                steps=24,
                network=DiTConfig(4, 128, 8),
            )
        },
    ),
    # some 25 conformers per step
    train=TrainConfig(
        steps=6000,
        batch_size=2,
        seq_len=512,
        learning_rate=1e-3,
        warmup=100,
        ema_decay=0.999,
    ),
)
