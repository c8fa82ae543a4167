"""The demo: the sample crawl, served on loopback, through a real Dagster instance.

It does what a person would: serves the crawl, starts ``dagster dev``, lets the sensor discover the
crawls, and waits. What is there and current is left alone; what an interrupted run left unfinished
is asked for again. No domain logic lives here.
"""
