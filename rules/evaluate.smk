# Perplexity, KL divergence and agreement: the original first, since it leaves the hidden states whose distributions are compared with.


rule evaluate_original:
    """The unquantised model's NLL on a data set, and the hidden states whose distributions KL compares with."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_dataset.output[0],
    output:
        evaluation="results/{model}/original/evaluation/{dataset}.json",
        reference="results/{model}/original/evaluation/{dataset}.reference.safetensors",
    log:
        "results/logs/evaluate_original/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/evaluate_original/{model}/{dataset}.tsv"
    priority: 2  # every method's evaluation waits for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        dataset=lambda w: CONFIG["datasets"][w.dataset],
        compute=COMPUTE,
        implausible=CONFIG["original"]["implausible"],
        code=code("evaluate_original.py"),
    script:
        "../workflow_scripts/evaluate_original.py"


rule evaluate:
    """A method's NLL, KL divergence and agreement with the original on a data set."""
    input:
        weights=rules.quantize.output.weights,
        config=rules.quantize.output.config,
        record=rules.quantize.output.record,
        model=rules.convert.output.record,
        original=rules.convert.output.config,
        original_weights=rules.convert.output.weights,
        tokens=rules.tokenize_dataset.output[0],
        reference=rules.evaluate_original.output.reference,
    output:
        "results/{model}/{method}/evaluation/{dataset}.json",
    log:
        "results/logs/evaluate/{model}/{method}/{dataset}.log",
    benchmark:
        "results/benchmarks/evaluate/{model}/{method}/{dataset}.tsv"
    priority: 3  # a finished method is measured before the next one starts
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        dataset=lambda w: CONFIG["datasets"][w.dataset],
        compute=COMPUTE,
        recipe=lambda w: METHODS[w.method],
        code=code("evaluate.py"),
    script:
        "../workflow_scripts/evaluate.py"
