"""What stands between Snakemake and the library: the configuration, jobs, their code and how they ended."""
