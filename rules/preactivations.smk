# What goes into the activation: every linear's statistics, and single layers in detail. Data apart from figures, so that
# a figure's style re-runs no analysis.

STATISTICS = f"results/{{model}}/calibration/{COMMON_CALIBRATION}"
DEEP_DIVES = CONFIG["deep_dive"]["layers"]
# Fast-R-PRAQ v3, as in the direct check
PRAQ_PARAMETERS = {key: CONFIG["check_mse"][key] for key in ("beta", "tau", "noise_factor")}


rule analyse_preactivations:
    """Statistics of what every linear puts out, and its dead, risky and critical channels."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        channels=f"{STATISTICS}/channels.safetensors",
        preactivations=f"{STATISTICS}/preactivations.safetensors",
    output:
        table=report(
            "results/{model}/analysis/preactivations.csv",
            category="Pre-activations",
            labels={"model": "{model}"},
            caption="../docs/captions/preactivations.rst",
        ),
        record="results/{model}/analysis/preactivations.json",
    log:
        "results/logs/analyse_preactivations/{model}.log",
    benchmark:
        "results/benchmarks/analyse_preactivations/{model}.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        thresholds=CONFIG["analysis"],
        linears=CONFIG["linears"],
        code=code("analyse_preactivations.py"),
    script:
        "../workflow_scripts/analyse_preactivations.py"


rule plot_preactivations:
    """A figure of each layer's pre-activations, and one over all layers."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        channels=f"{STATISTICS}/channels.safetensors",
        preactivations=f"{STATISTICS}/preactivations.safetensors",
        table=rules.analyse_preactivations.output.table,
        record=rules.analyse_preactivations.output.record,
    output:
        summary="results/{model}/analysis/preactivations.svg",
        # a figure per layer, and the list of them: how many there are, only the model knows
        layers=directory("results/{model}/analysis/layers"),
        index="results/{model}/analysis/layers.json",
    log:
        "results/logs/plot_preactivations/{model}.log",
    benchmark:
        "results/benchmarks/plot_preactivations/{model}.tsv"
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        code=code("plot_preactivations.py"),
    script:
        "../workflow_scripts/plot_preactivations.py"


rule deep_dive:
    """One layer in detail: AWQ's and PRAQ's importance of each of its channels."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        channels=f"{STATISTICS}/channels.safetensors",
        preactivations=f"{STATISTICS}/preactivations.safetensors",
    output:
        outputs="results/{model}/analysis/layer-{layer}/channel_statistics.csv",
        inputs="results/{model}/analysis/layer-{layer}/input_channels.csv",
        agreement=report(
            "results/{model}/analysis/layer-{layer}/agreement.csv",
            category="Layer in detail",
            labels={"model": "{model}", "layer": "{layer}"},
            caption="../docs/captions/deep_dive.rst",
        ),
        record="results/{model}/analysis/layer-{layer}/layer.json",
    log:
        "results/logs/deep_dive/{model}/{layer}.log",
    benchmark:
        "results/benchmarks/deep_dive/{model}/{layer}.tsv"
    wildcard_constraints:
        layer=r"\d+|auto",
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        thresholds=CONFIG["analysis"],
        top=CONFIG["deep_dive"]["top"],
        praq=PRAQ_PARAMETERS,
        linears=CONFIG["linears"],
        code=code("deep_dive.py"),
    script:
        "../workflow_scripts/deep_dive.py"


rule plot_deep_dive:
    """The figures of one layer in detail."""
    input:
        outputs=rules.deep_dive.output.outputs,
        inputs=rules.deep_dive.output.inputs,
        agreement=rules.deep_dive.output.agreement,
        record=rules.deep_dive.output.record,
        preactivations=f"{STATISTICS}/preactivations.safetensors",
    output:
        report(
            multiext(
                "results/{model}/analysis/layer-{layer}/", "correlation_awq_praq.png", "negative_channels_detailed.png"
            ),
            category="Layer in detail",
            labels={"model": "{model}", "layer": "{layer}"},
            caption="../docs/captions/deep_dive.rst",
        ),
    log:
        "results/logs/plot_deep_dive/{model}/{layer}.log",
    benchmark:
        "results/benchmarks/plot_deep_dive/{model}/{layer}.tsv"
    wildcard_constraints:
        layer=r"\d+|auto",
    conda:
        "../envs/quant.yaml"
    resources:
        **NEEDS,
    params:
        channels=CONFIG["deep_dive"]["channels"],
        code=code("plot_deep_dive.py"),
    script:
        "../workflow_scripts/plot_deep_dive.py"
