"""A network and a place in it turned into signals that excite it."""
