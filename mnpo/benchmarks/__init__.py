"""What policies are measured by.

- cards: every benchmark, declared. data: where a benchmark's files lie.
- lm_eval, lm_eval_tasks, lm_eval_model: the benchmarks without a judge, by lm-eval. sandbox: model-written code.
- questions, answers: what a policy is asked where a judge judges it, and what it answered.
- alpaca_eval, arena_hard, mt_bench: the judged benchmarks. judged_common: what they share.
- evalscope, evalscope_tasks, evalscope_runs: all but MT-Bench by the paper's own harness.
- heldout: unseen prompts, judged by the oracles. result_cache: results that need not be measured again.
"""
