# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Jets, sampled and scored
#
# A small model is trained for a minute on a few hundred jets by Pythia 8. Then we sample jets from
# it, compute the probability of real jets, and classify them. Needs the extras `jets` and `report`.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

from mmtok.core.segment import Document
from mmtok.metrics.jets import masses
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.sources.pythia import PythiaJets

OUT = Path(mkdtemp(prefix="jets_"))
KINDS = ("gluon jet", "quark jet", "top jet")

# %% [markdown]
# ## Real jets, and a recipe
#
# A jet is an array (P, 3): pt in GeV, eta and phi relative to the axis. Only its 40 hardest
# constituents are kept here.


# %%
def tiny_recipe(n_per_class: int = 160, steps: int = 120) -> Recipe:
    """The quickstart's jets alone: words -> jets, a small trunk, few steps."""
    parent = load_recipe(Path(__file__).parents[2] / "recipes" / "digits.py")
    trunk = TransformerConfig(depth=2, width=96, n_heads=4, n_kv_heads=4, feed_forward=256)
    jets = replace(parent.tokenizers["jets"], max_constituents=40)
    return replace(
        parent,
        name="jets",
        sources=(PythiaJets(n_per_class=n_per_class, n_heldout=n_per_class // 4, processes=1),),
        tokenizers={"text": parent.tokenizers["text"], "jets": jets},
        tasks=tuple(t for t in parent.tasks if "jets" in t.targets and not t.max_target_frames),
        input_masking={},
        model=replace(parent.model, trunk=trunk, heads={"jets": parent.model.heads["jets"]}),
        train=replace(parent.train, steps=steps, warmup=10),
        preparation={},
        sampling={"jets": parent.sampling["jets"]},
    )


run = train(tiny_recipe(), OUT / "run")
heldout = list(run.examples("heldout", "jets"))
print(f"{len(heldout)} held-out jets")

# %% [markdown]
# ## Samples
#
# The masses of sampled jets beside those of real ones.

# %%
N = 40
drawn = {}
for kind in KINDS:
    prompt = run.prompt(run.encode("text", [kind]), "jets")
    sampled = run.draw([prompt] * N, run.sampling("jets"), seed=0)
    drawn[kind] = run.tokenizers["jets"].decode_batch([one.segment for one in sampled])

figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for axis, kind in zip(axes, KINDS, strict=True):
    real = [example["jets"] for example in heldout if example["caption"] == kind]
    for name, jets in (("real", real), ("drawn", drawn[kind])):
        axis.hist(masses(jets), bins=np.linspace(0, 250, 26), density=True, alpha=0.6, label=name)
    axis.set_title(kind)
    axis.set_xlabel("mass, GeV")
axes[0].legend()
figure.savefig(OUT / "masses.png", dpi=120, bbox_inches="tight")

# %% [markdown]
# ## Scores
#
# -log p(jet | kind) for all three kinds. The score is exact, and it is that of the set: the order
# of the constituents does not matter. The most probable kind is the model's answer.

# %%
jets = run.encode("jets", [example["jets"] for example in heldout])
kinds = run.encode("text", KINDS)
documents = [Document((kind, jet), (False, True)) for jet in jets for kind in kinds]
nats = np.array([score.total for score in run.score_documents(documents)]).reshape(-1, len(KINDS))
truth = np.array([KINDS.index(example["caption"]) for example in heldout])
accuracy = float((nats.argmin(1) == truth).mean())
per_particle = nats[np.arange(len(truth)), truth].sum() / sum(map(len, jets))
print(f"{per_particle:.2f} nats per particle; the kind is right for {accuracy:.0%} (by chance 33%)")
print(f"figures are in {OUT}")
