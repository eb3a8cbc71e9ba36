from stages import ensemble

FOLDER = "data/scores/edeconvnet"
MEMBERS = ["deconvnet", "fcn8s"]
SPLITS = load(list[str], "infer.splits")
PARAMS = load(ensemble.Params, "ensemble")
CLASSES = len(load(list[str], "dataset.classes"))


def wanted(shard):
    members = [Path("data/scores", member, shard.name) for member in MEMBERS]
    return ensemble.fingerprint(members, CLASSES, PARAMS)


rule ensemble_shard:
    input:
        dataset="data/dataset/{shard}.parquet",
        members=[f"data/scores/{member}/{{shard}}.parquet" for member in MEMBERS],
    output:
        f"{FOLDER}/{{shard}}.parquet",
    shell:
        "python -m stages.ensemble --dataset {input.dataset} --members {input.members} --out {output}"
