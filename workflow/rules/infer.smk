from deconvnet.systems import GROWING, SYSTEMS
from stages import infer

FOLDER, MODEL = f"data/scores/{SYSTEM}", f"data/models/{SYSTEM}.pt"
SPLITS = PARAMS.infer.splits
GROWTH = SYSTEM == GROWING


def wanted(shard):
    proposals = (
        None if SYSTEMS[SYSTEM].net == "fcn" else Path("data/proposals", shard.name)
    )
    return infer.fingerprint(shard, proposals, Path(MODEL), GROWTH, PARAMS)


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
