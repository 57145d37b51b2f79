"""Better texts for a graph's stages: GEPA on the graph itself."""
