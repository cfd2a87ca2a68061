# Figures, then one self-contained page.

# the methods of each sweep that the study runs
SWEEPS = {
    family: members
    for family, members in CONFIG["families"].items()
    if set(members) <= set(STUDY["methods"]) - {method for _, method in ABSENT}
}
# the questions with a figure, which quant/report/figures/questions.py draws
DRAWN_QUESTIONS = [
    *("praq", "cost", "risk", "robust", "norm", "symmetry", "flips", "group-size", "per-channel"),
    *("autoawq", "autoround", "llmcompressor", "sensitivity", "layer-error"),
]
# what makes this report, and with more files; all after one --configfile, since a second one would replace the first
command = lambda *more: " ".join(
    [
        "snakemake results/report.html",
        *([] if ROOT.samefile(Path()) else ["--snakefile", shlex.quote(paths.short(ROOT / "Snakefile"))]),
        *(["--configfile"] if workflow.overwrite_configfiles or more else []),
        *(shlex.quote(os.path.relpath(path)) for path in workflow.overwrite_configfiles),
        *more,
        "--cores 1 --resources gpu=1",
    ]
)
# what to deploy of each model, by its first data set
CHOOSE = [CONFIG["choose"] | {"model": model, "dataset": FIRST_DATASET} for model in STUDY["models"]]
FIGURES = [
    *expand(
        "{model}/{dataset}/{figure}",
        model=STUDY["models"],
        dataset=STUDY["datasets"],
        figure=[
            *("perplexity_bits", "size_delta_nll", "delta_nll", "pairs", "by_frequency", "by_position"),
            *map("sweep-{}".format, SWEEPS),
        ],
    ),
    *expand("{model}/{figure}", model=STUDY["models"], figure=["error_by_layer", "error_by_kind", "alpha_by_layer"]),
    *expand("{model}/check_mse", model=CHECKS),
    *expand("{model}/questions/{anchor}", model=STUDY["models"], anchor=DRAWN_QUESTIONS),
]


rule plot:
    """The report's figures of all methods."""
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        linears=rules.summarize.output.linears,
        profiles=rules.summarize.output.profiles,
        checks=expand(rules.check_mse.output.verdict, model=CHECKS),
        answers=rules.answer_questions.output[0],
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
        **NEEDS,
    params:
        figures=FIGURES,
        methods=COLOURED,
        sweeps=SWEEPS,
        choose=CHOOSE,
        by=CONFIG["comparison"]["by"],
        code=code("plot.py"),
    script:
        "../workflow_scripts/plot.py"


rule report:
    """The report, one page that needs no network."""
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        linears=rules.summarize.output.linears,
        checks=expand(rules.check_mse.output.verdict, model=CHECKS),
        answers=rules.answer_questions.output[0],
        rounding=rules.summarize.output.rounding,
        learnt=rules.summarize.output.learnt,
        profiles=rules.summarize.output.profiles,
        contrasts=rules.summarize.output.contrasts,
        sensitivity=rules.summarize_sensitivity.output[0],
        channels=expand(rules.check_mse.output.channels, model=CHECKS),
        figures=rules.plot.output,
        preactivations=expand(rules.analyse_preactivations.output.record, model=STUDY["models"]),
        preactivation_tables=expand(rules.analyse_preactivations.output.table, model=STUDY["models"]),
        preactivation_figures=expand(rules.plot_preactivations.output.summary, model=STUDY["models"]),
        layer_figures=expand(rules.plot_preactivations.output.index, model=STUDY["models"]),
        dives=expand(rules.deep_dive.output.record, model=STUDY["models"], layer=DEEP_DIVES),
        dive_figures=expand(rules.plot_deep_dive.output, model=STUDY["models"], layer=DEEP_DIVES),
        synthetic=rules.synthetic_benchmark.output.summary,
        synthetic_figure=rules.plot_synthetic.output,
        tasks=rules.summarize_tasks.output if STUDY["tasks"] else [],
        task_figures=rules.plot_tasks.output if STUDY["tasks"] else [],
        words=rules.summarize_words.output if WORDS["task"] else [],
        checked=expand(rules.check_study.output, model=STUDY["models"]),
        converted=expand(rules.convert.output.record, model=STUDY["models"]),
        # where one was asked for
        plan=[path for path in ("results/plan.json",) if Path(path).is_file()],
        # not read: whoever takes a checkpoint finds its card in it
        cards=rules.describe.output,
    output:
        "results/report.html",
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        config=CONFIG | {"methods": dict(sorted(METHODS.items()))},
        methods=COLOURED,
        written=in_order(WRITTEN),
        figures=FIGURES,
        missing=MISSING,
        choose=CHOOSE,
        command=command(),
        adding=command("more.yaml"),
        code=code("report.py", *(f"templates/{name}" for name in ("report.html.j2", "macros.html.j2", "report.css"))),
    script:
        "../workflow_scripts/report.py"
