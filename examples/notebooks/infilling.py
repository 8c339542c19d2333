# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Infilling a picture in any order
#
# Masked diffusion samples the codes of a picture in any order. So it can keep any part of a picture
# and sample the rest. Here a small model is trained on scanned digits for a minute, and then
# completes halves of them. Needs the extras `demo` and `report`.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.nn.denoisers import DiTConfig
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.sources.images import ScannedDigits
from mmtok.tokenizers.images import PixelsConfig

OUT = Path(mkdtemp(prefix="infilling_"))

# %% [markdown]
# ## The model
#
# A variant of `recipes/any_order.py`: a digit is 8 x 8 pixels in 4 levels, 64 codes, and no
# tokenizer is trained.


# %%
def tiny_recipe(steps: int = 200) -> Recipe:
    """Pixels in four levels, one copy of each scan, a small denoiser."""
    parent = load_recipe(Path(__file__).parents[2] / "recipes" / "any_order.py")
    return replace(
        parent,
        name="infilling",
        sources=(ScannedDigits(copies=1),),
        tokenizers={
            "text": parent.tokenizers["text"],
            "image": PixelsConfig(8, 8, 1, n_levels=4),
        },
        model=replace(parent.model, heads={"image": MaskedDiffusion(network=DiTConfig(3, 64, 2))}),
        train=replace(parent.train, steps=steps, warmup=20, ema_decay=0.98),
        preparation={},
    )


run = train(tiny_recipe(), OUT / "run")

# %% [markdown]
# ## Keep the upper half, sample the lower one
#
# The codes of a picture are its pixels, row by row. `infill_spans` are the spans to sample; all
# other codes are kept.

# %%
heldout = list(run.examples("heldout", "image"))[:6]
tokenizer = run.tokenizers["image"]
pictures = run.encode("image", [example["image"] for example in heldout])
names = run.encode("text", [example["caption"] for example in heldout])
prompts = [
    run.prompt([name], "image", known=replace(picture, infill_spans=((32, 64),)))
    for name, picture in zip(names, pictures, strict=True)
]
filled = [one.segment for one in run.draw(prompts, run.sampling("image"), seed=0)]

# %% [markdown]
# The upper half has not changed:

# %%
for picture, result in zip(pictures, filled, strict=True):
    assert np.array_equal(picture.codes[:32], result.codes[:32])

# %% [markdown]
# ## The pictures
#
# At the top the scans, in the middle the model's input, at the bottom its samples.

# %%
figure, axes = plt.subplots(3, len(pictures), figsize=(9, 5))
for i, (picture, result) in enumerate(zip(pictures, filled, strict=True)):
    given = tokenizer.decode(picture).astype(float)
    given[4:] = np.nan
    columns = (tokenizer.decode(picture), given, tokenizer.decode(result))
    for axis, shown in zip(axes[:, i], columns, strict=True):
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
        axis.axis("off")
    axes[0, i].set_title(heldout[i]["caption"])
figure.savefig(OUT / "infilled.png", dpi=120, bbox_inches="tight")
errors = [
    np.abs(picture.codes[32:] - result.codes[32:]).mean()
    for picture, result in zip(pictures, filled, strict=True)
]
error = float(np.mean(errors))
print(f"drawn halves are {error:.2f} levels from the scans; the picture is in {OUT}")
