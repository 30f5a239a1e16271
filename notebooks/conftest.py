"""What the notebooks' smoke test needs beside nbval."""


def pytest_collection_modifyitems(items):
    """Wait longer than nbval's five seconds for a cell's output: figures of two notebooks at once take their time."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60
