"""The regression gate: what `prior-bench check` compares with a baseline, and how it says what it found.

A gate is a module here (`exact`, `statistical`) with two functions, `check(options)` and `update(options, reason)`.
Both answer with a Report: of the numbers of this run against the baseline, and of a new baseline against the old one.
"""
