"""A hub of models: what it says of a repository, and how the bytes come.

```
client.py     Hub: a repository at one commit; its files, fetched and verified
```
"""

from evomerge_common.domain.reference import HUB_ID
from evomerge_models.hub.client import COMMIT, Hub, RemoteFile, RemoteModel, verify

__all__ = ["COMMIT", "HUB_ID", "Hub", "RemoteFile", "RemoteModel", "verify"]
