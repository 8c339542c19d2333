"""What the README and the site show is run: each page from top to bottom, on tiny runs and data."""

import functools
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import VERBS, main
from mmtok.commands.arguments import parse, parser_of
from mmtok.io.overrides import field_groups
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.sources.images import write_image

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
SLOW_PAGES = {  # pages that train runs of their own
    "docs/tutorials/your_speech.md",
    "docs/tutorials/spoken_sentences.md",
    "docs/tutorials/your_pictures.md",
    "docs/tutorials/your_jets.md",
    "docs/tutorials/your_videos.md",
    "docs/tutorials/your_text.md",
    "docs/tutorials/new_modality.md",
    "docs/tutorials/pretrained_llama.md",
    "docs/howto/economy.md",
    "docs/howto/embedding.md",
    "docs/howto/clouds.md",
    "docs/howto/recipes.md",
    "docs/howto/restoration.md",
    "docs/howto/training.md",
}
# These are only parsed. The quickstart itself runs in .ci/run, and evaluation, report and several
# processes have tests of their own.
NOT_RUN = {
    ("mmtok", "train", "recipes/digits.py"),
    ("mmtok", "evaluate"),
    ("mmtok", "report"),
    ("torchrun",),
    ("bash",),
    ("pip",),
    ("python",),
    ("git",),
    ("ruff",),
    ("mypy",),
}
NOT_RUN_FLAGS = {"--play", "--ray", "--tensorboard"}
# What the tests add to training commands: few steps of a small model.
SMALL_TRAIN = {"steps": 4, "batch_size": 2, "log_every": 2, "warmup": 1}
SMALL_TRUNK = {"depth": 1, "width": 32, "n_heads": 2, "n_kv_heads": 2, "feed_forward": 48}
SMALL_NETWORK = {"steps": 2, "batch_size": 2, "network.width": 8, "network.depth": 1}
SMALL_TOKENIZERS = {
    "recipes/image.py": {
        "image.steps": 5,
        "image.quantizer.n_codes": 16,
        "image.autoencoder.width": 8,
    },
    "recipes/any_size.py": {
        "image.steps": 5,
        "image.quantizer.n_codes": 16,
        "image.autoencoder.width": 8,
    },
    "recipes/pictures.py": {"image.steps": 5, "image.autoencoder.width": 8},
    "recipes/text.py": {"text.n_pieces": 300},
    "recipes/latent_jets.py": {"jets.steps": 2, "jets.batch_size": 2, "jets.width": 16},
    "recipes/embed.py": {"image.steps": 5, "image.quantizer.n_codes": 16},
    "recipes/video.py": {
        "tokenizers.video.picture.steps": 5,
        "tokenizers.video.picture.quantizer.n_codes": 16,
    },
    "recipes/vocoder.py": {
        f"speech.vocoder.training.{name}": value for name, value in SMALL_NETWORK.items()
    },
}
SMALL_SOURCES = {
    "recipes/sentences.py": {"0.n_utterances": 60},
    "recipes/embed.py": {
        "0.copies": 1,
        "1.n_utterances": 30,
        "2.n_per_class": 6,
        "2.n_heldout": 2,
    },
    "recipes/restoration.py": {"0.source.n_digits": 40},
    "recipes/video.py": {"0.copies": 1},
    "recipes/regression.py": {"0.n_train": 200, "0.n_heldout": 20},
    "recipes/neutrino.py": {"0.n_train": 200, "0.n_heldout": 20},
}


ROOMS = sorted(path.parent.name for path in (ROOT / "mmtok").glob("*/__init__.py"))


@functools.cache
def known_flags():
    """Options of all verbs and scripts, and the recipes' fields with their shortened names."""
    flags = {option for verb in VERBS.values() for option in parser_of(verb, "mmtok").option_names}
    for path in (ROOT / "recipes").glob("*.py"):
        for _, _, fields in field_groups(json.loads(load_recipe(path, []).to_json())):
            for name in fields:
                parts = name.split(".")
                flags |= {f"--{'.'.join(parts[i:])}" for i in range(len(parts))}
    for path in (ROOT / "scripts").iterdir():
        if path.is_file():
            flags |= set(re.findall(r"--[a-z][\w-]*", path.read_text()))
    plan = (ROOT / "scripts" / "scale.py").read_text()
    flags |= {f"--{name}" for name in re.findall(r"^    (\w+): \w+(?: = .*)?$", plan, re.MULTILINE)}
    return {flag.replace("_", "-") for flag in flags}


@functools.cache
def blocks(page):
    """(language, text) of a page's fenced blocks, in order."""
    text = (ROOT / page).read_text()
    return re.findall(r"^```([\w{}-]*).*?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_lines(page):
    """The words of every command in a page's shell blocks."""
    scripts = [text.replace("\\\n", " ") for name, text in blocks(page) if name == "bash"]
    lines = [line for text in scripts for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def commands(page):
    """The words after `mmtok` of every command of a page, those in running text too."""
    inline = re.findall(
        r"`(mmtok \w+ [^-\s][^`]+)`", (ROOT / page).read_text()
    )  # not a verb's name
    words = shell_lines(page) + [shlex.split(line) for line in inline]
    return [w[w.index("mmtok") + 1 :] for w in words if "mmtok" in w]


def small(words):
    """The command, and what makes it one of seconds."""
    if words[0] == "sample" and not {"--max-frames", "--rows"} & {*words}:
        return [*words, "--max-frames", "8"]
    if words[0] == "compare" and "--power" not in words:
        return [*words, "--permutations", "20", "--power", "0"]
    if words[0] not in ("train", "fit"):
        return words
    fields = {f"train.{name}": value for name, value in SMALL_TRAIN.items()}
    if "--start" not in words:  # a checkpoint has its own sizes
        fields |= {f"model.trunk.{name}": value for name, value in SMALL_TRUNK.items()}
        of_recipe = SMALL_TOKENIZERS.get(words[1], {})
        fields |= {f"tokenizers.{name}": value for name, value in of_recipe.items()}
        of_source = SMALL_SOURCES.get(words[1], {})
        fields |= {f"sources.{name}": value for name, value in of_source.items()}
    added = [(f"--{k}", str(v)) for k, v in fields.items() if f"--{k}" not in words]
    return words + [word for pair in added for word in pair]


@pytest.fixture
def home(tiny_data, tiny_copy, tmp_path, monkeypatch):
    """A folder with the project's recipes, data under the names that the pages use, and the tiny
    run as runs/digits.
    """
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    tiny_copy.rename(home / "runs" / "digits")
    (home / "recipes").symlink_to(ROOT / "recipes")
    shutil.copytree(tiny_data / "sounds", home / "clips")
    shutil.copytree(tiny_data / "images", home / "pictures")
    (home / "pictures" / "dark").rename(home / "pictures" / "red fox")
    for name in ("jets.npz", "labels.txt"):
        shutil.copy(tiny_data / name, home)
    lines = [f"line {i}: {'abcde'[i % 5] * (i % 7)} and so on\n" for i in range(300)]
    (home / "my.txt").write_text("".join(lines))
    for path in (ROOT / "examples").glob("*/*_*.py"):
        shutil.copy(path, home)
    records = [
        f">{('helix', 'sheet')[i % 2]}\n{'AELKMVIYFT'[i % 7 :]}{'A' * i}\n" for i in range(40)
    ]
    (home / "proteins.fasta").write_text("".join(records))
    for name, n in (("weather", 900), ("begin", 30)):
        rows = [f"{k},{k % 7},{k % 5 + 0.5}" for k in range(n)]
        text = "\n".join(["time [s],level [m],flow [m3/s]", *rows])
        (home / f"{name}.series.csv").write_text(text)
    monkeypatch.chdir(home)
    return home


def bring(page, home, make_llama):
    """Add what only some pages need."""
    text = (ROOT / page).read_text()
    if "checkpoints/llama" in text:
        (home / "checkpoints").mkdir()
        make_llama(home / "checkpoints" / "llama")
    if "chats.jsonl" in text:
        write_chats(home)
    if "my.tsv" in text:
        write_corpora(home)
    if "generated.npz" in text:
        write_pairs(home)
    if "small.png" in text:
        write_image(home / "small.png", np.full((7, 7), 90, np.uint8))
    if "tokenizer.model" in text:
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            input="my.txt", model_prefix="tokenizer", vocab_size=300, byte_fallback=True
        )
    if "tokens.parquet" in text and not any("tokenize" in words for words in shell_lines(page)):
        pictures = map(str, sorted((home / "pictures").rglob("*.png")))
        assert main(["tokenize", "image", *pictures, "-o", "tokens.parquet"]) == 0


def write_pairs(home):
    """Pairs of files that are compared."""
    for name in ("generated.npz", "real.npz"):
        shutil.copy(home / "jets.npz", home / name)
    shutil.copy(home / "my.txt", home / "real.txt")
    for name in ("a.csv", "b.csv"):
        rows = "".join(f"{i % 7},{i * i % 11}\n" for i in range(40))
        (home / name).write_text(f"mass,pt\n{rows}")


def write_corpora(home):
    """What the page of layouts shows: a table of sounds, a table of texts, tars of pictures."""
    (home / "sounds").mkdir()
    for i in range(4):
        (home / "sounds" / f"{i}.wav").write_bytes(b"not looked into")
    rows = "".join(f"sounds/{i}.wav\twords {i}\n" for i in range(4))
    (home / "my.tsv").write_text(f"clip\tsentence\n{rows}")
    (home / "corpus").mkdir()
    (home / "corpus" / "a.jsonl").write_text('{"body": "a text"}\n' * 4)
    (home / "cc3m").mkdir()
    for i in range(332):
        with tarfile.open(home / "cc3m" / f"{i:05}.tar", "w") as tar:
            for name in (f"{i:05}.jpg", f"{i:05}.txt"):
                member = tarfile.TarInfo(name)
                member.size = 5
                tar.addfile(member, io.BytesIO(f"{i:05}".encode()))


def write_chats(home):
    """Conversations, and a template for the checkpoint of the tests."""
    template = "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|begin|>assistant:{% endif %}"
    (home / "checkpoints" / "llama" / "chat_template.jinja").write_text(template)
    chat = [{"role": "user", "content": "dark?"}, {"role": "assistant", "content": "light"}]
    chats = [[{"role": "user", "content": f"dark {i}?"}, chat[1]] for i in range(20)]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in chats]
    (home / "chats.jsonl").write_text("".join(lines))
    (home / "chat.json").write_text(json.dumps(chat))
    (home / "question.json").write_text(json.dumps(chat[:1]))


def run_line(words, home):
    """Run a line of a shell block, unless it is one that is only parsed."""
    if any(tuple(words[: len(start)]) == start for start in NOT_RUN) or NOT_RUN_FLAGS & {*words}:
        return
    assert words[0] == "mmtok", f"a page shows {words[0]}, which no test runs"
    if words[1] == "show" and is_elsewhere(words, home):
        load_recipe(Path(words[2]), words[3:])  # the fields are right, and the corpus is not here
        return
    found = []
    for word in small(words[1:]):
        found += sorted(map(str, home.glob(word))) if "*" in word else [word]
    assert main(found) == 0, words


def is_elsewhere(words, home):
    """Whether a line names a corpus that only its reader has."""
    if "--path" not in words:
        return False
    first = re.sub(r"\{(\w+)\.\.\w+\}", r"\1", words[words.index("--path") + 1])
    return not (home / first).exists()


def test_there_is_something_to_test():
    assert {words[0] for page in PAGES for words in commands(page)} == set(VERBS) - {"fit"}
    assert sum(name == "python" for page in PAGES for name, _ in blocks(page)) >= 7
    assert set(PAGES) >= SLOW_PAGES


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_kind_that_is_run_or_said_to_be_none(page):
    assert {name for name, _ in blocks(page)} <= {"bash", "python", "text", "bibtex", *DIRECTIVES}


DIRECTIVES = ("{toctree}", "{include}", "{eval-rst}")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:scripts|tests|recipes|mmtok|docs|examples)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    short = re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w.]+\.py)`", text)  # `io/files.py`
    assert [name for name in short if not (ROOT / "mmtok" / name).exists()] == []
    scripts = [word for words in shell_lines(page) for word in words if word.startswith("scripts/")]
    assert [name for name in scripts if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p != "docs/changelog.md"])
def test_flags_in_running_text_exist(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", text)
    flags = {flag for span in spans for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", span)}
    assert {flag for flag in flags if flag.replace("_", "-") not in known_flags()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses_and_its_fields_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        given = parse(VERBS[words[0]], words[1:])
        path = given.get("recipe") or given.get("path")
        if given.get("overrides") and path.is_file():
            assert isinstance(load_recipe(path, given["overrides"]), Recipe)


def test_torchrun_knows_its_options():
    from torch.distributed.run import parse_args

    lines = [words for page in PAGES for words in shell_lines(page) if words[0] == "torchrun"]
    given = [parse_args(words[1:]) for words in lines]
    assert given
    assert all(args.module and args.training_script == "mmtok" for args in given)
    assert all(int(args.nproc_per_node) > 1 for args in given)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW_PAGES else []) for p in PAGES],
)
def test_a_page_runs_from_top_to_bottom(page, home, make_llama):
    if not {name for name, _ in blocks(page)} & {"bash", "python"}:
        pytest.skip("a page without commands")
    if any("recipes/neutrino.py" in words for words in shell_lines(page)):
        pytest.importorskip("zuko")
    if any("recipes/restoration.py" in words for words in shell_lines(page)):
        pytest.importorskip("mlxtend", exc_type=ImportError)
    bring(page, home, make_llama)
    for language, text in blocks(page):
        if language == "bash":
            for line in text.splitlines():
                run_line(shlex.split(line, comments=True), home)
        elif language == "python":
            names = {}
            exec(compile(text, page, "exec"), names)
            if isinstance(names.get("recipe"), Recipe):
                assert Recipe.from_json(names["recipe"].to_json()) == names["recipe"]


def test_the_floor_plan_is_the_house():
    result = subprocess.run([sys.executable, ROOT / "docs" / "floor_plan.py", "--check"])
    assert result.returncode == 0, "write it again by python docs/floor_plan.py"


def test_the_page_of_what_can_be_read_has_all_layouts():
    result = subprocess.run([sys.executable, ROOT / "docs" / "layouts.py", "--check"])
    assert result.returncode == 0, "write it again by python docs/layouts.py"


def test_the_new_names_of_the_changelog_exist():
    renamed, moved = (ROOT / "CHANGELOG.md").read_text().split("### Renamed")[1].split("### Moved")
    code = "\n".join(path.read_text() for path in (ROOT / "mmtok").rglob("*.py"))
    files = {path.name for path in (ROOT / "mmtok").rglob("*.py")}
    words = set(re.findall(r"\w+", code)) | files
    names = [name for row in new_names(renamed) for name in row]
    assert len(names) > 40
    assert [
        n for n in names if n not in words and n.strip("-=").replace("-", "_") not in words
    ] == []
    paths = [name for row in new_names(moved.split("\n## ")[0]) for name in row]
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / "mmtok" / path).exists()] == []


def new_names(section):
    """What stands in backquotes in the second column of a section's table, row by row."""
    rows = [line.split(" | ")[1] for line in section.splitlines() if line.startswith("| ")]
    return [[name.split(" ")[0] for name in re.findall(r"`([^`]+)`", row)] for row in rows]


def test_the_readme_can_be_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_the_site_is_built_without_warnings(tmp_path):
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "index.html").is_file()
