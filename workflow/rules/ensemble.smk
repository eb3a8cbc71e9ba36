from deconvnet.systems import SYSTEMS
from stages import ensemble

FOLDER = f"data/scores/{SYSTEM}"
MEMBERS = SYSTEMS[SYSTEM].members
SPLITS = PARAMS.infer.splits
CLASSES = len(PARAMS.dataset.classes)


def wanted(shard):
    members = [Path("data/scores", member, shard.name) for member in MEMBERS]
    return ensemble.fingerprint(members, CLASSES, PARAMS.ensemble)


rule ensemble_shard:
    input:
        dataset="data/dataset/{shard}.parquet",
        members=[f"data/scores/{member}/{{shard}}.parquet" for member in MEMBERS],
    output:
        f"{FOLDER}/{{shard}}.parquet",
    shell:
        "python -m stages.ensemble --dataset {input.dataset} --members {input.members} --out {output}"
