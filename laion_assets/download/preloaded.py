"""What the pool's processes are forked from: imported once, by the server of ``decoders``."""

from laion_assets.download import img2dataset_parts

img2dataset_parts.load()
