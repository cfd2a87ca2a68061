# Budgets: which of its candidates each linear gets, and a model put together from them.

candidates_of = lambda w: {method: METHODS[method] for method in CONFIG["candidates"][w.method]}
of_candidates = lambda file: lambda w: expand(
    f"results/{{{{model}}}}/{{method}}/{file}", method=CONFIG["candidates"][w.method]
)
# what a budget knows of the embedding, where that has a choice; and swaps of each candidate, where it asks for them
asked_by_budget = lambda w: {
    **(
        {"end_loss": f"results/{w.model}/{keys.statistics_files(METHODS[w.method])['end_loss']}"}
        if METHODS[w.method]["embeddings"]
        else {}
    ),
    **(
        {
            "swaps": [
                f"results/{w.model}/{method}/swaps-"
                + "{sections}x{sequences}.json".format(**METHODS[w.method]["swaps"])
                for method in CONFIG["candidates"][w.method]
            ]
        }
        if METHODS[w.method]["swaps"]
        else {}
    ),
}


rule measure_swaps:
    """What parts of the model from one candidate cost it by themselves, and all of it: KL on calibration text."""
    input:
        original=rules.convert.output.weights,
        original_config=rules.convert.output.config,
        model=rules.convert.output.record,
        weights=rules.quantize.output.weights,
        config=rules.quantize.output.config,
        record=rules.quantize.output.record,
        folds=rules.quantize.output.folds,
        tokens=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/tokens.safetensors",
    output:
        "results/{model}/{method}/swaps-{sections}x{sequences}.json",
    log:
        "results/logs/measure_swaps/{model}/{method}-{sections}x{sequences}.log",
    benchmark:
        "results/benchmarks/measure_swaps/{model}/{method}-{sections}x{sequences}.tsv"
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        recipe=lambda w: METHODS[w.method],
        compute=COMPUTE,
        code=code("measure_swaps.py"),
    script:
        "../workflow_scripts/measure_swaps.py"


rule choose_widths:
    """Which width each linear gets within a budget, for a recipe that then runs the model."""
    input:
        unpack(asked_by_budget),
        records=of_candidates("quantize.json"),
        tables=of_candidates("linears.csv"),
        checkpoints=of_candidates(f"checkpoint/{WEIGHTS}"),
        configs=of_candidates("checkpoint/config.json"),
        tokens=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/tokens.safetensors",
        moments=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/second_moments.safetensors",
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
    output:
        "results/{model}/{method}/widths.json",
    log:
        "results/logs/choose_widths/{model}/{method}.log",
    benchmark:
        "results/benchmarks/choose_widths/{model}/{method}.tsv"
    wildcard_constraints:
        method=MODEL_RECIPES,
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
    params:
        recipe=lambda w: METHODS[w.method],
        candidates=candidates_of,
        code=code("choose_widths.py"),
    script:
        "../workflow_scripts/choose_widths.py"


# another budget takes seconds: what it is put together from is there
rule quantize_budget:
    """A model within a budget: each linear from the candidate that the whole model suffers least by."""
    input:
        unpack(asked_by_budget),
        records=of_candidates("quantize.json"),
        tables=of_candidates("linears.csv"),
        checkpoints=of_candidates(f"checkpoint/{WEIGHTS}"),
        configs=of_candidates("checkpoint/config.json"),
        folds=of_candidates("folds.safetensors"),
        tokens=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/tokens.safetensors",
        moments=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/second_moments.safetensors",
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
    output:
        weights=f"results/{{model}}/{{method}}/checkpoint/{WEIGHTS}",
        config="results/{model}/{method}/checkpoint/config.json",
        record="results/{model}/{method}/quantize.json",
        folds="results/{model}/{method}/folds.safetensors",
    log:
        "results/logs/quantize_budget/{model}/{method}.log",
    benchmark:
        "results/benchmarks/quantize_budget/{model}/{method}.tsv"
    wildcard_constraints:
        method=BUDGETS,
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
    params:
        recipe=lambda w: METHODS[w.method],
        candidates=candidates_of,
        code=code("quantize_budget.py"),
    script:
        "../workflow_scripts/quantize_budget.py"
