# The "loud silence" benchmark: needs no model.


rule synthetic_benchmark:
    """AWQ's and PRAQ's choices on drawn data whose loud channels are silent after the activation."""
    output:
        trials=report("results/synthetic.csv", category="Synthetic benchmark", caption="../docs/captions/synthetic.rst"),
        summary="results/synthetic.json",
    log:
        "results/logs/synthetic_benchmark.log",
    benchmark:
        "results/benchmarks/synthetic_benchmark.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        options=CONFIG["synthetic"],
        praq=PRAQ_PARAMETERS,
        comparison=COMPARISON,
        code=code("synthetic_benchmark.py"),
    script:
        "../workflow_scripts/synthetic_benchmark.py"


rule plot_synthetic:
    """The figure of the synthetic benchmark."""
    input:
        rules.synthetic_benchmark.output.summary,
    output:
        "results/figures/synthetic.svg",
    log:
        "results/logs/plot_synthetic.log",
    benchmark:
        "results/benchmarks/plot_synthetic.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        code=code("plot_synthetic.py"),
    script:
        "../workflow_scripts/plot_synthetic.py"
