"""SmolLM2-135M-Instruct, 4-bit values, on two CPU cores: sums and controlled sentiment."""
