# Asked for by itself, before anything large runs: `make plan`, or the target results/plan.txt.

# what a study's size depends on
SIZES = (
    "study",
    "calibration",
    "moments",
    "datasets",
    "sensitivity",
    "check_mse",
    "deep_dive",
    "words",
    "compute",
    "candidates",
)


rule plan:
    """What the study will take on this machine: time, memory and disk of each step, and whether it fits."""
    input:
        [file for model in STUDY["models"] for file in model_files(CONFIG["models"][model]["source"])],
    output:
        text="results/plan.txt",
        record="results/plan.json",
    log:
        "results/logs/plan.log",
    benchmark:
        "results/benchmarks/plan.tsv"
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        # a plan that did not fit is made again, by the room that there is then
        earlier=room.mark(Path("results/plan.json")),
        config=in_order(
            {key: CONFIG[key] for key in SIZES}
            | {"methods": METHODS, "compute": CONFIG["compute"] | {"shards": SHARDS}}
        ),
        sources={model: CONFIG["models"][model]["source"] for model in STUDY["models"]},
        code=code("plan.py"),
    script:
        "../workflow_scripts/plan.py"
