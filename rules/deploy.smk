# For those who take a checkpoint: its card, the best one under their limits, and other formats.


# one job for all: each card is a few lines from the tables, and starting costs more than writing
rule describe:
    input:
        summary=rules.summarize.output.summary,
        records=expand(rules.quantize.output.record, model=STUDY["models"], method=STUDY["methods"]),
    output:
        expand("results/{model}/{method}/checkpoint/README.md", model=STUDY["models"], method=STUDY["methods"]),
    log:
        "results/logs/describe.log",
    benchmark:
        "results/benchmarks/describe.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        mem_mb=500,
        runtime=10,
    params:
        models={name: {key: CONFIG["models"][name].get(key) for key in CARD_KEYS} for name in STUDY["models"]},
        calibration=CONFIG["calibration"],
        code=code("describe.py", "templates/card.md.j2"),
    script:
        "../workflow_scripts/describe.py"


rule pick:
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        cards=expand("results/{model}/{method}/checkpoint/README.md", model=STUDY["models"][0], method=STUDY["methods"]),
        weights=expand(rules.quantize.output.weights, model=STUDY["models"][0], method=STUDY["methods"]),
    output:
        choice="results/best/choice.json",
        weights="results/best/checkpoint/model.safetensors",
        config="results/best/checkpoint/config.json",
        card="results/best/checkpoint/README.md",
    log:
        "results/logs/pick.log",
    benchmark:
        "results/benchmarks/pick.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        mem_mb=500,
        runtime=10,
    params:
        options=CONFIG["choose"] | {"model": STUDY["models"][0], "dataset": FIRST_DATASET},
        code=code("pick.py"),
    script:
        "../workflow_scripts/pick.py"
