"""The tiny language world of the demo, and the tiny model that learns to speak in it."""
