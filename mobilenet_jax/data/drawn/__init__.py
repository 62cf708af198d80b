"""The embedded datasets, TFDS builders that draw their images: fabrics for classification, faces for distillation."""
