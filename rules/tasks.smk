# Tasks: items once for all models, each checkpoint's answers, and what they show item by item.

TASKS = CONFIG["tasks"]
LM_EVAL_KEYS = {"lm_eval", "yaml"}
# what lm-eval or its hub refuses ends a run on this host before anything else of it has begun: first, and with every core
ALONE = 1 if workflow.resource_settings.nodes else workflow.resource_settings.cores or 1
task_files = lambda task: task_yaml.data_files(TASKS[task]["yaml"]) if "yaml" in TASKS[task] else []
# who answers, of each model
answering = lambda model: ["original", *(m for m in STUDY["task_methods"] if (model, m) not in ABSENT)]
ANSWERS = [
    f"results/{model}/{method}/tasks/{task}.json"
    for model in STUDY["models"]
    for task in STUDY["tasks"]
    for method in answering(model)
]


rule build_lm_eval:
    """The environment in which lm-eval makes the items of its tasks."""
    input:
        requirements=paths.short(ROOT / "envs/lm_eval.txt"),
    output:
        complete="results/environments/lm_eval/complete",
        packages="results/environments/lm_eval/packages.txt",
    log:
        "results/logs/build_lm_eval.log",
    benchmark:
        "results/benchmarks/build_lm_eval.tsv"
    priority: 20
    conda:
        "../envs/lm_eval.yaml"
    threads: ALONE
    resources:
        **NEEDS,
    # no hash of the code: the environment is what its requirements say
    script:
        "../workflow_scripts/build_lm_eval.py"


rule make_task:
    """The items of a task: what is asked, and which answer is right."""
    input:
        unpack(
            lambda w: (
                {"environment": rules.build_lm_eval.output.complete} if LM_EVAL_KEYS & TASKS[w.task].keys() else {}
            )
        ),
        files=lambda w: task_files(w.task),
    output:
        "results/tasks/{task}.json",
    log:
        "results/logs/make_task/{task}.log",
    benchmark:
        "results/benchmarks/make_task/{task}.tsv"
    priority: 20
    conda:
        "../envs/quant.yaml"
    threads: lambda w: ALONE if LM_EVAL_KEYS & TASKS[w.task].keys() else 1
    resources:
        **NEEDS,
    params:
        spec=lambda w: TASKS[w.task],
        files=lambda w: stamps.stamps(task_files(w.task)),
        code=code("make_task.py"),
        worker=lambda w: code("lm_eval_worker.py") if LM_EVAL_KEYS & TASKS[w.task].keys() else "",
    script:
        "../workflow_scripts/make_task.py"


rule evaluate_task:
    """A checkpoint's answers to every item of a task."""
    input:
        unpack(gguf_of),
        unpack(lambda w: ({} if w.method == "original" else {"record": f"results/{w.model}/{w.method}/quantize.json"})),
        weights=f"results/{{model}}/{{method}}/checkpoint/{WEIGHTS}",
        config="results/{model}/{method}/checkpoint/config.json",
        model=rules.convert.output.record,
        task=rules.make_task.output[0],
    output:
        "results/{model}/{method}/tasks/{task}.json",
    log:
        "results/logs/evaluate_task/{model}/{method}/{task}.log",
    benchmark:
        "results/benchmarks/evaluate_task/{model}/{method}/{task}.tsv"
    wildcard_constraints:
        method="|".join(["original", *map(re.escape, METHODS)]),
    priority: 3
    conda:
        "../envs/quant.yaml"
    threads: PAIRED_THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        spec=lambda w: TASKS[w.task],
        compute=COMPUTE,
        recipe=lambda w: METHODS.get(w.method),
        code=code("evaluate_task.py"),
    script:
        "../workflow_scripts/evaluate_task.py"


rule summarize_tasks:
    """Scores and paired differences of every method, tasks.csv, and of every pair, task_pairs.csv."""
    input:
        answers=ANSWERS,
        texts=expand("results/{model}/calibration/texts.json", model=STUDY["models"]),
    output:
        tasks=report("results/tasks.csv", category="Tasks", caption="../docs/captions/tasks.rst"),
        pairs=report("results/task_pairs.csv", category="Tasks", caption="../docs/captions/tasks.rst"),
    log:
        "results/logs/summarize_tasks.log",
    benchmark:
        "results/benchmarks/summarize_tasks.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        comparison=COMPARISON,
        recipes={method: METHODS[method] for method in sorted(STUDY["task_methods"])},
        code=code("summarize_tasks.py"),
    script:
        "../workflow_scripts/summarize_tasks.py"


rule plot_tasks:
    """Every method's score beside the original's, a figure a model."""
    input:
        tasks=rules.summarize_tasks.output.tasks,
    output:
        report(
            expand("results/figures/{model}/tasks.svg", model=STUDY["models"]),
            category="Tasks",
            caption="../docs/captions/tasks.rst",
        ),
    log:
        "results/logs/plot_tasks.log",
    benchmark:
        "results/benchmarks/plot_tasks.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        models=STUDY["models"],
        methods=COLOURED,
        code=code("plot_tasks.py"),
    script:
        "../workflow_scripts/plot_tasks.py"


rule write_words:
    """What a checkpoint writes by itself behind a task's contexts."""
    input:
        unpack(gguf_of),
        unpack(lambda w: {} if w.method == "original" else {"record": f"results/{w.model}/{w.method}/quantize.json"}),
        weights=f"results/{{model}}/{{method}}/checkpoint/{WEIGHTS}",
        config="results/{model}/{method}/checkpoint/config.json",
        model=rules.convert.output.record,
        task=f"results/tasks/{WORDS['task']}.json",
    output:
        "results/{model}/{method}/words.json",
    log:
        "results/logs/write_words/{model}/{method}.log",
    benchmark:
        "results/benchmarks/write_words/{model}/{method}.tsv"
    wildcard_constraints:
        method="|".join(["original", *map(re.escape, METHODS)]),
    priority: 3
    conda:
        "../envs/quant.yaml"
    threads: PAIRED_THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        words={key: WORDS[key] for key in ("prompts", "tokens")},
        compute=COMPUTE,
        recipe=lambda w: METHODS.get(w.method),
        code=code("write_words.py"),
    script:
        "../workflow_scripts/write_words.py"


rule summarize_words:
    """How long every method writes what the original writes, words.csv, and texts side by side."""
    input:
        texts=[f"results/{model}/{method}/words.json" for model in STUDY["models"] for method in answering(model)],
        texts_seen=expand("results/{model}/calibration/texts.json", model=STUDY["models"]),
    output:
        table=report("results/words.csv", category="Tasks", caption="../docs/captions/words.rst"),
        examples="results/words.json",
    log:
        "results/logs/summarize_words.log",
    benchmark:
        "results/benchmarks/summarize_words.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        comparison=COMPARISON,
        recipes={method: METHODS[method] for method in sorted(STUDY["task_methods"])},
        show=WORDS["show"],
        code=code("summarize_words.py"),
    script:
        "../workflow_scripts/summarize_words.py"
