"""Documents say what is so: links lead somewhere, names in tables exist, the drawn DAG is DVC's."""

import importlib
import re
from pathlib import Path

import networkx
import pytest

from tests.pipeline import call, git

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")])
ARCHITECTURE = (REPOSITORY / "docs/architecture.md").read_text()


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_the_index_names_every_page():
    index = (REPOSITORY / "docs/README.md").read_text()
    assert {f"({page.name})" for page in (REPOSITORY / "docs").glob("*.md")} - {"(README.md)"} == set(
        re.findall(r"\([\w-]+\.md\)", index)
    )


def test_the_paper_s_parts_are_where_the_table_says():
    section = ARCHITECTURE.partition("## From the paper to the code")[2].partition("\n## ")[0]
    rows = [line.split("|")[3] for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    for row in rows:
        for names, file in re.findall(r"((?:`\w+`(?:, )?)+) in `([\w/.]+)`", row):
            module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
            for name in re.findall(r"\w+", names):
                assert hasattr(module, name), f"{name} in {file}"
        for file in re.findall(r"`([\w/]+\.\w+)`", row):
            assert (REPOSITORY / file).is_file(), file


def test_tables_have_the_columns_that_the_document_names():
    from deconvnet import crops, proposals, scores, voc
    from stages import evaluate

    schemas = {
        "data/dataset/": voc.SCHEMA, "data/proposals/": proposals.SCHEMA, "data/crops/": crops.SCHEMA,
        "data/scores/": scores.SCHEMA, "data/labels/": scores.LABELS_SCHEMA, "data/evaluation/": evaluate.SCHEMA,
    }  # fmt: skip
    section = ARCHITECTURE.partition("## Tables")[2].partition("\n## ")[0]
    for folder, schema in schemas.items():
        row = next(line for line in section.splitlines() if line.startswith(f"| `{folder}"))
        named = re.findall(r"`(\w+)`", row.split("|")[3])
        hidden = {"best", "drops", "deepest"} if folder == "data/scores/" else set()  # "the scores"
        assert named == [name for name in schema.names if name not in hidden], folder


def test_the_dag_is_dvc_s(tmp_path):
    """`dvc dag`, without the arrows that follow from others."""
    git(tmp_path, "init", "-q")
    assert call(tmp_path, "dvc", "init", "-q").returncode == 0
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    shown = call(tmp_path, "dvc", "dag", "--mermaid", "--collapse-foreach-matrix").stdout
    names = dict(re.findall(r'(node\d+)\["(.*?)"\]', shown))
    graph = networkx.DiGraph([(names[a], names[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", shown)])
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", ARCHITECTURE, re.M))
    assert drawn == set(networkx.transitive_reduction(graph).edges)
