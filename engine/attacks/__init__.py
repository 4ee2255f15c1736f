"""Attacks, one per file: the bilevel attack and the controls at the same budget."""
