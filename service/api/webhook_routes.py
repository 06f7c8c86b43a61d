"""The rows of the route table that are about webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from service.api import webhook_inputs as inputs
from service.api import webhook_views as views
from service.api import webhooks
from service.api.access import ADMIN
from service.api.route import JSON_TYPE, Answer, Route, json_body

_WEBHOOK: Final = {JSON_TYPE: views.WebhookView}
_DELIVERY: Final = {JSON_TYPE: views.DeliveryView}
_PATH: Final = "/v1/webhooks/{webhook_id}"
_DELIVERY_PATH: Final = f"{_PATH}/deliveries/{{delivery_id}}"

WEBHOOK_ROUTES: Final[Sequence[Route]] = (
    Route(
        method="POST",
        path="/v1/webhooks",
        name="create_webhook",
        summary="Make a webhook, which hears of jobs that end from now on",
        handler=webhooks.create_webhook,
        policy=ADMIN,
        bodies={JSON_TYPE: json_body(inputs.WebhookInput, all={"url": "https://example.com/hooks/jobs"})},
        answers={
            201: Answer(
                description="Made, with its secret",
                content={JSON_TYPE: views.NewWebhookView},
                headers=("Location",),
                leads_to={_PATH: "$response.body#/id"},
            )
        },
        problems=(409,),
    ),
    Route(
        method="GET",
        path="/v1/webhooks",
        name="list_webhooks",
        summary="List webhooks, newest first",
        handler=webhooks.list_webhooks,
        policy=ADMIN,
        query=inputs.WebhookListQuery,
        answers={200: Answer(description="A page", content={JSON_TYPE: views.WebhookListView}, headers=("Link",))},
    ),
    Route(
        method="GET",
        path=_PATH,
        name="get_webhook",
        summary="Get a webhook",
        handler=webhooks.get_webhook,
        policy=ADMIN,
        answers={200: Answer(description="The webhook", content=_WEBHOOK)},
    ),
    Route(
        method="PATCH",
        path=_PATH,
        name="change_webhook",
        summary="Change a webhook; what is left out stays",
        handler=webhooks.change_webhook,
        policy=ADMIN,
        bodies={JSON_TYPE: json_body(inputs.WebhookPatch, events={"events": ["job.failed"]})},
        answers={200: Answer(description="The webhook as it is now", content=_WEBHOOK)},
        problems=(409,),
    ),
    Route(
        method="DELETE",
        path=_PATH,
        name="delete_webhook",
        summary="Delete a webhook with its deliveries",
        handler=webhooks.delete_webhook,
        policy=ADMIN,
        answers={204: Answer(description="It is gone")},
    ),
    Route(
        method="POST",
        path=f"{_PATH}/rotate",
        name="rotate_webhook",
        summary="Make a new secret; the old one signs beside it for 24 hours",
        handler=webhooks.rotate_webhook,
        policy=ADMIN,
        answers={200: Answer(description="The new secret", content={JSON_TYPE: views.WebhookSecretView})},
    ),
    Route(
        method="GET",
        path=f"{_PATH}/secret",
        name="get_webhook_secret",
        summary="Get the secret of a webhook",
        handler=webhooks.get_webhook_secret,
        policy=ADMIN,
        answers={200: Answer(description="The secret", content={JSON_TYPE: views.WebhookSecretView})},
    ),
    Route(
        method="POST",
        path=f"{_PATH}/ping",
        name="ping_webhook",
        summary="Send a message that is about no job",
        handler=webhooks.ping_webhook,
        policy=ADMIN,
        answers={
            202: Answer(
                description="It will be sent",
                content=_DELIVERY,
                leads_to={_PATH: "$response.body#/webhook_id", _DELIVERY_PATH: "$response.body#/id"},
            )
        },
        problems=(409,),
    ),
    Route(
        method="GET",
        path=f"{_PATH}/deliveries",
        name="list_deliveries",
        summary="List the deliveries of a webhook with their attempts, newest first",
        handler=webhooks.list_deliveries,
        policy=ADMIN,
        query=inputs.DeliveryListQuery,
        answers={200: Answer(description="A page", content={JSON_TYPE: views.DeliveryListView}, headers=("Link",))},
    ),
    Route(
        method="POST",
        path=f"{_DELIVERY_PATH}/redeliver",
        name="redeliver",
        summary="Send a message once more",
        handler=webhooks.redeliver,
        policy=ADMIN,
        answers={202: Answer(description="It will be sent", content=_DELIVERY)},
        problems=(409,),
    ),
)
