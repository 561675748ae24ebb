"""Products and lookups of params in a compute dtype, whose gradients are float32."""
