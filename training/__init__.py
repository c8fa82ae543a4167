"""The recipe of the small CLIP that the package ships; ``laion_assets`` does not import it."""
