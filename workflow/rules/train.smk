INIT = {"stage1": "data/weights/encoder.pt", "stage2": "data/models/stage1.pt"}
RESULTS = {
    "model": f"data/models/{SYSTEM}.pt",
    "curves": f"reports/train_{SYSTEM}.csv",
    "metrics": f"reports/train_{SYSTEM}.json",
}


rule train:
    input:
        init=INIT[SYSTEM],
        dataset=DATASET,
        crops=f"data/crops/{SYSTEM}.parquet",
    output:
        **RESULTS,
    threads: workflow.cores
    resources:
        gpu=GPUS,
    params:
        python=python(getattr(PARAMS.train, SYSTEM)),
    shell:
        "{params.python} -m stages.train {SYSTEM} --init {input.init} --dataset {input.dataset} --crops {input.crops}"
        " --out {output.model} --checkpoints data/checkpoints/{SYSTEM} --curves {output.curves}"
        " --metrics {output.metrics}"
