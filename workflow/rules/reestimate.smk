RESULTS = {"model": "data/models/deconvnet.pt"}


rule reestimate:
    input:
        model="data/models/stage2.pt",
        dataset=DATASET,
        crops="data/crops/stage2.parquet",
    output:
        **RESULTS,
    threads: workflow.cores
    resources:
        gpu=min(GPUS, 1),
    shell:
        "python -m stages.reestimate --model {input.model} --dataset {input.dataset} --crops {input.crops}"
        " --out {output.model}"
