"""A run over words whose parts wait for files that a test makes: GATES/1 lets the second part
through, GATES/2 the third one; GATES/1.wrong has the second part refused.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import Recipe
from mmtok.sources.base import Source
from mmtok.tokenizers.text import BytesConfig
from mmtok.train.config import TrainConfig

PART = 2048  # examples


@dataclass(frozen=True)
class Gated(Source):
    """Words; the name of their part is among them."""

    gates: str = "gates"
    n: int = 2 * PART + 100

    @property
    def fields(self):
        return {"words": "text"}

    def examples(self, split, cache):
        if split == "heldout":
            yield from ({"words": str(i)} for i in range(70))
            return
        for i in range(self.n):
            k = i // PART
            if k and i % PART == 0:
                while not (Path(self.gates) / str(k)).exists():
                    if (Path(self.gates) / f"{k}.wrong").exists():
                        raise UserError(f"part {k} is refused")
                    time.sleep(0.01)
            yield {"words": f"{k} {i % 10}"}


recipe = Recipe(
    name="gated",
    sources=(Gated(),),
    tokenizers={"text": BytesConfig()},
    tasks=(Task((), ("words",), infill=0.3),),
    model=DecoderConfig(
        trunk=TransformerConfig(depth=1, width=16, n_heads=2, n_kv_heads=2, feed_forward=24)
    ),
    train=TrainConfig(
        steps=300, batch_size=4, seq_len=32, warmup=4, checkpoint_every=10, log_every=10
    ),
)
