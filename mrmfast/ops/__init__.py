"""Operations: a readable reference each, faster paths beside it that must match; none imports another."""
