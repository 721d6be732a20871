"""Training: recipes (`recipe`), the batches of a run (`feed`), a training step on one device or many (`engine`), what is
saved and read back (`state`), scores (`score`), curves and sample pictures (`record`), and the loop over them (`run`)."""
