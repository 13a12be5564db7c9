"""Which files count as images when a folder is searched. No TensorFlow."""

# A file that is named itself is read whatever its ending; in a folder these are looked for, in any
# case.
IMAGE_ENDINGS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
  *(".png", ".apng", ".gif", ".webp", ".avif"),
  *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
