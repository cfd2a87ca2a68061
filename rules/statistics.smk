# One pass over the calibration text serves every method: small per-channel means, the large second moments,
# and ranges and samples of what each linear puts out.

# second moments, plain and weighted, are kept, or go once the study's jobs that read them have run
of_moments = temp if STORE == "none" else str


# made only where compute.shards is more than 1
rule collect_shard:
    """The sums of one of several passes, each over a part of the calibration text."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        sums=temp("results/{model}/calibration/{calibration}/shards/{shard}-of-{shards}.sums.safetensors"),
        moments=temp("results/{model}/calibration/{calibration}/shards/{shard}-of-{shards}.moments.safetensors"),
    log:
        "results/logs/collect_shard/{model}/{calibration}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/collect_shard/{model}/{calibration}/{shard}-of-{shards}.tsv"
    priority: 1  # methods wait for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        keeping=lambda w: moments.settled(KEEPING, w.model),
        code=code("collect_shard.py"),
    script:
        "../workflow_scripts/collect_shard.py"


rule collect_statistics:
    """One pass over the calibration text: means of channels, second moments, samples of what linears put out."""
    input:
        sums=in_shards(rules.collect_shard.output.sums),
        moments=in_shards(rules.collect_shard.output.moments),
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        channels="results/{model}/calibration/{calibration}/channels.safetensors",
        moments=of_moments("results/{model}/calibration/{calibration}/second_moments.safetensors"),
        preactivations="results/{model}/calibration/{calibration}/preactivations.safetensors",
    log:
        "results/logs/collect_statistics/{model}/{calibration}.log",
    benchmark:
        "results/benchmarks/collect_statistics/{model}/{calibration}.tsv"
    priority: 1  # methods wait for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        keeping=lambda w: moments.settled(KEEPING, w.model),
        code=code("collect_statistics.py"),
    script:
        "../workflow_scripts/collect_statistics.py"


rule collect_noisy:
    """The means of channels under noise on the inputs, for recipes with noise_std."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
        channels=rules.collect_statistics.output.channels,
    output:
        "results/{model}/calibration/{calibration}/noisy-{noise_std}x{n_noise_samples}.safetensors",
    log:
        "results/logs/collect_noisy/{model}/{calibration}/{noise_std}x{n_noise_samples}.log",
    benchmark:
        "results/benchmarks/collect_noisy/{model}/{calibration}/{noise_std}x{n_noise_samples}.tsv"
    priority: 1  # methods wait for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_noisy.py"),
    script:
        "../workflow_scripts/collect_noisy.py"


rule collect_jacobian:
    """Second moments weighted by what an error does after the activation, for recipes that say jacobian."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        of_moments("results/{model}/calibration/{calibration}/{jacobian}.safetensors"),
    log:
        "results/logs/collect_jacobian/{model}/{calibration}/{jacobian}.log",
    benchmark:
        "results/benchmarks/collect_jacobian/{model}/{calibration}/{jacobian}.tsv"
    wildcard_constraints:
        jacobian="jacobian|jacobian_residual",
    priority: 1  # methods wait for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_jacobian.py"),
    script:
        "../workflow_scripts/collect_jacobian.py"


rule collect_end_loss:
    """Second moments weighted by what an error costs the model, for `moment: end_loss` and `row_feedback`."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        of_moments("results/{model}/calibration/{calibration}/end_loss-{parts}.safetensors"),
    log:
        "results/logs/collect_end_loss/{model}/{calibration}/{parts}.log",
    benchmark:
        "results/benchmarks/collect_end_loss/{model}/{calibration}/{parts}.tsv"
    wildcard_constraints:
        parts=r"\d+|rows",
    priority: 1  # methods wait for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_end_loss.py"),
    script:
        "../workflow_scripts/collect_end_loss.py"


rule collect_attention:
    """What errors of q and k do to the weights of attention, for `row_feedback` with `row_moment: attention`."""
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        of_moments("results/{model}/calibration/{calibration}/attention-rows.safetensors"),
    log:
        "results/logs/collect_attention/{model}/{calibration}.log",
    benchmark:
        "results/benchmarks/collect_attention/{model}/{calibration}.tsv"
    priority: 1  # methods wait for it
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        **NEEDS,
        gpu=GPU,
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_attention.py"),
    script:
        "../workflow_scripts/collect_attention.py"
