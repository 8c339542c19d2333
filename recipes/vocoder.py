r"""A vocoder of dMel codes from a folder of sound files: a de-quantiser, then an iSTFT vocoder.

There are no tasks, so no decoder is trained. The run's folder is what other recipes and verbs take:

    mmtok train recipes/vocoder.py --path CLIPS
    mmtok detokenize TOKENS -o OUT --tokenizer runs/vocoder/tokenizers
    mmtok train recipes/speech.py --path FOLDER \
        --tokenizers.speech.vocoder '{"kind": "ISTFTConfig", "weights": "runs/vocoder"}' \
        --tokenizers.speech.dequantiser '{"kind": "DequantiserConfig", "weights": "runs/vocoder"}'

For codes at 40 Hz, whose de-quantiser makes the 80 Hz spectrogram:

    mmtok train recipes/vocoder.py --path CLIPS --mel.hop_samples 400 --upsampling 2
"""

from mmtok.run.recipe import Recipe
from mmtok.sources.sounds import SoundFolder
from mmtok.tokenizers.dequantiser import DequantiserConfig, DequantiserTraining
from mmtok.tokenizers.istft import ISTFTConfig, ISTFTTraining
from mmtok.tokenizers.speech import DMelConfig

recipe = Recipe(
    name="vocoder",
    sources=(SoundFolder(path=""),),
    tokenizers={
        "speech": DMelConfig(
            vocoder=ISTFTConfig(training=ISTFTTraining()),
            dequantiser=DequantiserConfig(training=DequantiserTraining(steps=4_000)),
        )
    },
    tasks=(),
)
