"""The embedded data sets, TFDS builders that draw their images: fabrics to classify, faces to distil."""
