"""What the engine costs beside what people would otherwise use: ``make bench``."""
