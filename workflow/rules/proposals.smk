from stages import proposals

EDGE_MODEL = PARAMS.fetch.edge_model.file
FOLDER, SPLITS = "data/proposals", ["train", "val", "test"]
RESULTS = {"metrics": "reports/proposals.json", "plot": "reports/proposals.csv"}


def wanted(shard):
    return proposals.fingerprint(shard, Path(EDGE_MODEL), PARAMS.proposals)


rule proposals:
    input:
        lambda _: stale(),
    output:
        **RESULTS,
    localrule: True
    shell:
        "python -m stages.proposals recall --dataset data/dataset --proposals data/proposals"
        " --metrics {output.metrics} --plot {output.plot}"


rule proposals_shard:
    input:
        dataset="data/dataset/{shard}.parquet",
        edge_model=EDGE_MODEL,
    output:
        "data/proposals/{shard}.parquet",
    shell:
        "python -m stages.proposals shard --dataset {input.dataset} --edge-model {input.edge_model} --out {output}"
