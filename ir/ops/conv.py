"""N-dimensional convolution."""
