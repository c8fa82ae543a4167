"""From a WAT file to pairs: cc2dataset's extraction, ours, and the floors below both."""
