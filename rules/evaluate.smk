# Perplexity, KL divergence and agreement: the original first, since it leaves the hidden states whose distributions are compared with.


# made only where compute.shards is more than 1, as is evaluate_shard
rule evaluate_original_shard:
    """The unquantised model's NLL on a part of a data set, and its hidden states there."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_dataset.output[0],
    output:
        evaluation=temp("results/{model}/original/evaluation/{dataset}/{shard}-of-{shards}.json"),
        reference=temp("results/{model}/original/evaluation/{dataset}/{shard}-of-{shards}.safetensors"),
    log:
        "results/logs/evaluate_original_shard/{model}/{dataset}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/evaluate_original_shard/{model}/{dataset}/{shard}-of-{shards}.tsv"
    priority: 2
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        dataset=lambda w: CONFIG["datasets"][w.dataset],
        compute=COMPUTE,
        code=code("evaluate_original_shard.py"),
    script:
        "../workflow_scripts/evaluate_original_shard.py"


rule evaluate_original:
    """The unquantised model's NLL on a data set, and the hidden states whose distributions KL compares with."""
    input:
        parts=in_shards(rules.evaluate_original_shard.output.evaluation),
        references=in_shards(rules.evaluate_original_shard.output.reference),
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
        gpu=GPU_IF_WHOLE,
    params:
        dataset=lambda w: CONFIG["datasets"][w.dataset],
        compute=COMPUTE,
        implausible=CONFIG["original"]["implausible"],
        code=code("evaluate_original.py"),
    script:
        "../workflow_scripts/evaluate_original.py"


rule evaluate_shard:
    """A method's NLL, KL divergence and agreement with the original on a part of a data set."""
    input:
        unpack(gguf_of),
        weights=rules.quantize.output.weights,
        config=rules.quantize.output.config,
        record=rules.quantize.output.record,
        model=rules.convert.output.record,
        original=rules.convert.output.config,
        original_weights=rules.convert.output.weights,
        tokens=rules.tokenize_dataset.output[0],
        reference=rules.evaluate_original.output.reference,
    output:
        temp("results/{model}/{method}/evaluation/{dataset}/{shard}-of-{shards}.json"),
    log:
        "results/logs/evaluate_shard/{model}/{method}/{dataset}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/evaluate_shard/{model}/{method}/{dataset}/{shard}-of-{shards}.tsv"
    priority: 3
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
        code=code("evaluate_shard.py"),
    script:
        "../workflow_scripts/evaluate_shard.py"


rule evaluate:
    """A method's NLL, KL divergence and agreement with the original on a data set."""
    input:
        unpack(gguf_of),
        parts=in_shards(rules.evaluate_shard.output[0]),
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
    threads: PAIRED_THREADS
    resources:
        **NEEDS,
        gpu=GPU_IF_WHOLE,
    params:
        dataset=lambda w: CONFIG["datasets"][w.dataset],
        compute=COMPUTE,
        recipe=lambda w: METHODS[w.method],
        code=code("evaluate.py"),
    script:
        "../workflow_scripts/evaluate.py"
