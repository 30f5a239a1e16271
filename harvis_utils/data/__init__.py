"""Archives, folders or generated signals turned into windows."""
