"""What the cells of the claims counted -> differences with intervals, verdicts, figures, a page of Markdown.

Into the folder of reports: claims.csv, a row a comparison; systems.csv, the mean IoU of everything compared;
claims.json, a verdict a claim; claims.md, which shows it all, with its figures in claims/.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from deconvnet.comparison import together
from deconvnet.errors import InputError
from deconvnet.files import whole
from experiment.claims import cells, comparisons, figures, page
from experiment.claims.comparisons import SAID, Shown
from experiment.claims.counts import Counts, Row, compare, levels
from experiment.cli import run
from experiment.params import Params


def verdicts(rows: list[Row]) -> dict[str, str]:
    """Of each claim, by its letter; controls have no part in it."""
    own = [row for row in rows if not row.asked.control]
    return {letter: together([row.verdict for row in own if row.asked.letter == letter])
            for letter in SAID if letter in comparisons.CLAIMS}  # fmt: skip


def draw(
    claims: cells.Claims, params: Params, counts: Counts, rows: list[Row], found: pd.DataFrame
) -> tuple[dict[str, bytes], dict[str, list[tuple[str, str]]]]:
    """The figures by file name, and by claim captions with the names of its figures."""
    files, captions = {"forest.svg": figures.forest(rows)}, {letter: [] for letter in SAID}
    shown = [Shown(*key) for key in found[["table", "system", "region"]].itertuples(index=False)]
    for letter in SAID:
        used = {each for row in rows if row.asked.letter == letter for each in (row.asked.one, row.asked.other)}
        if keep := [each in used for each in shown]:
            files[f"{letter}.svg"] = figures.dots(
                found[keep], [page.named(each, claims.measures.sizes) for each in shown if each in used]
            )
            captions[letter].append(("Mean IoU of what is compared.", f"{letter}.svg"))
    growth = {name: [(number, Shown("systems", f"{system} after {number}")) for number in params.infer.growth]
              for name, system in (("EdgeBoxes", "deconvnet"), ("random boxes", "random"),
                                   ("EdgeBoxes, average", "average"))}  # fmt: skip
    files["growth.svg"] = figures.lines(counts, growth, "proposals per image", True)
    captions["e"].append(("Mean IoU by the number of proposals, a thin line for each seed.", "growth.svg"))
    sides = [round(area**0.5) for area in (*claims.measures.sizes, 2 * claims.measures.sizes[-1])]
    sizes = {name: [(side, Shown("systems", system, f"size {size}")) for size, side in enumerate(sides, 1)]
             for name, system in (("DeconvNet", "deconvnet"), ("FCN-8s", "fcn8s"),
                                  ("EDeconvNet", "edeconvnet"))}  # fmt: skip
    files["sizes.svg"] = figures.lines(counts, sizes, "objects up to this side, px; the last point: all larger", False)
    captions["f"].append(("Mean IoU by the size of objects, a thin line for each seed.", "sizes.svg"))
    dataset = Path(claims.experiment) / "data/dataset"
    for number, row in enumerate(rows):
        fails = row.verdict == "does not hold" and not row.asked.control and row.found
        if fails and (picture := figures.why(counts, row.asked, dataset, params.evaluate.split)):
            files[name := f"why-{row.asked.letter}-{number}.png"] = picture
            caption = f"Where “{row.asked.name}” fails most (seed {claims.seeds[0]}): image, truth, labels of both."
            captions[row.asked.letter].append((caption, name))
    return files, captions


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.claims.report", description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, required=True, help="folder of experiment.claims.measure's tables")
    parser.add_argument("--reports", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    claims = cells.load()
    params = cells.variant(claims, cells.REFERENCE, claims.seeds[0])[0].params
    counts = Counts(options.counts, claims.seeds)
    if counts.rows(Shown(cells.REFERENCE)) is None:
        raise InputError(f"{options.counts}: {cells.REFERENCE} diverged; lower rates.tried in params.yaml")
    asked = comparisons.all_of(
        claims, params.crf.normalization, list(params.infer.growth), params.infer.deconvnet.proposals
    )
    rows = compare(counts, asked, claims.rule)
    found, said = levels(counts, [row.asked for row in rows], claims.rule.rounds), verdicts(rows)
    files, captions = draw(claims, params, counts, rows, found)
    seeds = len(claims.seeds)
    conditions = (
        f"Variants of the experiment `{Path(claims.experiment).resolve().name}`, each trained with {seeds} "
        f"seed{'s' * (seeds > 1)}, all from one encoder; {len(counts.rows(Shown(cells.REFERENCE))[0])} images of "
        f"{params.evaluate.split}, {len(params.dataset.classes)} classes.\n"
    )
    rates = json.loads(Path("data/rates.json").read_text())["tried"]
    text = page.write(claims, conditions, rows, said, found, captions, rates)
    table = pd.DataFrame(
        [{"claim": row.asked.letter, "comparison": row.asked.name, "control": row.asked.control,
          "paper": row.asked.paper, "difference": row.found and row.found.mean,
          "deviation": row.found and row.found.spread, "low": row.found and row.found.low,
          "high": row.found and row.found.high, "verdict": row.verdict} for row in rows]
    )  # fmt: skip
    with whole(options.reports) as folder:
        (folder / "claims").mkdir(parents=True)
        for name, data in files.items():
            (folder / "claims" / name).write_bytes(data)
        table.round(3).to_csv(folder / "claims.csv", index=False)
        found.to_csv(folder / "systems.csv", index=False)
        (folder / "claims.json").write_text(json.dumps({"verdicts": said}, indent=2) + "\n", encoding="utf-8")
        (folder / "claims.md").write_text(text, encoding="utf-8")
    print(*(f"({letter}) {each}" for letter, each in said.items()), options.reports / "claims.md", sep="\n")


if __name__ == "__main__":
    run(main)
