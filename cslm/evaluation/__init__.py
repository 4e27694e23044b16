"""Held-out evaluation: what is measured, one subject a module; `tasks` runs a model, `summary` adds up."""
