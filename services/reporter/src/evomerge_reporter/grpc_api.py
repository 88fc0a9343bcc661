"""ReporterService: parse, call, map. The runtime's interceptor maps errors to status codes."""

from __future__ import annotations

import grpc

from evomerge.v1 import reporter_pb2, reporter_pb2_grpc
from evomerge_common.adapters.codec import to_proto
from evomerge_common.errors import InvalidInput
from evomerge_report.queries import Queries
from evomerge_reporter.reports import Reports

MAX_ENTRIES = 1000


class ReporterServicer(reporter_pb2_grpc.ReporterServiceServicer):
    """See proto/evomerge/v1/reporter.proto."""

    def __init__(self, queries: Queries, reports: Reports) -> None:
        self._queries = queries
        self._reports = reports

    async def GetReport(
        self, request: reporter_pb2.GetReportRequest, context: grpc.aio.ServicerContext
    ) -> reporter_pb2.GetReportResponse:
        """Answers with result.json as far as the run has come; of an ended run also its report folder."""
        text, uri = await self._reports.result(request.run_id)
        return reporter_pb2.GetReportResponse(result_json=text, uri=uri)

    async def GetLeaderboard(
        self, request: reporter_pb2.GetLeaderboardRequest, context: grpc.aio.ServicerContext
    ) -> reporter_pb2.GetLeaderboardResponse:
        """Answers with the best candidates on search items."""
        if request.limit < 0:
            raise InvalidInput(f"limit must be 0 (twenty) or more, not {request.limit}")
        self._queries.run(request.run_id)
        rows = self._queries.leaderboard(request.run_id, limit=min(request.limit or 20, MAX_ENTRIES))
        return reporter_pb2.GetLeaderboardResponse(
            entries=[
                reporter_pb2.LeaderboardEntry(
                    rank=rank, recipe_digest=row.digest, index=row.index, operator=row.operator, method=row.method,
                    fitness=row.fitness or 0.0, scores=[to_proto(score) for score in row.scores],
                )
                for rank, row in enumerate(rows, start=1)
            ]
        )  # fmt: skip

    async def GetLineage(
        self, request: reporter_pb2.GetLineageRequest, context: grpc.aio.ServicerContext
    ) -> reporter_pb2.GetLineageResponse:
        """Answers with a candidate and its ancestors, nearest first."""
        self._queries.run(request.run_id)
        rows = self._queries.lineage(request.run_id, request.recipe_digest)
        return reporter_pb2.GetLineageResponse(
            nodes=[
                reporter_pb2.LineageNode(
                    recipe_digest=row.digest, index=row.index, operator=row.operator, parents=row.parents,
                    fitness=row.fitness or row.estimate or 0.0, stopped=row.state == "stopped",
                    low=row.low or 0.0, high=row.high or 0.0,
                )
                for row in rows
            ]
        )  # fmt: skip
