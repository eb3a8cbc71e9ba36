"""The systems that are compared, named in one place.

Evaluation, report and workflow follow from this table. A new system is a row here and, since DVC cannot import it, a
name in the lists of `dvc.yaml`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A way to label an image.

    net: kind of its network ("deconvnet", "fcn"), or None where it comes from other systems. members: the systems that
    it puts together. crf: the system whose scores a dense CRF refines. shown: its labels appear in the report's
    galleries.
    """

    name: str  # as the paper writes it
    net: str | None = None
    members: tuple[str, ...] = ()
    crf: str | None = None
    shown: bool = False

    @property
    def has_scores(self) -> bool:
        """Class scores are kept (data/scores/KEY), not labels alone (data/labels/KEY)."""
        return self.crf is None

    def folder(self, key: str) -> str:
        """Where its shards lie in an experiment."""
        return f"data/{'scores' if self.has_scores else 'labels'}/{key}"


# In the order of tables. A key names the model file, the folders of scores and labels, and the columns of reports.
SYSTEMS = {
    "stage1": System("DeconvNet, stage 1 only", net="deconvnet"),
    "fcn8s": System("FCN-8s", net="fcn", shown=True),
    "deconvnet": System("DeconvNet", net="deconvnet", shown=True),
    "edeconvnet": System("EDeconvNet", members=("deconvnet", "fcn8s"), shown=True),
    "fcn8s_crf": System("FCN-8s+CRF", crf="fcn8s"),
    "deconvnet_crf": System("DeconvNet+CRF", crf="deconvnet"),
    "edeconvnet_crf": System("EDeconvNet+CRF", crf="edeconvnet", shown=True),
}
FINAL = "edeconvnet_crf"  # the paper's final system
GROWING = "deconvnet"  # the system whose labels are kept after 1, 5, 10, ... proposals
