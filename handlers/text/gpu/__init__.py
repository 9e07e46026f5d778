"""Text models on a GPU: packed rows, attention over rows of unlike lengths, fixed shapes as CUDA graphs."""
