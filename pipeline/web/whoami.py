"""``GET /v1/whoami``: who asks and what they may do, and the deployment's own constants."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.notices.destinations import Destinations
from pipeline.settings import Settings
from pipeline.web.gate import ASKERS, Caller, Gate
from pipeline.web.json_bodies import json_answer
from pipeline.web.query import known


class WhoamiEndpoint:
    """The route of a caller who wants to know what its key opens."""

    def __init__(self, settings: Settings) -> None:
        self._currency = settings.currency
        self._price_lead_s = settings.price_lead_s
        destinations = Destinations(settings)
        self._alerts = {"default": bool(destinations.all), "mail": destinations.can_mail}

    def routes(self, gate: Gate) -> list[Route]:
        return [gate.route("/v1/whoami", self._get, ASKERS)]

    async def _get(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        return json_answer(
            {
                "name": caller.name,
                "role": caller.role,
                "ports": None if caller.ports is None else sorted(caller.ports),
                "currency": self._currency,
                "price_lead_s": self._price_lead_s,
                "alerts": self._alerts,
            }
        )
