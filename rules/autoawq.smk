# The AutoAWQ library as a method, in an environment of its own: it wants an older transformers.


rule build_autoawq:
    """The environment in which the AutoAWQ library runs."""
    input:
        requirements=paths.short(ROOT / "envs/autoawq.txt"),
    output:
        complete="results/environments/autoawq/complete",
        packages="results/environments/autoawq/packages.txt",
    log:
        "results/logs/build_autoawq.log",
    benchmark:
        "results/benchmarks/build_autoawq.tsv"
    conda:
        "../envs/autoawq.yaml"
    resources:
        mem_mb=more(2000),
        runtime=more(60),
    # no hash of the code: the environment is what its requirements say
    script:
        "../workflow_scripts/build_autoawq.py"


# the same outputs as rule quantize, for the methods that it leaves out
rule quantize_autoawq:
    """A model quantised by the AutoAWQ library: its checkpoint."""
    input:
        unpack(
            lambda w: {
                name: f"results/{w.model}/{file}" for name, file in keys.statistics_files(METHODS[w.method]).items()
            }
        ),
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        environment=rules.build_autoawq.output.complete,
    output:
        weights="results/{model}/{method}/checkpoint/model.safetensors",
        config="results/{model}/{method}/checkpoint/config.json",
        record="results/{model}/{method}/quantize.json",
        folds="results/{model}/{method}/folds.safetensors",
    log:
        "results/logs/quantize_autoawq/{model}/{method}.log",
    benchmark:
        "results/benchmarks/quantize_autoawq/{model}/{method}.tsv"
    wildcard_constraints:
        method=LIBRARY_METHODS,
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    # the whole model, and the inputs of one block's linears for all calibration tokens
    resources:
        gpu=GPU,
        mem_mb=more(16000),
        runtime=more(240),
    params:
        recipe=lambda w: METHODS[w.method],
        compute=COMPUTE,
        code=code("quantize_autoawq.py"),
        worker=code("autoawq_worker.py"),
    script:
        "../workflow_scripts/quantize_autoawq.py"
