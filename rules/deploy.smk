# For those who take a checkpoint: its card, the best one under their limits, and other formats.


# one job for all: each card is a few lines from the tables, and starting costs more than writing
rule describe:
    """A model card in every method's checkpoint."""
    input:
        summary=rules.summarize.output.summary,
        records=[f"results/{model}/{method}/quantize.json" for model, method in PRESENT],
        converted=expand(rules.convert.output.record, model=STUDY["models"]),
    output:
        [f"results/{model}/{method}/checkpoint/README.md" for model, method in PRESENT],
    log:
        "results/logs/describe.log",
    benchmark:
        "results/benchmarks/describe.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        models={name: {key: CONFIG["models"][name].get(key) for key in CARD_KEYS} for name in STUDY["models"]},
        calibration=CALIBRATION,
        code=code("describe.py", "templates/card.md.j2"),
    script:
        "../workflow_scripts/describe.py"


# first of all that wait for the model, where the best one is asked for
rule check_best:
    """A refusal of a choice that the study leaves nothing to: no method of it is stored packed on this model."""
    input:
        weights=rules.convert.output.weights,
        model=rules.convert.output.record,
    output:
        "results/{model}/original/packs.json",
    log:
        "results/logs/check_best/{model}.log",
    benchmark:
        "results/benchmarks/check_best/{model}.tsv"
    priority: 10
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        wanted=OF_BEST,
        code=code("check_best.py"),
    script:
        "../workflow_scripts/check_best.py"


rule pick:
    """The best packed checkpoint within the limits of choose, or its GGUF file, copied to results/best."""
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        checked=expand([rules.check_study.output[0], rules.check_best.output[0]], model=FIRST_MODEL),
        cards=[f"results/{FIRST_MODEL}/{method}/checkpoint/README.md" for method in present(FIRST_MODEL)],
        weights=expand(rules.quantize.output.weights, model=FIRST_MODEL, method=present(FIRST_MODEL)),
        files=[f"results/{FIRST_MODEL}/{m}/export/gguf/model.gguf" for m in present(FIRST_MODEL) if m in STUDY["gguf"]],
    output:
        choice="results/best/choice.json",
        weights=f"results/best/checkpoint/{WEIGHTS}",
        config="results/best/checkpoint/config.json",
        card="results/best/checkpoint/README.md",
    log:
        "results/logs/pick.log",
    benchmark:
        "results/benchmarks/pick.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        options=CONFIG["choose"] | {"model": FIRST_MODEL, "dataset": FIRST_DATASET},
        code=code("pick.py"),
    script:
        "../workflow_scripts/pick.py"


# results/{model}/{method}/export/dense/export.json, and awq in its place
rule export:
    """A method's checkpoint as dense weights or in AutoAWQ's layout."""
    input:
        weights=rules.quantize.output.weights,
        config=rules.quantize.output.config,
        record=rules.quantize.output.record,
    output:
        weights=f"results/{{model}}/{{method}}/export/{{format}}/{WEIGHTS}",
        config="results/{model}/{method}/export/{format}/config.json",
        record="results/{model}/{method}/export/{format}/export.json",
    log:
        "results/logs/export/{model}/{method}/{format}.log",
    benchmark:
        "results/benchmarks/export/{model}/{method}/{format}.tsv"
    wildcard_constraints:
        format="dense|awq",
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
    params:
        format=lambda w: w.format,
        code=code("export.py"),
    script:
        "../workflow_scripts/export.py"


rule export_gguf:
    """A method's checkpoint as a GGUF file."""
    input:
        weights=rules.quantize.output.weights,
        config=rules.quantize.output.config,
        record=rules.quantize.output.record,
    output:
        weights="results/{model}/{method}/export/gguf/model.gguf",
        record="results/{model}/{method}/export/gguf/export.json",
    log:
        "results/logs/export/{model}/{method}/gguf.log",
    benchmark:
        "results/benchmarks/export/{model}/{method}/gguf.tsv"
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
    params:
        format="gguf",
        code=code("export.py"),
    script:
        "../workflow_scripts/export.py"
