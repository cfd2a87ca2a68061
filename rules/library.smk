# Libraries as methods (quant/recipe/libraries.py), each in an environment of its own.


rule build_library:
    """The environment in which a library runs."""
    input:
        requirements=paths.short(ROOT / "envs/{library}.txt"),
    output:
        complete="results/environments/{library}/complete",
        packages="results/environments/{library}/packages.txt",
    log:
        "results/logs/build_library/{library}.log",
    benchmark:
        "results/benchmarks/build_library/{library}.tsv"
    wildcard_constraints:
        library="|".join(libraries.LIBRARIES),
    conda:
        "../envs/{library}.yaml"
    resources:
        **NEEDS,
    params:
        existing=lambda w: CONFIG["environments"].get(w.library, ""),
    # no hash of the code: the environment is what its requirements say
    script:
        "../workflow_scripts/build_library.py"


# the same outputs as rule quantize, for the methods that it leaves out
rule quantize_library:
    """A model quantised by a library: its checkpoint."""
    input:
        unpack(
            lambda w: {
                name: f"results/{w.model}/{file}" for name, file in keys.statistics_files(METHODS[w.method]).items()
            }
        ),
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        environment=lambda w: rules.build_library.output.complete.format(library=METHODS[w.method]["algorithm"]),
    output:
        weights=f"results/{{model}}/{{method}}/checkpoint/{WEIGHTS}",
        config="results/{model}/{method}/checkpoint/config.json",
        record="results/{model}/{method}/quantize.json",
        folds="results/{model}/{method}/folds.safetensors",
    log:
        "results/logs/quantize_library/{model}/{method}.log",
    benchmark:
        "results/benchmarks/quantize_library/{model}/{method}.tsv"
    wildcard_constraints:
        method=LIBRARY_METHODS,
    priority: LONGEST_FIRST
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        recipe=lambda w: METHODS[w.method],
        compute=COMPUTE,
        code=lambda w: code("quantize_library.py", modules=choices.modules(METHODS[w.method])),
        worker=lambda w: code(f"{METHODS[w.method]['algorithm']}_worker.py"),
    script:
        "../workflow_scripts/quantize_library.py"
