# One pass over the calibration text serves every method: small per-channel means, and the large second moments.


rule collect_statistics:
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        channels="results/{model}/calibration/{calibration}/channels.safetensors",
        moments="results/{model}/calibration/{calibration}/second_moments.safetensors",
    log:
        "results/logs/collect_statistics/{model}/{calibration}.log",
    benchmark:
        "results/benchmarks/collect_statistics/{model}/{calibration}.tsv"
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    # SmolLM2-135M, 64 × 512 tokens: 1.6 GB, a third of it the moments of all blocks before they are written
    resources:
        gpu=1,
        mem_mb=more(3000),
        runtime=more(120),
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_statistics.py"),
    script:
        "../workflow_scripts/collect_statistics.py"


rule collect_noisy:
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
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        gpu=1,
        mem_mb=more(3000),
        runtime=more(120),
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_noisy.py"),
    script:
        "../workflow_scripts/collect_noisy.py"


rule collect_jacobian:
    input:
        weights=rules.convert.output.weights,
        config=rules.convert.output.config,
        model=rules.convert.output.record,
        tokens=rules.tokenize_calibration.output[0],
    output:
        "results/{model}/calibration/{calibration}/{jacobian}.safetensors",
    log:
        "results/logs/collect_jacobian/{model}/{calibration}/{jacobian}.log",
    benchmark:
        "results/benchmarks/collect_jacobian/{model}/{calibration}/{jacobian}.tsv"
    wildcard_constraints:
        jacobian="jacobian|jacobian_residual",
    conda:
        "../envs/quant.yaml"
    threads: THREADS
    resources:
        gpu=1,
        mem_mb=more(3000),
        runtime=more(120),
    params:
        compute=COMPUTE,
        spec=calibration_spec,
        code=code("collect_jacobian.py"),
    script:
        "../workflow_scripts/collect_jacobian.py"
