"""The one place where the reporter is put together."""

from __future__ import annotations

from evomerge.v1 import reporter_pb2_grpc
from evomerge_common.runtime.ports_factory import Ports
from evomerge_common.runtime.service import Service
from evomerge_common.runtime.settings import Settings
from evomerge_report.projection import Projection
from evomerge_report.queries import Queries
from evomerge_reporter.access import Access
from evomerge_reporter.api import Api
from evomerge_reporter.control import Control
from evomerge_reporter.follower import Follower
from evomerge_reporter.grpc_api import ReporterServicer
from evomerge_reporter.metrics import RUN_METRICS
from evomerge_reporter.queue_metrics import QueueWatch
from evomerge_reporter.reports import Reports
from evomerge_reporter.suites import Suites
from evomerge_reporter.try_it import TryIt
from evomerge_reporter.web import Page


async def bootstrap(settings: Settings, ports: Ports) -> Service:
    """Makes the projection that follows the log, the page and the API that read it."""
    projection = Projection(settings.state_dir / "reporter.db")
    queries = Queries(projection.database)
    reports = Reports(queries, ports.log, ports.artifacts)
    follower = Follower(projection, queries, RUN_METRICS, ports.log, ports.clock)
    access = Access(settings.http_address.rpartition(":")[0].strip("[]"), settings.token)
    control = Control(settings)
    try_it = TryIt(settings, queries)
    api = Api(access, queries, follower, ports.queue, control, Suites(ports.artifacts), try_it)
    page = Page(settings.http_address, access, queries, reports, api)
    servicer = ReporterServicer(queries, reports)

    async def close() -> None:
        await control.close()
        await try_it.close()
        projection.close()

    return Service(
        name="reporter",
        servicers=[
            (
                "evomerge.v1.ReporterService",
                lambda server: reporter_pb2_grpc.add_ReporterServiceServicer_to_server(servicer, server),
            )
        ],
        background=[follower.follow, follower.tick, page.serve, QueueWatch(ports.queue).run],
        closers=[close],
    )
