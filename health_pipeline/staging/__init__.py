"""Staging: raw objects → Arrow tables → append-only tables `staging_<provider>.<entity>`, loaded by dlt.

It reads the raw store and nothing else, so staging can be dropped and made again. It knows how to ask a
provider's parser, not what is inside.
"""
