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
        mem_mb=3000,
        runtime=120,
    params:
        compute=CONFIG["compute"],
        code=code("collect_statistics.py"),
    script:
        "../workflow_scripts/collect_statistics.py"
