"""The paper's claims, held against our numbers."""

import pandas as pd

from deconvnet.systems import FINAL
from experiment.report.numbers import gain, points
from experiment.report.paper import GAINS, SIZES_CLAIMED

VERDICTS = {  # one claim, several claims
    "holds": ("holds", "hold"),
    "holds in sign": ("holds in sign only", "hold in sign only"),
    "fails": ("fails", "fail"),
    "not measured": ("is not measured", "are not measured"),
}


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
        "e": {"last": gain(points(growth["mean_iou"].iloc[-1]), points(growth["mean_iou"].iloc[0]))},
        "f": {size: over("deconvnet", "fcn8s", size) for size in ("small", "large")},
        "g": {"narrowest": gain(points(narrow["deconvnet"]), points(narrow["fcn8s"]))},
    }


def verdict(letter: str, own: dict[str, float | None]) -> str:
    """One of VERDICTS for a claim's gains.

    holds: all are above 0, and each that the paper gives a number for is at least half of it; where the claim itself
    states a size ("about a point"), also at most twice. holds in sign: all are above 0.
    """
    if None in own.values():
        return "not measured"
    if min(own.values()) <= 0:
        return "fails"
    for name, paper in GAINS.get(letter, {}).items():
        if own[name] < paper / 2 or letter in SIZES_CLAIMED and own[name] > 2 * paper:
            return "holds in sign"
    return "holds"


def tally(verdicts: dict[str, str]) -> str:
    """The verdicts counted, as a sentence."""
    counts = {name: list(verdicts.values()).count(name) for name in VERDICTS}
    parts = [f"{count} {VERDICTS[name][count > 1]}" for name, count in counts.items() if count]
    return f"Of {len(verdicts)} claims of the paper, {', '.join(parts)}."
