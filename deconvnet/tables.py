"""Tables as parquet files whose bytes depend on their rows alone.

A table's footer carries two strings. `content` is the hash of its rows. `fingerprint` is the hash of what it was made
from (see `deconvnet.provenance`).
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deconvnet.errors import InputError
from deconvnet.files import whole


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


def read(path: str | Path, columns: list[str] | None = None) -> pa.Table:
    """Read a table, or some of its columns. Raises InputError for a damaged file."""
    try:
        return pq.read_table(path, columns=columns, partitioning=None, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not a readable parquet file ({' '.join(str(error).split())}); "
            "`chmod u+w`, `touch` and remove it, then `dvc pull` or `dvc repro`"
        ) from None


def footer(path: str | Path) -> dict[str, str]:
    """`content` and `fingerprint` of a table file, without reading its rows; empty for a damaged or absent file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {key: metadata[key.encode()].decode() for key in ("content", "fingerprint") if key.encode() in metadata}


def _content(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()
