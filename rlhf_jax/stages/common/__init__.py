"""Parts that several stages share: checks, recorder, evaluator, what was stored before."""
