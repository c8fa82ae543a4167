"""Croissant metadata of a release (mlcommons.org/croissant, version 1.0)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from laion_assets import schemas

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.0"
_CONTEXT: Final = Path(__file__).with_name("croissant_context.json")
_PARQUET: Final = "application/x-parquet"
_URLS: Final = ("URL", "page_url")


def croissant(
    *,
    name: str,
    description: str,
    url: str,
    license: str,
    version: str,
    published: str,
    files: Sequence[Mapping[str, Any]],
    columns: pa.Schema,
) -> dict[str, Any]:
    """Build the Croissant metadata of a release; its samples are those of `metadata/*.parquet`.

    ``files`` are those of the release's manifest, ``published`` is an ISO 8601 date,
    ``columns`` are those of the metadata.
    """
    return {
        "@context": json.loads(_CONTEXT.read_text(encoding="utf-8")),
        "@type": "sc:Dataset",
        "name": name,
        "description": description,
        "conformsTo": CONFORMS_TO,
        "citeAs": "Schuhmann et al.: LAION-400M, arXiv 2111.02114 (the method)",
        "datePublished": published,
        "license": license,
        "url": url,
        "version": version,
        "distribution": [
            *(_file(item) for item in files),
            {
                "@type": "cr:FileSet",
                "@id": "metadata",
                "name": "metadata",
                "encodingFormat": _PARQUET,
                "includes": "metadata/*.parquet",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "An image link, its text and what is known of both.",
                "key": {"@id": "samples/SAMPLE_ID"},
                "field": [_field(column) for column in columns],
            }
        ],
    }


def _file(item: Mapping[str, Any]) -> dict[str, Any]:
    parquet = item["name"].endswith(".parquet")
    return {
        "@type": "cr:FileObject",
        "@id": item["name"],
        "name": item["name"],
        "contentSize": f"{item['bytes']} B",
        "contentUrl": item["name"],
        "encodingFormat": _PARQUET if parquet else "application/octet-stream",
        "sha256": item["sha256"],
    }


def _field(column: pa.Field) -> dict[str, Any]:
    kind = "sc:Integer" if pa.types.is_integer(column.type) else "sc:Text"
    if pa.types.is_floating(column.type):
        kind = "sc:Float"
    if column.name in _URLS:
        kind = "sc:URL"
    return {
        "@type": "cr:Field",
        "@id": f"samples/{column.name}",
        "name": column.name,
        "description": schemas.meaning(column.name),
        "dataType": kind,
        "source": {"fileSet": {"@id": "metadata"}, "extract": {"column": column.name}},
    }
