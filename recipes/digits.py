"""The quickstart: one decoder over text, speech, images and jets, on data that it makes itself.

Comments at the fields say what decided the quality; budgets are in steps.
"""

from mmtok.data.tasks import InputMasking, Task
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.speech import SpokenDigits
from mmtok.tokenizers.autoencoders import StagedConv
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.patch_rows import PatchRowsConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

recipe = Recipe(
    name="digits",
    sources=(HandwrittenDigits(copies=4), SpokenDigits(n_utterances=6000), PythiaJets()),
    tokenizers={
        "text": BytesConfig(),
        "speech": DMelConfig.dmel_40hz(),
        # A frame is a row of 7 codes: with a frame for each code, a digit and its name would take
        # 59 positions instead of 17, and a third as many digits would be seen.
        "image": PatchRowsConfig(
            height=28,
            width=28,
            patch=4,
            quantizer=VQ(n_codes=64, rotation=True),
            autoencoder=StagedConv(width=64),
            steps=1000,
        ),
        "jets": JetGridConfig(bins=(41, 31, 31), totals=("pt_gev", "mass_gev")),
    },
    tasks=(
        Task(("caption",), ("image",), weight=0.1, cond_dropout=0.1),
        # shifted and noisy views: reading must not depend on the pixel grid
        Task(("view",), ("caption",), weight=0.115),
        # images are read with rows missing (input_masking)
        Task(("image",), ("caption",), weight=0.115),
        # strings of words are the last thing learned: which word is next?
        Task(("caption",), ("speech",), weight=0.145, cond_dropout=0.1),
        Task(("speech",), ("caption",), weight=0.185),
        Task(("caption",), ("jets",), weight=0.175, cond_dropout=0.1),
        # A jet's hardest constituents make its shape. More jets fit a step when some are read no
        # further than the totals and 40 constituents.
        Task(("caption",), ("jets",), weight=0.205, cond_dropout=0.1, max_target_frames=42),
    ),
    input_masking={
        # without it, samples become copies of training digits
        "image": InputMasking(drop_prob=0.2),
        "view": InputMasking(drop_prob=0.1),
        "speech": InputMasking(
            span_prob=0.3, span_length=3, apply_prob=0.5, n_freq_masks=1, freq_mask_width=16
        ),
    },
    model=DecoderConfig(
        trunk=TransformerConfig(
            depth=4, width=256, n_heads=4, n_kv_heads=4, feed_forward=704, dropout=0.1
        ),
        heads={"speech": Parallel(), "image": Chained(hidden=256), "jets": Chained()},
        # what is left of a jet's pt and mass is a sum, which attention is slow to learn
        totals={"jets": 64},
    ),
    train=TrainConfig(
        steps=1800,
        batch_size=8,
        seq_len=256,
        optimizer="muon",
        learning_rate=2e-3,
        warmup=100,
        log_every=50,
    ),
    sampling={
        "text": Sampling(temperature=0.0, max_frames=64),  # reading wants the likeliest string
        "speech": Sampling(temperature=0.8, max_frames=240),  # greedy speech does not stop
        "image": Sampling(temperature=0.8, guidance=1.5),
        "jets": Sampling(max_frames=130),
    },
)
