"""What the live page and the static report show, as JSON-ready data: one function a view, read from the projection.

The live page fetches a view (`/api/runs`, `/api/runs/{run}`, `/api/runs/{run}/candidates/{digest}`) and brings itself
up to date in place; the static report carries the same data with it. Numbers are as the log has them, rounded to six
decimals; what is not known is null; times are Unix seconds.
"""
