"""A provider sandbox: a real HTTP server that speaks the providers' APIs over seeded synthetic people.

It imports nothing else of `health_pipeline`: a mistake shared with the parsers would hide.
"""
