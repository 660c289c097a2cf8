"""Reference rows: floors and ceilings that are shown, never ranked."""
