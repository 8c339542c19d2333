"""Tables through `datasets`: of the Hugging Face hub, of local files and folders.

Tables of text are read by this package itself: `datasets` would guess types there. Of others, all
rows are written into a file that is read from the middle, or they come one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, missing_extra
from mmtok.io.columns import named_column
from mmtok.io.messages import listed
from mmtok.io.patterns import is_pattern, named_places
from mmtok.io.tables import SUFFIXES, suffix_of
from mmtok.sources.hub_reach import calling, filled_parquet
from mmtok.sources.rows import DatasetRows, Rows, TextRows

KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
WANTED = "a table: a file, a folder, or OWNER/NAME of the Hugging Face hub"
# errors of what cannot be reached; requests, httpx and huggingface_hub have their own ones
UNREACHABLE = ("Connect", "Offline", "LocalEntryNotFound", "Timeout", "MaxRetry", "Proxy", "SSL")


@dataclass(frozen=True)
class TablePlace:
    """Where a table is.

    Attributes:
        id: of the hub; or a file, a folder, or a pattern of files.
        subset: the hub's name of a part of it.
    """

    id: str
    subset: str = ""

    @property
    def path(self) -> Path:
        """The file or folder that the id names, if it is one."""
        if self.id.startswith("~"):
            return Path(self.id).expanduser()
        return Path(self.id)

    def files(self) -> list[Path]:
        """The files that the id names; [] for a folder, or a table of the hub.

        Raises UserError where they are of several kinds, or not there.
        """
        if self.path.is_file():
            return [self.path]
        is_table = suffix_of(self.path, named=True) or self.path.suffix.lower() in KINDS
        is_local = is_table or self.id.startswith(("/", "./", "../", "~"))
        if is_local and not is_pattern(self.id) and not self.path.exists():
            raise UserError(f"{self.path}: no such file; HubTable wants {WANTED}")
        if not is_pattern(self.id) or self.path.exists():
            return []
        files = named_places(self.id, "HubTable", WANTED)
        others = [file for file in files if _kind_of(file) != _kind_of(files[0])]
        if others:
            raise UserError(
                f"{self.id}: names {files[0].name} and {others[0].name}, tables of two kinds; give"
                " each a source of its own"
            )
        return files

    @property
    def home(self) -> Path:
        """The folder of the files that the table may name.

        That is the table's own folder; of a table on the hub, what `datasets` has downloaded.
        """
        if self.path.is_dir():
            return self.path
        files = self.files()
        if files:
            return files[0].parent
        return Path(load_datasets().config.HF_CACHE_HOME)

    @property
    def is_here(self) -> bool:
        """Whether it is made of the user's own files."""
        return self.path.is_dir() or bool(self.files())

    def needs_datasets(self) -> bool:
        """Whether it is read through `datasets`."""
        files = self.files()
        return not files or not _is_text(files[0])

    # ---- reading

    def rows(self, split: str, columns: Sequence[str], cache: Path) -> Rows:
        """The table of one split, its sounds and pictures left undecoded.

        Raises UserError for what cannot be read, and for a column that it does not have.
        """
        with self._calling():
            return self._rows(split, columns, cache)

    def _calling(self) -> AbstractContextManager[None]:
        """Around what `datasets` does, where it is needed."""
        if not self.needs_datasets():
            return nullcontext()
        return calling(load_datasets(), not self.files() and not self.path.is_dir())

    def _rows(self, split: str, columns: Sequence[str], cache: Path) -> Rows:
        builder, texts = self._opened(split, cache)
        if texts:
            rows = TextRows(texts)
            rows.rename(found_columns(rows.columns, columns, self._at(split)))
            return rows
        datasets = load_datasets()
        try:
            builder.download_and_prepare()
            table = builder.as_dataset(split=split)
        # `datasets` raises some thirty types: its own, fsspec's, pyarrow's and requests'
        except Exception as error:
            raise self._refused(split, error) from None
        table, features = _undecoded(datasets, table, table.features, columns, self._at(split))
        return DatasetRows(table, self.id, features)

    def stream(
        self, split: str, columns: Sequence[str], cache: Path
    ) -> tuple[Iterable[Mapping[str, Any]], DatasetRows, int | None] | None:
        """The rows of one split, one after another, without a copy of the table.

        Args:
            split: the table's own.
            columns: those that are wanted.
            cache: for what is slow to make.

        Returns:
            rows, head and n: mappings of columns to cells; what knows their columns and classes,
            without a row; the number of rows where it is known. None for a table of text, which
            `rows` reads from its files.
        """
        with self._calling():
            return self._stream(split, columns, cache)

    def _stream(
        self, split: str, columns: Sequence[str], cache: Path
    ) -> tuple[Iterable[Mapping[str, Any]], DatasetRows, int | None] | None:
        builder, texts = self._opened(split, cache)
        if texts:
            return None
        datasets = load_datasets()
        try:
            table = builder.as_streaming_dataset(split=split)
            if table.features is None:
                table = table._resolve_features()
        except Exception as error:  # as in `rows`
            raise self._refused(split, error) from None
        table, features = _undecoded(datasets, table, table.features, columns, self._at(split))
        about = (builder.info.splits or {}).get(split)
        n = about.num_examples if about is not None else None
        return self._guarded(table, split), DatasetRows([], self.id, features), n or None

    def _guarded(self, table: Any, split: str) -> Iterable[Mapping[str, Any]]:
        """The rows; what `datasets` raises on the way becomes UserError."""
        rows = iter(table)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # as in `rows`
                raise self._refused(split, error) from None
            if row is None:
                return
            yield row

    def _opened(self, split: str, cache: Path) -> tuple[Any, list[Path]]:
        """What `datasets` builds the table with, and the files of a table of text."""
        if not self.needs_datasets():
            return None, self.files()
        datasets = load_datasets()
        try:
            builder = self._builder(datasets, split, cache)
            return builder, _text_files(datasets, builder, split)
        except UserError:
            raise
        except Exception as error:  # as in `rows`
            raise self._refused(split, error) from None

    def _builder(self, datasets: Any, split: str, cache: Path) -> Any:
        """What `datasets` builds the table with."""
        subset = self.subset or None
        files = self.files()
        if files and _kind_of(files[0]) == "parquet":
            files = filled_parquet(files)
        if files:
            return datasets.load_dataset_builder(
                _kind_of(files[0]),
                data_files={split: [str(file) for file in files]},
                cache_dir=str(cache / "datasets"),
            )
        if self.path.is_dir():
            return datasets.load_dataset_builder(
                str(self.path), subset, cache_dir=str(cache / "datasets")
            )
        # what comes from the hub stays in Hugging Face's own cache, for all runs
        return datasets.load_dataset_builder(self.id, subset)

    def _at(self, split: str) -> str:
        return f"{self.id}, split {split!r}"

    def _refused(self, split: str, error: Exception) -> UserError:
        """What is said of an error of `datasets`."""
        is_local = bool(self.path.exists() or self.files())
        if not is_local and any(word in name for name in _kinds(error) for word in UNREACHABLE):
            reason = _first_line(error)
            if "OfflineModeIsEnabled" in (reason, *_kinds(error)) or "(Offline" in reason:
                reason = "it does not answer, or HF_HUB_OFFLINE is set"
            return UserError(
                f"{self.id}: no file or folder of that name is here, and the Hugging Face hub"
                f" cannot be reached ({reason}); without a network fetch it before: hf"
                f" download {self.id} --repo-type dataset"
            )
        return UserError(f"{self._at(split)}: `datasets` cannot read it: {_first_line(error)}")


def found_columns(there: Sequence[str], wanted: Sequence[str], where: str) -> dict[str, str]:
    """Column of a table -> what it is wanted as, where that has another case.

    Of a name with dots, the first part may be the column.

    Raises UserError, naming the nearest, for a column that the table does not have.
    """
    found = {}
    for name in wanted:
        top = name.split(".")[0]
        if name in there or top in there:
            continue
        whole = [column for column in there if column.lower() == name.lower()]
        if not whole and [column for column in there if column.lower() == top.lower()]:
            name = top
        found[named_column(name, there, where)] = name
    return found


def _check_parts(
    datasets: Any, features: Mapping[str, Any], columns: Sequence[str], where: str
) -> None:
    """Raise UserError for a part, such as en in translation.en, that a column does not have."""
    for name in columns:
        top, _, part = name.partition(".")
        if name in features or not part:
            continue
        if isinstance(features[top], Mapping):
            named_column(part.split(".")[0], list(features[top]), f"{where}, column {top!r}")
        elif isinstance(features[top], (datasets.Value, datasets.ClassLabel)):
            raise UserError(
                f"{where}: the column {top!r} holds no records, so it has no part {part!r}; name"
                f" the column alone, {top}"
            )


def _undecoded(
    datasets: Any, table: Any, features: Mapping[str, Any], columns: Sequence[str], where: str
) -> tuple[Any, dict[str, Any]]:
    """The wanted columns, whose sounds and pictures are left as bytes, and their types."""
    other_case = found_columns(list(features), columns, where)
    for column, name in other_case.items():
        table = table.rename_column(column, name)
    features = {other_case.get(column, column): kind for column, kind in features.items()}
    _check_parts(datasets, features, columns, where)
    tops = [name if name in features else name.split(".")[0] for name in columns]
    there = list(dict.fromkeys(tops))
    table = table.select_columns(there)
    for column in there:
        feature = features[column]
        if isinstance(feature, (datasets.Audio, datasets.Image)):
            table = table.cast_column(column, type(feature)(decode=False))
    return table, {column: features[column] for column in there}


def _is_text(path: Path) -> bool:
    """Whether a file is a table of text by its suffix, packed or not."""
    return suffix_of(path, named=True) not in (None, ".parquet")


def _kind_of(path: Path) -> str:
    """The builder of `datasets` for a file, or "text". Raises UserError where it is no table."""
    if _is_text(path):
        return "text"
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path}: not a table that can be read; known are"
            f" {', '.join(dict.fromkeys((*KINDS, *SUFFIXES)))}"
        )
    return kind


def _text_files(datasets: Any, builder: Any, split: str) -> list[Path]:
    """The files of a split that are tables of text; [] where it is of another kind.

    They are not read through `datasets`, which would guess types: numbers, dates, missing values.
    """
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    files = builder.config.data_files or {}
    if not isinstance(builder, (Csv, Json)):
        names = {Path(str(file)).name.lower() for of_split in files.values() for file in of_split}
        if "metadata.csv" in names:
            raise UserError(
                f"{builder.base_path}: `datasets` would read the texts of metadata.csv as numbers"
                " where they look like some; name the table itself: --id FOLDER/metadata.csv"
            )
        return []
    if split not in files:
        raise UserError(
            f"{builder.base_path}: has no split {split!r}; its splits are {listed(list(files))}"
        )
    return [Path(file) for file in datasets.DownloadManager().download(list(files[split]))]


def _kinds(error: BaseException) -> list[str]:
    """The names of an error's type and of those that caused it."""
    found = []
    cause: BaseException | None = error
    while cause is not None:
        found += [kind.__name__ for kind in type(cause).__mro__]
        cause = cause.__cause__
    return found


def _first_line(error: BaseException) -> str:
    """The first line of the error that caused this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return (lines and lines[0]) or type(error).__name__


def load_datasets() -> Any:
    """The package `datasets`. Raises UserError where it is not installed."""
    try:
        import datasets
    except ImportError:
        raise missing_extra("reading a table", "hub") from None
    datasets.disable_progress_bars()
    return datasets
