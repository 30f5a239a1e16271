"""What the engine and the search cost beside what people would otherwise use: ``make bench``."""
