from stages import crf

FOLDER, SCORES = f"data/labels/{SYSTEM}_crf", f"data/scores/{SYSTEM}"
SPLITS = PARAMS.infer.splits
CLASSES = len(PARAMS.dataset.classes)


def wanted(shard):
    return crf.fingerprint(shard, Path(SCORES, shard.name), CLASSES, PARAMS.crf)


rule crf_shard:
    input:
        dataset="data/dataset/{shard}.parquet",
        scores=f"{SCORES}/{{shard}}.parquet",
    output:
        f"{FOLDER}/{{shard}}.parquet",
    threads: share
    shell:
        "python -m stages.crf --dataset {input.dataset} --scores {input.scores} --out {output} --processes {threads}"
