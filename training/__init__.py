"""The recipe of the small CLIP that ships with the package. Not imported by ``laion_assets``."""
