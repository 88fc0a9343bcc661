"""Importing this module imports what all services of an embedded stack have in common.

What a service alone needs it imports itself: metrics that only it has are made by an import.
"""

from __future__ import annotations

import importlib

COMMON = (
    *("asyncio", "grpc_reflection.v1alpha.reflection", "grpc_reflection.v1alpha._async", "runpy"),
    *("evomerge_common.adapters.clock", "evomerge_common.adapters.nats", "evomerge_common.domain.messages"),
    *("evomerge_common.runtime.child", "evomerge_common.runtime.metrics", "evomerge_common.runtime.service"),
    *("evomerge_common.domain.recipe", "evomerge_common.domain.spec", "evomerge_common.domain.suite"),
)

for _name in COMMON:
    importlib.import_module(_name)
