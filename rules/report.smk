# Figures, then one self-contained page.

CHECKS = [] if CONFIG["check_mse"]["layer"] is None else STUDY["models"]
# the methods of each sweep that the study runs
SWEEPS = {
    family: members
    for family, members in CONFIG["families"].items()
    if set(members) <= set(STUDY["methods"]) - {method for _, method in ABSENT}
}
FIGURES = [
    *expand(
        "{model}/{dataset}/{figure}",
        model=STUDY["models"],
        dataset=STUDY["datasets"],
        figure=["perplexity_bits", "delta_nll", "pairs", *map("sweep-{}".format, SWEEPS)],
    ),
    *expand("{model}/{figure}", model=STUDY["models"], figure=["error_by_layer", "error_by_kind", "alpha_by_layer"]),
    *expand("{model}/check_mse", model=CHECKS),
]


rule plot:
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        linears=rules.summarize.output.linears,
        checks=expand(rules.check_mse.output.verdict, model=CHECKS),
    output:
        report(
            expand("results/figures/{figure}.svg", figure=FIGURES),
            category="Figures",
            caption="../docs/captions/figures.rst",
        ),
    log:
        "results/logs/plot.log",
    benchmark:
        "results/benchmarks/plot.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        mem_mb=more(1000),
        runtime=more(10),
    params:
        figures=FIGURES,
        methods=sorted(METHODS),
        sweeps=SWEEPS,
        code=code("plot.py"),
    script:
        "../workflow_scripts/plot.py"


rule report:
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        linears=rules.summarize.output.linears,
        checks=expand(rules.check_mse.output.verdict, model=CHECKS),
        channels=expand(rules.check_mse.output.channels, model=CHECKS),
        figures=rules.plot.output,
    output:
        "results/report.html",
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        mem_mb=more(1000),
        runtime=more(10),
    params:
        config=CONFIG | {"methods": dict(sorted(METHODS.items()))},
        figures=FIGURES,
        missing=MISSING,
        command=" ".join(
            [
                "snakemake results/report.html",
                *(f"--configfile {os.path.relpath(path)}" for path in workflow.overwrite_configfiles),
                "--cores 1 --resources gpu=1",
            ]
        ),
        code=code("report.py", "templates/report.html.j2"),
    script:
        "../workflow_scripts/report.py"
