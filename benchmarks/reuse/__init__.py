"""Plans beside published schedules of reuse: the same model, sampler, steps and noise."""
