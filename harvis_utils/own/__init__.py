"""Anyone's network and anyone's windows turned into one page about what the units of a place respond to."""
