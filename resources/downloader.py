"""The downloader's policy as a resource."""

from __future__ import annotations

from laion_assets.download.options import DownloadOptions
from resources.options import OptionsResource


class DownloaderResource(DownloadOptions, OptionsResource[DownloadOptions]):
    """Limits, politeness and image format of the guarded download."""
