"""The metrics as `evaluate.Metric` classes, one per file so that `evaluate.load("<path of the file>")` finds it.

These files stay apart from the functions, which then need numpy only. `evaluate.load` runs a copy of the file, so
they import the package by its full name, and one import per line, as its dependency check demands.
"""
