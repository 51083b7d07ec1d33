"""Faults on purpose: kills, I/O errors, vanished folders, wrong clocks, flipped bytes, too little memory.

`python -m lake_pipeline_tests.faults` tries every point; the tests here try a few of each kind. The package knows
nothing of this: the functions of `os` and `io` it calls are wrapped from outside, in a process of each point's own.
"""
