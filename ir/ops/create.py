"""Operations that make a tensor from no tensor, or from a scalar."""
