"""The study: `run` does an experiment once, `store` keeps and lists what came of it, `controls` compares."""
