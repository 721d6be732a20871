"""Engines, backends, video, drawing: what runs a model where it is deployed. Needs no torch."""
