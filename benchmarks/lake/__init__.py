"""What people do with a lake of up to ten thousand partitions of each asset, and what it costs."""
