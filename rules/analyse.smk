# What the report rests on: the tables of all methods, and the direct check on one layer.

PRESENT = [(model, method) for model in STUDY["models"] for method in STUDY["methods"] if (model, method) not in ABSENT]


rule summarize:
    input:
        originals=expand(rules.evaluate_original.output.evaluation, model=STUDY["models"], dataset=STUDY["datasets"]),
        evaluations=[
            f"results/{model}/{method}/evaluation/{dataset}.json"
            for model, method in PRESENT
            for dataset in STUDY["datasets"]
        ],
        linears=[f"results/{model}/{method}/linears.csv" for model, method in PRESENT],
    output:
        summary=report("results/summary.csv", category="Summary", caption="../docs/captions/summary.rst"),
        comparisons=report("results/comparisons.csv", category="Summary", caption="../docs/captions/comparisons.rst"),
        linears="results/linears.csv",
        rounding="results/rounding_stats.csv",
    log:
        "results/logs/summarize.log",
    benchmark:
        "results/benchmarks/summarize.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        mem_mb=more(1000),
        runtime=more(20),
    params:
        comparison=CONFIG["comparison"],
        recipes={method: METHODS[method] for method in sorted(STUDY["methods"])},
        code=code("summarize.py"),
    script:
        "../workflow_scripts/summarize.py"


rule check_mse:
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        channels=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/channels.safetensors",
        calibration=f"results/{{model}}/calibration/{COMMON_CALIBRATION}/tokens.safetensors",
        tokens=f"results/{{model}}/datasets/{FIRST_DATASET}/tokens.safetensors",
    output:
        channels=report(
            "results/{model}/check_mse/channels.csv",
            category="Layer check",
            labels={"model": "{model}"},
            caption="../docs/captions/check_mse.rst",
        ),
        verdict="results/{model}/check_mse/linears.json",
    log:
        "results/logs/check_mse/{model}.log",
    benchmark:
        "results/benchmarks/check_mse/{model}.tsv"
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        gpu=1,
        mem_mb=more(2000),
        runtime=more(60),
    params:
        options=CONFIG["check_mse"],
        comparison=CONFIG["comparison"],
        linears=CONFIG["linears"],
        dataset=FIRST_DATASET,
        compute=COMPUTE,
        code=code("check_mse.py"),
    script:
        "../workflow_scripts/check_mse.py"
