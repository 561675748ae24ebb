"""Parts that several families of decoders share."""
