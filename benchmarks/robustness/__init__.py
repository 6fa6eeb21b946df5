"""Damage, kills and hostile input: what is refused, healed or without effect, and that nothing is silent."""
