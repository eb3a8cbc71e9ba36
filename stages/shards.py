"""Tables as parquet files whose bytes depend on their rows alone, and fingerprints that say whether one is current.

A table's footer carries two strings. `content` is the hash of its rows. `fingerprint` is the hash of what it was
made from: the contents of its inputs, the parameters and the code. DVC, Snakemake and file times know nothing of
single shards (a pulled file is as new as the pull), so a shard is current exactly when the fingerprint that it
carries is the one wanted now.
"""

import ast
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.cli import InputError, whole


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
            f"{path}: not a readable parquet file ({_line(error)}); "
            "`chmod u+w`, `touch` and remove it, then `dvc pull` or `dvc repro`"
        ) from None


def footer(path: str | Path) -> dict[str, str]:
    """`content` and `fingerprint` of a table file, without reading its rows; empty for a damaged or absent file."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {key: metadata[key.encode()].decode() for key in ("content", "fingerprint") if key.encode() in metadata}


def fingerprint(module: str | Path, params: object, *inputs: str) -> str:
    """Hash of a stage module's code, its parameters and the contents of its inputs."""
    return _hash(json.dumps([code(module), params, inputs], sort_keys=True, default=vars).encode())


def code(module: str | Path) -> str:
    """Hash of what the module and the `stages` modules it imports compute: comments, docstrings and layout left out."""
    return _hash("\n".join(_meaning(path) for path in closure(module)).encode())


def closure(module: str | Path) -> list[Path]:
    """The files of `module` and of every `stages` module that it imports, directly or not, sorted."""
    root = Path(__file__).parent
    found: set[Path] = set()
    waiting = [Path(module).resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == root.name:
                    target = root.joinpath(*parts[1:])
                    waiting += [file for file in (target.with_suffix(".py"), target / "__init__.py") if file.is_file()]
    return sorted(found)


def file_hash(path: Path) -> str:
    """Hash of a file's bytes, for inputs that are no tables."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def _content(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return _hash(sink.getvalue())


def _hash(data) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
