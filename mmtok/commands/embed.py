"""What `mmtok embed` does: files and words in, vectors of one size out; retrieval among vectors.

A file of vectors is Parquet with the columns `id` (int64), `name`, `modality` (strings) and
`vector` (a list of D float32); its metadata `mmtok` names the weights. An .npz file has arrays of
the same names, and `weights`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtok.commands.documents import is_documents
from mmtok.commands.prompts import expand_folders, read_segments
from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.io.files import atomic_write
from mmtok.io.messages import counted
from mmtok.io.progress import Progress
from mmtok.model.embed import embed
from mmtok.run.folder import read_sha256
from mmtok.run.run import Run

SUFFIXES = (".parquet", ".npz")
KEY = b"mmtok"  # of the metadata of a Parquet file


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a file of vectors holds.

    Attributes:
        names: n of them, of what was embedded.
        modalities: of each.
        vectors: (n, D) float32, of norm 1.
        weights: which weights made them; vectors of others lie in another space.
    """

    names: list[str]
    modalities: list[str]
    vectors: np.ndarray
    weights: str


def embed_files(run: Run, files: Sequence[str], out: Path | None, to: str | None) -> str:
    """Write the vectors of files and words; what was written, in words."""
    if out is None:
        raise UserError(
            "embed: say where the vectors go, -o vectors.parquet, or --nearest VECTORS for those"
            " of a file that are nearest"
        )
    if to is not None:
        raise UserError(f"embed: --to {to} is of --nearest VECTORS; leave it out")
    _check_suffix(out)
    found = embedded(run, files)
    write_vectors(out, found)
    n, size = found.vectors.shape
    return f"{counted(n, 'vector')} of {size} numbers in {out}"


def nearest_lines(
    run: Run, files: Sequence[str], among: Path, to: str | None, n: int, out: Path | None
) -> list[str]:
    """For each file or word the n nearest of a file of vectors, a line each.

    to: their modality; None: any. Raises UserError for vectors of other weights.
    """
    if out is not None:
        raise UserError("embed: --nearest prints its answer; leave -o out")
    if n < 1:
        raise UserError(f"embed: -n is {n}; it must be at least 1")
    known = read_vectors(among)
    if known.weights != weights_name(run):
        raise UserError(
            f"{among}: these vectors were made with other weights than those of {run.folder}, and"
            " lie in another space: make them again with mmtok embed"
        )
    kept = [i for i, m in enumerate(known.modalities) if to in (None, m)]
    if not kept:
        has = ", ".join(sorted(set(known.modalities))) or "none"
        raise UserError(f"{among}: holds no vector of {to}, only of {has}")
    queries = embedded(run, files)
    cosines = queries.vectors @ known.vectors[kept].T
    lines = []
    for name, row in zip(queries.names, cosines, strict=True):
        for i in np.argsort(-row, kind="stable")[:n]:
            lines.append(f"{name} -> {known.names[kept[i]]}: cosine {row[i]:.4f}")
    return lines


def embedded(run: Run, files: Sequence[str]) -> Vectors:
    """The vectors of files and words; of a file of many signals one for each."""
    names: list[str] = []
    segments: list[Segment] = []
    for word in expand_folders(run, files):
        if is_documents(run, word):
            raise UserError(f"{word}: a document is of several signals: embed them one by one")
        found = read_segments(run, word)
        names += [f"{word}[{i}]" if len(found) > 1 else word for i in range(len(found))]
        segments += found
    _check_learned(run, segments)
    with Progress("embed", len(segments), "signals") as progress:
        vectors = embed(run.lm, segments, on_embedded=progress.advance)
    return Vectors(names, [s.modality for s in segments], vectors, weights_name(run))


def _check_learned(run: Run, segments: Sequence[Segment]) -> None:
    """Raise UserError for a modality of which no contrast is."""
    fields = run.recipe.fields
    learned = {fields[f] for contrast in run.recipe.contrasts for f in contrast.fields}
    run.lm  # noqa: B018 - says first where there is no decoder
    for segment in segments:
        if learned and segment.modality not in learned:
            raise UserError(
                f"embed: this run learned no vectors of {segment.modality}, only of"
                f" {', '.join(sorted(learned))}"
            )


def weights_name(run: Run) -> str:
    """What tells the weights of a run from others': a digest, or the checkpoint's step."""
    step = run.trained
    if step["step"] == step["of"] and run.step is None:
        return read_sha256(run.folder / "config.json") or ""
    return f"{run.vocabulary.fingerprint} step {step['step']}"


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: vectors are written to {' or '.join(SUFFIXES)}")


def write_vectors(path: Path, found: Vectors) -> None:
    """Write a file of vectors atomically, .parquet or .npz."""
    ids = np.arange(len(found.names))
    with atomic_write(path) as temporary:
        if path.suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(
                    file,
                    id=ids,
                    name=np.array(found.names, str),
                    modality=np.array(found.modalities, str),
                    vector=found.vectors,
                    weights=found.weights,
                )
            return
        size = found.vectors.shape[1]
        flat = pa.array(found.vectors.ravel(), pa.float32())
        table = pa.table(
            {
                "id": ids,
                "name": pa.array(found.names, pa.string()),
                "modality": pa.array(found.modalities, pa.string()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, size),
            }
        )
        about = json.dumps({"vectors": size, "weights": found.weights}).encode()
        pq.write_table(table.replace_schema_metadata({KEY: about}), temporary)


def read_vectors(path: Path) -> Vectors:
    """Read a file of vectors. Raises UserError for any other file."""
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"no file of vectors at {path}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                names = file["name"].tolist()
                modalities = file["modality"].tolist()
                vectors = file["vector"].astype(np.float32)
                weights = str(file["weights"])
        else:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[KEY])
            weights = about["weights"]
            names = table["name"].to_pylist()
            modalities = table["modality"].to_pylist()
            column = table["vector"].combine_chunks()
            vectors = column.flatten().to_numpy().reshape(len(names), about["vectors"])
    except (KeyError, ValueError, OSError, pa.ArrowException, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: is no file of vectors ({reason}); mmtok embed RUN FILE... -o writes them"
        ) from None
    return Vectors(names, modalities, vectors, weights)
