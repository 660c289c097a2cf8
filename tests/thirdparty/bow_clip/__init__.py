"""A method, a task and a dataset that live outside prior-bench."""
