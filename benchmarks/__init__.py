"""Side-by-side timings of this package and of plain PyTorch; README.md holds the results."""
