"""Parts that several stages share: recorder, evaluator, what was stored before."""
