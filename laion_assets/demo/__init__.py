"""The demo: the sample crawl, served on loopback, through a real Dagster instance.

The demo does what a person would do: it serves the crawl, starts Dagster, lets the sensor
discover the crawls, and waits. It leaves alone what is up to date, and launches again what an
interrupted run left unfinished. Domain logic does not belong here.
"""
