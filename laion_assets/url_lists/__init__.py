"""Lists of image URLs, with or without captions, as people have them: files in, pairs out.

"URL list" is the word for them; a *list* alone is a removal list or a blocklist.
"""
