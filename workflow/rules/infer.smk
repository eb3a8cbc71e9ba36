from deconvnet.systems import GROWING, SYSTEMS
from stages import infer

FOLDER, MODEL = f"data/scores/{SYSTEM}", f"data/models/{SYSTEM}.pt"
SPLITS = PARAMS.infer.splits
GROWTH = SYSTEM == GROWING
MOST = 8  # shards of a cluster's job: what one that is lost, or queued behind others, may cost


def wanted(shard):
    proposals = (
        None if SYSTEMS[SYSTEM].net == "fcn" else Path("data/proposals", shard.name)
    )
    return infer.fingerprint(shard, proposals, Path(MODEL), GROWTH, PARAMS)


@functools.cache
def deal():
    """(first, last) of the stale shards of each job: as many jobs as can work at once, which load the model once.

    A job makes what is stale between them when it starts, and so, started again, no shard twice.
    """
    found = [Path(path).stem for path in stale()]
    workers = workflow.nodes or GPUS or workflow.cores
    least = -(-len(found) // MOST) if workflow.nodes else 0
    jobs = min(max(workers, least), len(found))
    ends = [len(found) * number // max(jobs, 1) for number in range(jobs + 1)]
    return [(found[a], found[b - 1]) for a, b in zip(ends, ends[1:], strict=False)]


def shards(wildcards):
    names = [Path(path).stem for path in stale()]
    return [name for name in names if wildcards.first <= name <= wildcards.last]


def of(folder):
    return lambda wildcards: [f"{folder}/{name}.parquet" for name in shards(wildcards)]


# Snakemake would remove the shards of a job that fails, so it knows of this file alone.
DONE = f".snakemake/infer-{SYSTEM}-{{first}}-{{last}}"
TARGETS = lambda: [DONE.format(first=first, last=last) for first, last in deal()]


rule infer_shard:
    input:
        of("data/dataset"),
        of("data/proposals"),
        model=MODEL,
    output:
        touch(DONE),
    wildcard_constraints:
        first=r"(train|val|test)-\d+",
        last=r"(train|val|test)-\d+",
    threads: lambda _: max(1, workflow.cores // max(1, len(deal())))
    resources:
        gpu=min(GPUS, 1),
    params:
        shards=shards,
        growth="--growth" if GROWTH else "",
    shell:
        "python -m stages.infer --model {input.model} --dataset data/dataset --proposals data/proposals --out {FOLDER}"
        " --shards {params.shards} --threads {threads} {params.growth}"
