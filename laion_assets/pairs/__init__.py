"""From a page's links to image-text pairs: text, URL, licence, language."""
