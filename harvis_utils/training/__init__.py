"""Windows turned into trained networks."""
