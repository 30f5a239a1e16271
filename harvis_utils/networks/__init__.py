"""Settings turned into networks; places in any network turned into maps of its units."""
