"""Published losses as settings of one algorithm, `policy_gradient`."""
