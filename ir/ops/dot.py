"""The matrix product with any batch and contraction dimensions."""
