"""Experiments of the papers at the size of one machine: `python -m experiments NAME`. Not part of the package.

A folder with a `run.py` is an experiment: `run.py` says what is run, `report.py` makes the table, the claims and the
picture. `common/` holds what they share, `language/` the text task of several of them.
"""
