"""Results turned into files and back: kept by content, written all or nothing, with their provenance."""
