"""Tables as parquet files whose bytes depend on their rows alone.

A table's footer carries two strings. `content` is the hash of its rows. `fingerprint` is the hash of what it was made
from (see `deconvnet.provenance`).
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deconvnet.contents import Kind
from deconvnet.errors import InputError
from deconvnet.files import whole

BOMB = 1000  # times smaller than what it holds: no table of ours compresses so well


def write(path: str | Path, table: pa.Table, fingerprint: str = "") -> None:
    """Write `table` under a temporary name, then rename. Same rows, same schema, same bytes."""
    # One chunk, no metadata: how a table was put together must not show in its bytes.
    table = table.replace_schema_metadata(None).combine_chunks()
    metadata = {"content": _content(table), "fingerprint": fingerprint}
    with whole(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            temporary,
            compression={field.name: "zstd" for field in table.schema if not pa.types.is_binary(field.type)},
            use_dictionary=[field.name for field in table.schema if pa.types.is_string(field.type)],
            write_statistics=False,
            write_page_checksum=True,  # DVC trusts what is in its cache: reading finds what a disk or a network damaged
            row_group_size=1 << 20,
        )


def read(path: str | Path, columns: list[str] | None = None, kind: Kind | None = None) -> pa.Table:
    """Read a table, or some of its columns, checked as those of `kind`. Raises InputError for a damaged file."""
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file" if not Path(path).exists() else "not a plain file")
        names = list(kind.types) if kind and columns is None else columns
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
            if sum(group.total_byte_size for group in groups) > BOMB * max(Path(path).stat().st_size, 1 << 20):
                raise OSError("holds far more than its size")
            table = file.read(names)
        if lacking := set(names or ()) - set(table.column_names):
            raise OSError(f"lacks the column {min(lacking)}")
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not a readable parquet file ({' '.join(str(error).split())}); "
            "`chmod u+w`, `touch` and remove it, then `dvc pull` or `dvc repro`"
        ) from None
    return table if kind is None else kind.check(table, path)


def footer(path: str | Path) -> dict[str, str]:
    """`content` and `fingerprint` of a table file, without reading its rows; empty for a damaged or absent file."""
    try:
        metadata = pq.read_schema(path).metadata or {} if Path(path).is_file() else {}
    except (OSError, pa.ArrowException):
        return {}
    found = {key: metadata.get(key.encode(), b"").decode(errors="replace") for key in ("content", "fingerprint")}
    return {key: value for key, value in found.items() if value}


def _content(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()
