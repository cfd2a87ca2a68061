# One job a method: weights and the statistics its recipe reads in, a checkpoint that plain transformers loads out.

# files of the calibration set that a method's recipe reads
calibration_inputs = lambda w: {
    name: f"results/{w.model}/{file}" for name, file in keys.calibration_files(METHODS[w.method]).items()
}
# a method that needs no statistics is quantised and measured while they are not there yet
reads_statistics = lambda w: bool(keys.statistics_files(METHODS[w.method]))


# made only where compute.shards is more than 1
rule quantize_shard:
    """Some of a model's blocks quantised by one recipe."""
    input:
        unpack(calibration_inputs),
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
    output:
        weights=temp("results/{model}/{method}/shards/{shard}-of-{shards}.safetensors"),
        folds=temp("results/{model}/{method}/shards/{shard}-of-{shards}.folds.safetensors"),
        record=temp("results/{model}/{method}/shards/{shard}-of-{shards}.json"),
    log:
        "results/logs/quantize_shard/{model}/{method}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/quantize_shard/{model}/{method}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        method=RECIPES,
    priority: lambda wildcards, rulename: (not reads_statistics(wildcards)) + LONGEST_FIRST(wildcards, rulename)
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        recipe=lambda w: METHODS[w.method],
        linears=lambda w: CONFIG["linears"] if reads_statistics(w) else None,
        device=COMPUTE["device"],
        code=lambda w: code("quantize_shard.py", modules=choices.modules(METHODS[w.method])),
    script:
        "../workflow_scripts/quantize_shard.py"


PART_FILES = {"part_weights": "safetensors", "part_folds": "folds.safetensors", "part_records": "json"}


rule quantize:
    """A model quantised by one recipe: its checkpoint."""
    input:
        unpack(
            lambda w: (
                {
                    name: in_shards(f"results/{w.model}/{w.method}/shards/{{shard}}-of-{{shards}}.{ending}")
                    for name, ending in PART_FILES.items()
                }
                if splits(w.method)
                else {}
            )
        ),
        unpack(calibration_inputs),
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
    output:
        weights=f"results/{{model}}/{{method}}/checkpoint/{WEIGHTS}",
        config="results/{model}/{method}/checkpoint/config.json",
        record="results/{model}/{method}/quantize.json",
        folds="results/{model}/{method}/folds.safetensors",
    log:
        "results/logs/quantize/{model}/{method}.log",
    benchmark:
        "results/benchmarks/quantize/{model}/{method}.tsv"
    wildcard_constraints:
        method=RECIPES,
    priority: lambda wildcards, rulename: (not reads_statistics(wildcards)) + LONGEST_FIRST(wildcards, rulename)
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=lambda w: 0 if splits(w.method) else GPU(w),
    params:
        recipe=lambda w: METHODS[w.method],
        linears=lambda w: CONFIG["linears"] if reads_statistics(w) else None,
        device=COMPUTE["device"],
        code=lambda w: code("quantize.py", modules=choices.modules(METHODS[w.method])),
    script:
        "../workflow_scripts/quantize.py"


rule quantize_with_model:
    """A model quantised by a recipe that runs it: sequential inputs, or tuning."""
    input:
        unpack(calibration_inputs),
        unpack(lambda w: {"widths": f"results/{w.model}/{w.method}/widths.json"} if METHODS[w.method]["budget"] else {}),
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
    output:
        weights=f"results/{{model}}/{{method}}/checkpoint/{WEIGHTS}",
        config="results/{model}/{method}/checkpoint/config.json",
        record="results/{model}/{method}/quantize.json",
        folds="results/{model}/{method}/folds.safetensors",
    log:
        "results/logs/quantize_with_model/{model}/{method}.log",
    benchmark:
        "results/benchmarks/quantize_with_model/{model}/{method}.tsv"
    wildcard_constraints:
        method=MODEL_RECIPES,
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        recipe=lambda w: METHODS[w.method],
        linears=CONFIG["linears"],
        spec=lambda w: CALIBRATION | {key: METHODS[w.method][key] for key in ("n_calib", "seed")},
        compute=COMPUTE,
        code=lambda w: code("quantize_with_model.py", modules=choices.modules(METHODS[w.method])),
    script:
        "../workflow_scripts/quantize_with_model.py"


rule measure_error:
    """The exact error of each of a method's linears on the calibration text."""
    input:
        # where a method of the study reads it
        **({"end_loss": f"results/{{model}}/{END_LOSS}"} if END_LOSS else {}),
        original=rules.convert.output.weights,
        weights=rules.quantize.output.weights,
        config=rules.quantize.output.config,
        record=rules.quantize.output.record,
        folds=rules.quantize.output.folds,
        model=rules.convert.output.record,
        tokens=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/tokens.safetensors",
        moments=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/second_moments.safetensors",
    output:
        report(
            "results/{model}/{method}/linears.csv",
            category="Linears",
            labels={"model": "{model}", "method": "{method}"},
            caption="../docs/captions/linears.rst",
        ),
    log:
        "results/logs/measure_error/{model}/{method}.log",
    benchmark:
        "results/benchmarks/measure_error/{model}/{method}.tsv"
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        recipe=lambda w: METHODS[w.method],
        linears=CONFIG["linears"],
        device=COMPUTE["device"],
        code=code("measure_error.py"),
    script:
        "../workflow_scripts/measure_error.py"
