"""Graphs: what a program does to tensors, recorded once and run without it."""
