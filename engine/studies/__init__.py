"""Grids of runs: what a study is and does, the questions it answers, its tables, its part of the command line."""
