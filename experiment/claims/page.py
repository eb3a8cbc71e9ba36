"""The claims' page in Markdown."""

import pandas as pd

from deconvnet import cost
from deconvnet.systems import SYSTEMS
from experiment.check import trainings
from experiment.claims import cells
from experiment.claims.comparisons import SAID, Shown, region
from experiment.claims.counts import Row
from experiment.report.numbers import percent
from experiment.report.numbers import signed as number_signed


def signed(value: float) -> str:
    return number_signed(round(value, 1) + 0.0)  # no -0.0


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows]) + "\n"


# Systems of one seed's nets beside those of the DAG.
OTHERS = {
    "product": "EDeconvNet by the product of scores", "pair": "two DeconvNets", "random": "DeconvNet on random boxes",
    "average": "DeconvNet, average of windows", "not_reestimated": "DeconvNet, statistics of the training",
}  # fmt: skip


def named(shown: Shown, sizes: list[int]) -> str:
    """What is shown in words. sizes: px, where one size of objects ends and the next begins."""
    if shown.table != "systems":
        name = f"DeconvNet, {shown.table.replace('_', ' ')}"
    else:
        key, _, number = shown.system.partition(" after ")
        key, crf, norm = key.partition("_crf_")
        name = (SYSTEMS[key].name if key in SYSTEMS else OTHERS[key]) + (f"+CRF, normalization {norm}" if crf else "")
        name += f" after {number} proposal{'s' * (number != '1')}" if number else ""
    return name + ("" if shown.region == "all" else f", {region(shown.region, sizes)}")


def comparison(row: Row) -> list[str]:
    """A comparison's line: name, difference, interval, seeds, paper, verdict."""
    name, paper = row.asked.name + " *" * row.asked.control, row.asked.paper
    last = ["" if paper is None else signed(paper), row.verdict]
    if row.found is None:
        return [name, "diverged", "", "", *last]
    spread = f" ± {row.found.spread:.1f}" if len(row.found.seeds) > 1 else ""
    interval = f"{signed(row.found.low)} to {signed(row.found.high)}"
    return [name, signed(row.found.mean) + spread, interval, " ".join(map(signed, row.found.seeds)), *last]


def costs(claims: cells.Claims) -> str:
    """What each variant is trained with, and what a crop costs."""
    rows = []
    for name, changes in claims.variants.items():
        params = cells.variant(claims, name, claims.seeds[0])[0].params
        steps = sum(getattr(params.train, stage).steps for stage in changes.get("trained", ["stage1", "stage2"]))
        plan, spec, size = trainings(params)["train_stage2"]
        found = cost.count(plan, spec, size, "cpu")
        rows.append([name, f"{steps:,}", str(plan.batch), f"{plan.lr:g}", f"{found.parameters / 1e6:.2f} M",
                     f"{found.step.flops / plan.batch / 1e9:.2f} GFLOP"])  # fmt: skip
    return table(["variant", "steps", "crops a step", "learning rate", "parameters", "a crop in training"], rows)


def write(
    claims: cells.Claims, conditions: str, rows: list[Row], verdicts: dict[str, str], levels: pd.DataFrame,
    pictures: dict[str, list[tuple[str, str]]], rates: list[dict],
) -> str:  # fmt: skip
    """The page. pictures: by letter, captions and the names of files in claims/."""
    text = [
        "# The paper's claims, tested\n",
        "Made by `make claims` (claims/dvc.yaml), not by hand.\n",
        conditions,
        "A difference is the mean over the seeds, in points of mean IoU, ± the standard deviation over the seeds. The "
        "95 % interval is the bootstrap's over images, the same images for both sides; it says nothing about seeds.\n",
        "The rule, stated before anything ran: a comparison **holds** if its interval lies above 0 and every seed's "
        f"difference does; it **does not hold** if the interval ends below {claims.rule.margin:g} points, the least "
        "gain worth the name; else it is **undecided**. A claim holds if all its comparisons hold. A * marks a "
        "control, which has no part in the claim's verdict.\n",
        table(["claim", "what the paper says", "verdict"],
              [[f"({letter})", SAID[letter], f"**{found}**"] for letter, found in verdicts.items()]),
        "![All differences](claims/forest.svg)\n",
    ]  # fmt: skip
    header = ["comparison", "difference", "95 % interval", "seeds", "paper", "verdict"]
    for letter, said in SAID.items():
        if own := [comparison(row) for row in rows if row.asked.letter == letter]:
            text += [f"## ({letter}) {said}\n", table(header, own)]
            text += [f"{caption}\n\n![{caption}](claims/{name})\n" for caption, name in pictures[letter]]
    tried = pd.DataFrame(rates).pivot(index="lr", columns="variant", values="held_out_mean_iou")
    shown = [[f"{lr:g}", *("diverged" if pd.isna(value) else percent(value) for value in row)]
             for lr, row in zip(tried.index, tried[list(claims.rates.variants)].to_numpy(), strict=True)]  # fmt: skip
    text += [
        "## What was trained\n", costs(claims),
        "Rates tried for stage 2 alone: mean IoU in % of held-out crops. Each variant took its best (of equal ones "
        f"that with the lower loss), the others took that of {cells.REFERENCE}.\n",
        table(["learning rate", *claims.rates.variants], shown),
        "## Mean IoU of everything compared, in %\n",
        table(["what", "mean over seeds", "95 % interval", "seeds"], [
            [named(Shown(row.table, row.system, row.region), claims.measures.sizes),
             f"{row.mean_iou:.1f}" + (f" ± {row.deviation:.1f}" if row.deviation == row.deviation else ""),
             f"{row.low:.1f} to {row.high:.1f}", row.seeds] for row in levels.itertuples()]),
    ]  # fmt: skip
    return "\n".join(text)
