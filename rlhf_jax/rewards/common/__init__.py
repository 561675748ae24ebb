"""Parts that several rewards share: decoded text, sums of rewards, config nodes."""
