"""What the claims compare: the paper's, by letter, and controls that it lacks."""

from dataclasses import dataclass

from experiment.claims.cells import REFERENCE, Claims

# What the paper says, by the letter of README.md's table.
SAID = {
    "a": "DeconvNet and FCN-8s complement each other: their ensemble is better than both (5.2; table 1).",
    "b": "A fully connected CRF adds about a point (5.3; table 1).",
    "c": "Two stages, objects alone first, make the training better (4.2).",
    "d": "Batch normalization is essential; without it the net ends in a poor local optimum (4.1).",
    "e": "More proposals make the prediction finer (5.1; figure 5).",
    "f": "Proposals handle objects of all sizes, where FCN is at a loss with small and large ones (1; figure 1).",
    "g": "Unpooling by switches and deconvolution bring out details of objects (3.2; figure 4).",
    "h": "Classes are balanced, windows are square boxes with a context of 1.2 (6.1; release). No claim: choices.",
}
CLAIMS = "abcdefg"  # those of SAID that the paper claims


@dataclass(frozen=True)
class Shown:
    """What is measured: a table of data/counts without its seed, a system and a region of it."""

    table: str
    system: str = "deconvnet"
    region: str = "all"


def region(name: str, sizes: list[int]) -> str:
    """A region of `deconvnet.regions.count` in words."""
    kind, _, number = name.partition(" ")
    if kind == "within":
        return f"within {number} px of a boundary"
    if kind in ("thin", "all"):
        return {"thin": "at thin parts", "all": "everywhere"}[kind]
    ends = [0, *sizes]
    upper = f" to {ends[int(number)]:,}" if int(number) < len(ends) else " and more"
    return f"objects of {ends[int(number) - 1]:,}{upper} px"


@dataclass(frozen=True)
class Comparison:
    letter: str
    name: str
    one: Shown
    other: Shown
    paper: float | None = None  # points, by the paper's table 1
    control: bool = False  # beside the claim: has a verdict, but no part in the claim's


def all_of(claims: Claims, norm: str, growth: list[int], proposals: int) -> list[Comparison]:
    """Every comparison. norm: the experiment's own of the CRF. growth, proposals: its numbers of proposals."""
    found = []

    def add(
        letter: str, name: str, one: Shown, other: Shown, paper: float | None = None, control: bool = False
    ) -> None:
        found.append(Comparison(letter, name, one, other, paper, control))

    def made(system: str, region: str = "all") -> Shown:
        return Shown("systems", system, region)

    def vary(letter: str, name: str, variant: str, control: bool = False, region: str = "all") -> None:
        if variant in claims.variants:
            add(letter, name, Shown(REFERENCE, region=region), Shown(variant, region=region), control=control)

    add("a", "EDeconvNet over FCN-8s", made("edeconvnet"), made("fcn8s"), 9.5)
    add("a", "EDeconvNet over DeconvNet", made("edeconvnet"), made("deconvnet"), 2.1)
    add("a", "two DeconvNets over one", made("pair"), made("deconvnet"), control=True)
    add("a", "EDeconvNet over two DeconvNets", made("edeconvnet"), made("pair"), control=True)
    add("a", "mean over product of scores", made("edeconvnet"), made("product"), control=True)

    numbers = {"deconvnet": ("DeconvNet", 0.9), "edeconvnet": ("EDeconvNet", 0.8), "fcn8s": ("FCN-8s", None)}
    for kind in (norm, "symmetric" if norm == "none" else "none"):
        for key, (name, paper) in numbers.items():
            control = kind != norm or paper is None
            add("b", f"CRF for {name}, normalization {kind}", made(f"{key}_crf_{kind}"), made(key),
                None if control else paper, control)  # fmt: skip

    vary("c", "both stages over stage 2 alone", "stage2_only")
    vary("c", "both stages over stage 1 alone", "stage1_only")

    vary("d", "with batch norm over without", "no_batch_norm")
    vary("d", "with batch norm over without, decoder started by He's rule", "no_batch_norm_he", control=True)
    vary("d", "batch norm as it is over that of 8 crops", "batch_norm_8", control=True)
    vary("d", "batch norm as it is over that of the batch", "batch_norm_all", control=True)
    add("d", "re-estimated statistics over those of training", made("deconvnet"), made("not_reestimated"), control=True)

    least, most = min(growth), max(growth)
    add("e", f"{most} proposals over {least}", made(f"deconvnet after {most}"), made(f"deconvnet after {least}"))
    middle = sorted(growth)[len(growth) // 2]
    if middle not in (least, most):
        add("e", f"{most} proposals over {middle}", made(f"deconvnet after {most}"), made(f"deconvnet after {middle}"),
        control=True)  # fmt: skip
    add("e", f"EdgeBoxes over random boxes, {proposals} of each", made("deconvnet"), made("random"), control=True)
    add("e", "maximum over average of windows", made("deconvnet"), made("average"), control=True)

    sizes = claims.measures.sizes
    for size in range(1, len(sizes) + 2):
        place = f"size {size}"
        add("f", f"DeconvNet over FCN-8s, {region(place, sizes)}", made("deconvnet", place), made("fcn8s", place),
            control=1 < size <= len(sizes))  # fmt: skip

    fine = (f"within {claims.measures.boundary[0]}", "thin")
    for place in (*fine, "all"):
        for variant in ("bilinear", "transposed"):
            vary("g", f"switches over {variant}, {region(place, sizes)}", variant, place == "all", place)
    for place in fine:
        add("g", f"DeconvNet over FCN-8s, {region(place, sizes)}", made("deconvnet", place), made("fcn8s", place),
            control=True)  # fmt: skip

    vary("h", "balanced classes over unbalanced", "unbalanced", control=True)
    vary("h", "square windows over plain", "plain_windows", control=True)
    vary("h", "context 1.2 over 1.0", "context_100", control=True)
    vary("h", "context 1.2 over 1.5", "context_150", control=True)
    return found
