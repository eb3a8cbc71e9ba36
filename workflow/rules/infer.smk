from stages import infer

FOLDER, MODEL = f"data/scores/{SYSTEM}", f"data/models/{SYSTEM}.pt"
PARAMS, FRAME = load(infer.Params, "infer"), checked(infer.frame)
SPLITS = PARAMS.splits
GROWTH = SYSTEM == "deconvnet"


def wanted(shard):
    proposals = None if SYSTEM == "fcn8s" else Path("data/proposals", shard.name)
    return infer.fingerprint(shard, proposals, Path(MODEL), GROWTH, PARAMS, FRAME)


rule infer_shard:
    input:
        model=MODEL,
        dataset="data/dataset/{shard}.parquet",
        proposals="data/proposals/{shard}.parquet",
    output:
        f"{FOLDER}/{{shard}}.parquet",
    threads: share
    resources:
        gpu=min(GPUS, 1),
    params:
        growth="--growth" if GROWTH else "",
    shell:
        "python -m stages.infer --model {input.model} --dataset {input.dataset} --proposals {input.proposals}"
        " --out {output} --threads {threads} {params.growth}"
