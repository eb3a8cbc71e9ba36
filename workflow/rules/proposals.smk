from stages import proposals
from stages.config import load

EDGE_MODEL = load(str, "fetch.edge_model.file")


rule proposals_shard:
    input:
        dataset="data/dataset/{shard}.parquet",
        edge_model=EDGE_MODEL,
    output:
        "data/proposals/{shard}.parquet",
    shell:
        "python -m stages.proposals shard --dataset {input.dataset} --edge-model {input.edge_model} --out {output}"


def stale_proposals(_):
    params = load(proposals.Params, "proposals")
    return stale(
        "data/proposals",
        lambda shard: proposals.fingerprint(shard, Path(EDGE_MODEL), params),
    )


rule proposals:
    input:
        stale_proposals,
    output:
        metrics="reports/proposals.json",
        plot="reports/proposals.csv",
    localrule: True
    shell:
        "python -m stages.proposals recall --dataset data/dataset --proposals data/proposals"
        " --metrics {output.metrics} --plot {output.plot}"
