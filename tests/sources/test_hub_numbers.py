"""Columns of numbers, as fields that condition."""

import pytest

from mmtok.errors import UserError
from mmtok.sources.hub import HubTable


def table(tmp_path, *cells):
    path = tmp_path / "t.csv"
    path.write_text("text,age\n" + "".join(f"row {i},{cell}\n" for i, cell in enumerate(cells)))
    columns = {"caption": "text", "age": "age"}
    return str(path), columns, {"caption": "text", "age": "number"}


def test_numbers_of_a_table(tmp_path):
    source = HubTable(*table(tmp_path, 31, 4.5, "6e1", "", -2))
    assert source.fields == {"caption": "text", "age": "age"}
    examples = [e for split in source.splits for e in source.examples(split, tmp_path)]
    found = {example["caption"]: example.get("age") for example in examples}
    assert found == {"row 0": 31, "row 1": 4.5, "row 2": 60, "row 3": None, "row 4": -2}
    some = HubTable(*table(tmp_path, 31, 4.5, 60, 7), limits={"age": (5, 40)})
    with pytest.warns(UserWarning, match="1 of 4 rows"):
        assert sum(1 for split in some.splits for _ in some.examples(split, tmp_path)) == 2


def test_a_cell_that_is_no_number_names_its_place(tmp_path):
    source = HubTable(*table(tmp_path, 31, "old", 3), max_error_share=0)
    with pytest.raises(UserError, match=r"t\.csv.*column 'age': 'old' is no number"):
        list(source.examples("train", tmp_path))
    source = HubTable(*table(tmp_path, *([31] * 50), "nan"), max_error_share=0.1)
    with pytest.warns(UserWarning, match="1 of 51 rows"):
        list(source.examples("train", tmp_path))
