# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Speech tokens, seen and heard
#
# A spoken word is encoded as dMel frames (80 mel bands in 16 levels each) and decoded to sound
# again. Then a small model is trained on such frames for some seconds and continues a word. Needs
# the extras `demo` and `report`.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt

from mmtok.core.segment import Segment
from mmtok.nn.resample import resample
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.build import train
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.speech import DMelConfig

OUT = Path(mkdtemp(prefix="speech_tokens_"))

# %% [markdown]
# ## A spoken word
#
# `SpokenDigits` makes digits in many voices by espeak-ng, at 22.05 kHz. The tokenizer takes 16 kHz.

# %%
source = SpokenDigits(n_utterances=60)
examples = list(source.examples("train", OUT / "data"))
clip = next(example for example in examples if example["caption"] == "seven")
sound = clip["speech"]
samples = resample(sound.samples, sound.rate_hz, 16_000)
print(f"{clip['caption']}: {len(samples) / 16_000:.2f} seconds")

# %% [markdown]
# ## As tokens, at two rates
#
# Each column of the pictures below is one frame, which the model reads and writes in one step.

# %%
tokenizers = {"40 Hz": DMelConfig.dmel_40hz().build(), "80 Hz": DMelConfig().build()}
segments = {name: tokenizer.encode(samples) for name, tokenizer in tokenizers.items()}
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, (name, segment) in zip(axes, segments.items(), strict=True):
    axis.imshow(segment.codes.T, origin="lower", aspect="auto", interpolation="nearest")
    axis.set_title(f"{name}: {len(segment)} frames of {segment.codes.shape[1]} channels")
    axis.set_xlabel("frame")
axes[0].set_ylabel("mel band")
figure.savefig(OUT / "tokens.png", dpi=120, bbox_inches="tight")

# %% [markdown]
# ## And back as sound
#
# Files to listen to: the word, and its decoding by each tokenizer.

# %%
write_sound(OUT / "original.wav", samples)
for name, tokenizer in tokenizers.items():
    heard = tokenizer.decode(segments[name])
    write_sound(OUT / f"decoded at {name}.wav", heard)
    print(f"{name}: {len(heard)} samples, {len(samples)} in the original")

# %% [markdown]
# ## A small model
#
# A variant of the quickstart's recipe: spoken digits only, a small trunk, few steps. It learns what
# frames look like, but no words. Words need about an hour of training.


# %%
def tiny_recipe(steps: int = 60) -> Recipe:
    """The quickstart's tasks between words and speech, on the clips above."""
    parent = load_recipe(Path(__file__).parents[2] / "recipes" / "digits.py")
    fields = {*source.fields}
    trunk = TransformerConfig(depth=2, width=96, n_heads=2, n_kv_heads=2, feed_forward=256)
    return replace(
        parent,
        name="speech_tokens",
        sources=(source,),
        tokenizers={m: parent.tokenizers[m] for m in ("text", "speech")},
        tasks=tuple(t for t in parent.tasks if {*t.inputs, *t.targets} <= fields),
        input_masking={},
        model=replace(
            parent.model, trunk=trunk, heads={"speech": parent.model.heads["speech"]}, totals={}
        ),
        train=replace(parent.train, steps=steps, warmup=10, batch_size=4),
        preparation={},
        sampling={m: parent.sampling[m] for m in ("text", "speech")},
    )


run = train(tiny_recipe(), OUT / "run")

# %% [markdown]
# The model is given the first half of the word, and continues it.

# %%
whole = run.tokenizers["speech"].encode(samples)
half = Segment("speech", codes=whole.codes[: len(whole) // 2])
prompt = run.prompt(run.encode("text", ["seven"]), "speech", known=half)
drawn = run.draw([prompt], run.sampling("speech", max_frames=40), seed=0)[0].segment
write_sound(OUT / "continued.wav", run.tokenizers["speech"].decode(drawn))
print(f"{len(half)} frames given, {len(drawn) - len(half)} drawn; listen to {OUT}")
