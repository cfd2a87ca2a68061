# What the report rests on: the tables of all methods, and the direct check on one layer.

# the methods of a model that the report has
present = lambda model: [method for method in STUDY["methods"] if (model, method) not in ABSENT]
PRESENT = [(model, method) for model in STUDY["models"] for method in present(model)]


rule summarize:
    """Tables of all methods, summary.csv, of every pair, comparisons.csv, and of every linear, linears.csv."""
    input:
        originals=expand(rules.evaluate_original.output.evaluation, model=STUDY["models"], dataset=STUDY["datasets"]),
        evaluations=[
            f"results/{model}/{method}/evaluation/{dataset}.json"
            for model, method in PRESENT
            for dataset in STUDY["datasets"]
        ],
        linears=[f"results/{model}/{method}/linears.csv" for model, method in PRESENT],
        texts=expand(rules.check_texts.output, model=STUDY["models"]),
    output:
        summary=report("results/summary.csv", category="Summary", caption="../docs/captions/summary.rst"),
        comparisons=report("results/comparisons.csv", category="Summary", caption="../docs/captions/comparisons.rst"),
        linears="results/linears.csv",
        rounding="results/rounding_stats.csv",
        learnt="results/learnt.csv",
        profiles="results/profiles.csv",
        contrasts="results/contrasts.csv",
    log:
        "results/logs/summarize.log",
    benchmark:
        "results/benchmarks/summarize.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        comparison=COMPARISON,
        recipes={method: METHODS[method] for method in sorted(STUDY["methods"])},
        code=code("summarize.py"),
    script:
        "../workflow_scripts/summarize.py"


# the models whose layer is checked
CHECKS = [] if CONFIG["check_mse"]["layer"] is None else STUDY["models"]


rule check_mse:
    """One layer with half of its channels kept: AWQ's choice of them against PRAQ's, on the first data set."""
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
        moments="results/{model}/check_mse/second_moments.safetensors",
    log:
        "results/logs/check_mse/{model}.log",
    benchmark:
        "results/benchmarks/check_mse/{model}.tsv"
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        options=CONFIG["check_mse"],
        comparison=COMPARISON,
        linears=CONFIG["linears"],
        dataset=FIRST_DATASET,
        compute=COMPUTE,
        code=code("check_mse.py"),
    script:
        "../workflow_scripts/check_mse.py"


# all methods in one job: a few linears each
rule measure_heldout:
    """Every method's error in the checked layer, on the data set's text."""
    input:
        original=rules.convert.output.weights,
        moments=rules.check_mse.output.moments,
        weights=lambda w: expand(rules.quantize.output.weights, model=w.model, method=present(w.model)),
        configs=lambda w: expand(rules.quantize.output.config, model=w.model, method=present(w.model)),
        folds=lambda w: expand(rules.quantize.output.folds, model=w.model, method=present(w.model)),
        records=lambda w: expand(rules.quantize.output.record, model=w.model, method=present(w.model)),
    output:
        "results/{model}/check_mse/methods.csv",
    log:
        "results/logs/measure_heldout/{model}.log",
    benchmark:
        "results/benchmarks/measure_heldout/{model}.tsv"
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        linears=CONFIG["linears"],
        device=CONFIG["compute"]["device"],
        code=code("measure_heldout.py"),
    script:
        "../workflow_scripts/measure_heldout.py"


SENSITIVITY = CONFIG["sensitivity"]
SENSITIVITY_DATASET = FIRST_DATASET if SENSITIVITY["dataset"] == "first" else SENSITIVITY["dataset"]


# one job a method: the model is loaded once, and each part of it is swapped in, evaluated and swapped out
rule measure_sensitivity:
    """The rise of the NLL when one part of the model is quantised and all else is not."""
    input:
        unpack(
            lambda w: (
                {"channels": f"results/{w.model}/calibration/{COMMON_CALIBRATION}/channels.safetensors"}
                if "risk" in SENSITIVITY["by"]
                else {}
            )
        ),
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        unquantized=rules.convert.output.weights,
        original=rules.evaluate_original.output.evaluation,
        weights=rules.quantize.output.weights,
        quantized_config=rules.quantize.output.config,
        record=rules.quantize.output.record,
        tokens=rules.tokenize_dataset.output[0],
    output:
        "results/{model}/{method}/sensitivity/{dataset}.json",
    log:
        "results/logs/measure_sensitivity/{model}/{method}/{dataset}.log",
    benchmark:
        "results/benchmarks/measure_sensitivity/{model}/{method}/{dataset}.tsv"
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        options={key: value for key, value in SENSITIVITY.items() if key not in ("methods", "dataset")},
        thresholds=CONFIG["analysis"] if "risk" in SENSITIVITY["by"] else {},
        compute=COMPUTE,
        code=code("measure_sensitivity.py"),
    script:
        "../workflow_scripts/measure_sensitivity.py"


rule summarize_sensitivity:
    """The parts of all methods as one table, sensitivity.csv."""
    input:
        [
            f"results/{model}/{method}/sensitivity/{SENSITIVITY_DATASET}.json"
            for model in STUDY["models"]
            for method in SENSITIVITY["methods"]
            if (model, method) not in ABSENT
        ],
    output:
        report("results/sensitivity.csv", category="Sensitivity", caption="../docs/captions/sensitivity.rst"),
    log:
        "results/logs/summarize_sensitivity.log",
    benchmark:
        "results/benchmarks/summarize_sensitivity.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        comparison=COMPARISON,
        code=code("summarize_sensitivity.py"),
    script:
        "../workflow_scripts/summarize_sensitivity.py"


rule answer_questions:
    """A verdict on every question that the methods of the study can answer."""
    input:
        summary=rules.summarize.output.summary,
        comparisons=rules.summarize.output.comparisons,
        linears=rules.summarize.output.linears,
        rounding=rules.summarize.output.rounding,
        learnt=rules.summarize.output.learnt,
        contrasts=rules.summarize.output.contrasts,
        tasks=rules.summarize_tasks.output if STUDY["tasks"] else [],
        sensitivity=rules.summarize_sensitivity.output[0],
        parts=rules.summarize_sensitivity.input,
        checks=expand(rules.check_mse.output.verdict, model=CHECKS),
        heldout=expand(rules.measure_heldout.output[0], model=CHECKS),
    output:
        report("results/comparison_results.json", category="Summary", caption="../docs/captions/questions.rst"),
    log:
        "results/logs/answer_questions.log",
    benchmark:
        "results/benchmarks/answer_questions.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        datasets=STUDY["datasets"],
        by=CONFIG["comparison"]["by"],
        kinds={
            name: any(
                shared_text.same_kind(CONFIG["datasets"][name]["text"], text)
                for text in shared_text.calibration_texts(CONFIG["calibration"])
            )
            for name in STUDY["datasets"]
        },
        recipes={method: METHODS[method] for method in sorted(STUDY["methods"])},
        order=STUDY["methods"],
        code=code("answer_questions.py"),
    script:
        "../workflow_scripts/answer_questions.py"
