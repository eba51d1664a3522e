"""Everything Dagster: assets, checks, jobs, schedules, sensors. Thin wrappers; what they wrap knows no Dagster."""
