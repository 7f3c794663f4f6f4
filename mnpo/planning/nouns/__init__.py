"""The stages as the plan knows them, noun by noun as in workflow/rules: importing this package registers them all."""

from mnpo.planning.nouns import evals, logps, pairs, policies, prompts, samples, scores, sources, tables

__all__ = ["evals", "logps", "pairs", "policies", "prompts", "samples", "scores", "sources", "tables"]
