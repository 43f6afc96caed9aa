"""From a scene and a model to a map."""
