"""What a result was made from: fingerprints of code, parameters and the content of inputs.

File times say nothing after a pull or a checkout, so a result is current exactly when the fingerprint that it carries
is the one wanted now.
"""

import ast
import hashlib
import json
from pathlib import Path

from deconvnet import tables
from deconvnet.errors import InputError
from deconvnet.files import file_hash

PACKAGES = ("deconvnet", "experiment", "stages", "demo")
# What only moves values and words to where they are needed: typed settings (their values count), checks, estimates,
# messages, files that appear whole. A change in it makes no other numbers, so it is no part of any fingerprint and no
# dependency in dvc.yaml.
PLUMBING = {
    "deconvnet/__init__.py", "deconvnet/census.py", "deconvnet/contents.py", "deconvnet/cost.py",
    "deconvnet/errors.py", "deconvnet/fields.py", "deconvnet/files.py", "deconvnet/progress.py",
    "deconvnet/provenance.py", "deconvnet/roofline.py", "deconvnet/settings.py", "deconvnet/steps.py",
    "deconvnet/training/flops.py", "experiment/__init__.py", "experiment/check.py", "experiment/cli.py",
    "experiment/live.py", "experiment/machine.py", "experiment/params.py", "stages/__init__.py",
}  # fmt: skip
ROOT = Path(__file__).parents[1]


def fingerprint(module: str | Path, params: object, *inputs: str) -> str:
    """Hash of a module's code, its parameters (dataclasses and plain values) and the content hashes of its inputs."""
    return _hash(json.dumps([code(module), params, inputs], sort_keys=True, default=vars))


def content(*paths: Path) -> str:
    """Hash of tables and of folders of tables, from the content hashes in their footers. Raises InputError for none."""
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    hashes = [tables.footer(file).get("content") for file in files]
    if not hashes or None in hashes:
        damaged = files[hashes.index(None)] if hashes else paths[0]
        raise InputError(f"{damaged}: missing or damaged; `dvc checkout`, `dvc pull` or `dvc repro` brings it back")
    return _hash("".join(hashes))


def files(**paths: Path) -> dict[str, str]:
    """The hash of each file by its name here."""
    return {name: file_hash(path) for name, path in paths.items()}


def code(module: str | Path) -> str:
    """Hash of what the module and the project's modules it imports compute.

    Comments, docstrings, layout, messages (of errors, of `print`, `say` and `warn`, of help texts) and PLUMBING are
    left out: none of them changes a result.
    """
    return _hash("\n".join(_meaning(path) for path in closure(module)))


def closure(module: str | Path) -> list[Path]:
    """The files of `module` and of every module of the project that it imports, directly or not, sorted.

    PLUMBING and packages that are only a docstring are left out.
    """
    found: set[Path] = set()
    waiting = [Path(module).resolve()]
    while waiting:
        path = waiting.pop()
        if path in found or path.is_relative_to(ROOT) and str(path.relative_to(ROOT)) in PLUMBING:
            continue
        found.add(path)
        found.update(source for source in [path.with_suffix(".cpp")] if source.is_file())  # what it compiles
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] in PACKAGES:
                    places = [ROOT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
                    files = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
                    waiting += [file for file in files if file.is_file()]
    return sorted(path for path in found if not _is_empty(path))


def _is_empty(path: Path) -> bool:
    if path.suffix != ".py":
        return False
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


class _Silence(ast.NodeTransformer):
    """Takes out of a syntax tree what only people read."""

    def _without_docstring(self, node):
        self.generic_visit(node)
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:]
        return node

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node

    def visit_Expr(self, node):
        self.generic_visit(node)
        if isinstance(node.value, ast.Call):
            function = node.value.func
            name = getattr(function, "id", getattr(function, "attr", ""))
            if name in ("print", "say", "warn", "set_postfix_str"):
                node.value.args, node.value.keywords = [], []
        return node

    def visit_keyword(self, node):
        self.generic_visit(node)
        return None if node.arg in ("help", "description", "epilog", "desc") else node


def _meaning(path: Path) -> str:
    if path.suffix != ".py":
        return path.read_text(encoding="utf-8")
    return ast.dump(_Silence().visit(ast.parse(path.read_text(encoding="utf-8"))))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
