RESULTS = {
    "model": "data/models/fcn8s.pt",
    "curves": "reports/train_fcn.csv",
    "metrics": "reports/train_fcn.json",
}


rule train_fcn:
    input:
        init="data/weights/encoder.pt",
        dataset=DATASET,
        crops="data/crops/stage1.parquet",
    output:
        **RESULTS,
    threads: workflow.cores
    resources:
        gpu=GPUS,
    params:
        python=python(PARAMS.train_fcn.run),
    shell:
        "{params.python} -m stages.train_fcn --init {input.init} --dataset {input.dataset} --crops {input.crops}"
        " --out {output.model} --checkpoints data/checkpoints/fcn8s --curves {output.curves}"
        " --metrics {output.metrics}"
