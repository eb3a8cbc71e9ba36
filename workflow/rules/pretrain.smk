VGG16 = PARAMS.fetch.vgg16.file
RESULTS = {
    "model": "data/weights/encoder.pt",
    "curves": "reports/pretrain.csv",
    "metrics": "reports/pretrain.json",
}


rule pretrain:
    input:
        vgg16=VGG16,
        dataset=DATASET,
        crops="data/crops/stage1.parquet",
    output:
        **RESULTS,
    threads: workflow.cores
    resources:
        gpu=GPUS,
    params:
        python=python(PARAMS.pretrain.run),
    shell:
        "{params.python} -m stages.pretrain --vgg16 {input.vgg16} --dataset {input.dataset} --crops {input.crops}"
        " --out {output.model} --checkpoints data/checkpoints/pretrain --curves {output.curves}"
        " --metrics {output.metrics}"
