"""Training configurations: schema, base files, stages, ablations and baselines."""
