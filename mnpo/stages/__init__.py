"""One module a stage: paths and settings in, an artifact out."""
