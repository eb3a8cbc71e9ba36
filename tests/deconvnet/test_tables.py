import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvnet import tables
from deconvnet.errors import InputError

ROWS = st.lists(
    st.tuples(st.text(max_size=3), st.binary(max_size=9), st.lists(st.integers(-5, 5), max_size=3)),
    min_size=1,
    max_size=9,
)


def table(rows):
    ids, data, numbers = zip(*rows, strict=True)
    return pa.table({"id": pa.array(ids), "data": pa.array(data), "numbers": pa.array(numbers, pa.list_(pa.int32()))})


@given(rows=ROWS, cut=st.integers(0, 9))
def test_bytes_depend_on_the_rows_alone(rows, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    whole_table = table(rows)
    pieces = pa.concat_tables([whole_table.slice(0, cut), whole_table.slice(cut)])
    tables.write(folder / "a", whole_table, "f")
    tables.write(folder / "b", pieces, "f")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    assert tables.read(folder / "a").equals(whole_table)


def test_footer_says_content_and_fingerprint(tmp_path):
    tables.write(tmp_path / "a", table([("x", b"1", [])]), "f")
    tables.write(tmp_path / "b", table([("x", b"1", [])]), "g")
    tables.write(tmp_path / "c", table([("x", b"2", [])]), "f")
    a, b, c = (tables.footer(tmp_path / name) for name in "abc")
    assert (a["fingerprint"], b["fingerprint"]) == ("f", "g")
    assert a["content"] == b["content"] != c["content"]
    (tmp_path / "d").write_bytes(b"PAR1 no")
    assert tables.footer(tmp_path / "d") == tables.footer(tmp_path / "none") == {}
    with pytest.raises(InputError, match="d: not a readable parquet file"):
        tables.read(tmp_path / "d")


def test_a_flipped_bit_is_found_where_the_table_is_read(tmp_path):
    path = tmp_path / "a"
    tables.write(path, pa.table({"data": pa.array([bytes(range(256)) * 40])}))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    assert tables.footer(path)["content"], "the footer is whole"
    with pytest.raises(InputError, match="a: not a readable parquet file .*dvc"):
        tables.read(path)


def test_some_columns(tmp_path):
    tables.write(tmp_path / "a", table([("x", b"1", [2, 3])]))
    assert tables.read(tmp_path / "a", ["numbers"]).to_pylist() == [{"numbers": [2, 3]}]
