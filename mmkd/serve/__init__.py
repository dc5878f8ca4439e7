"""Serve: trained runs as a page to look at and as JSON endpoints for a shop to call.

From opened runs (`mmkd.pipeline.run.Run`) to an ASGI application and a server that runs it. Needs
FastAPI, uvicorn and jinja2: ``pip install 'mmkd[serve]'``.
"""

from mmkd.serve.app import application

__all__ = ["application"]
