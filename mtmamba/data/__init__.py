"""Datasets: what a sample is made of, and where its labels count (`labels`); rendered rooms (`synthetic`)."""
