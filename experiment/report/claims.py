"""The paper's claims, held against our numbers."""

import pandas as pd

from deconvnet.systems import FINAL
from experiment.report.numbers import gain, points
from experiment.report.paper import GAINS, SIZES_CLAIMED

VERDICTS = {  # one claim, several claims
    "holds": ("holds", "hold"),
    "holds in sign only": ("holds in sign only", "hold in sign only"),
    "fails": ("fails", "fail"),
    "not tested": ("is not tested", "are not tested"),
}
COMPARED = {  # whose mean IoU a claim sets against whose, where intervals.csv has the difference
    "a": (("edeconvnet", "fcn8s"), ("edeconvnet", "deconvnet")),
    "b": (("deconvnet_crf", "deconvnet"), ("edeconvnet_crf", "edeconvnet")),
    "c": (("deconvnet", "stage1"),),
}
# What one run shows no more than in part: stage 1 alone has fewer steps, and FCN-8s differs in more than unpooling.
IN_PART = "cg"


def gains(metrics: dict, growth: pd.DataFrame, boundary: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Gains in points that each claim rests on, by the claim's letter and what is compared. All have to be above 0."""

    def over(system: str, other: str, metric: str = "mean_iou") -> float | None:
        return gain(points(metrics[system][metric]), points(metrics[other][metric]))

    narrow = boundary.iloc[0]
    return {
        "a": {name: over("edeconvnet", name) for name in ("fcn8s", "deconvnet")}
        | {f"final over {name}": over(FINAL, name) for name in ("fcn8s", "deconvnet")},
        "b": {name: over(f"{name}_crf", name) for name in ("deconvnet", "edeconvnet")},
        "c": {"deconvnet": over("deconvnet", "stage1")},
        "d": {},  # needs a training without batch norm
        "e": {"last": gain(points(growth["mean_iou"].iloc[-1]), points(growth["mean_iou"].iloc[0]))},
        "f": {size: over("deconvnet", "fcn8s", size) for size in ("small", "large")},
        "g": {"narrowest": gain(points(narrow["deconvnet"]), points(narrow["fcn8s"]))},
    }


def lowest(letter: str, intervals: pd.DataFrame) -> float:
    """The lowest end of the 95 % intervals of a claim's differences (intervals.csv); infinity where it has none."""
    ends = {(row.system, row.minus): row.low for row in intervals.itertuples()}
    return min((ends[pair] for pair in COMPARED.get(letter, ())), default=float("inf"))


def verdict(letter: str, own: dict[str, float | None], low: float = float("inf")) -> str:
    """One of VERDICTS for a claim's gains; low: of `lowest`.

    holds: all are above 0, and so are their intervals; each that the paper gives a number for is at least half of it,
    and where the claim itself states a size ("about a point"), at most twice. holds in sign only: all are above 0.
    Claims of IN_PART can fail, and no more.
    """
    if not own or None in own.values():
        return "not tested"
    if min(own.values()) <= 0:
        return "fails"
    if letter in IN_PART:
        return "not tested"
    for name, paper in GAINS.get(letter, {}).items():
        if own[name] < paper / 2 or letter in SIZES_CLAIMED and own[name] > 2 * paper:
            return "holds in sign only"
    return "holds" if low > 0 else "holds in sign only"


def tally(verdicts: dict[str, str]) -> str:
    """The verdicts counted, as a sentence."""
    counts = {name: list(verdicts.values()).count(name) for name in VERDICTS}
    parts = [f"{count} {VERDICTS[name][count > 1]}" for name, count in counts.items() if count]
    return f"Of {len(verdicts)} claims of the paper, {', '.join(parts)}."
