"""Networks: encoders behind one contract, decoders, heads."""
