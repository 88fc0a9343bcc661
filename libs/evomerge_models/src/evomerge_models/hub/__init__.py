"""A hub of models: what it says of a repository, and how the bytes come.

```
push.py        Publisher: files to a repository, in one commit
push_plan.py   our files beside those that a repository holds
counted.py     files that are counted while they are sent
outline.py     a model before its weights: small files, headers, holes
client.py      Hub: a repository at one commit; its files, fetched and verified
cache.py       what the hub's own client has fetched before, used where it lies
answers.py     what the API's client says, and what its errors mean here
transfer.py    files in pieces over a few connections, hashed as they come
part.py        a file on its way, and how far it is, on the disk
wire.py        HTTP: ranges, redirects, proxies
patience.py    how long a hub that fails is tried again
bandwidth.py   a limit on bytes a second
files.py       what a hub says of a repository, as values
```

Each imports only from below it.
"""

from evomerge_common.domain.reference import HUB_ID
from evomerge_models.hub.client import Hub
from evomerge_models.hub.files import COMMIT, Progress, RemoteFile, RemoteModel
from evomerge_models.hub.part import bytes_there
from evomerge_models.hub.transfer import Tell

__all__ = ["COMMIT", "HUB_ID", "Hub", "Progress", "RemoteFile", "RemoteModel", "Tell", "bytes_there"]
