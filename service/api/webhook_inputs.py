"""What requests about webhooks may say, declared once for the check and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from service.api.inputs import MAX_PAGE, STRICT, TEXT, PluginName, WebhookEvents, WebhookUrl
from service.api.text_forms import NO_NUL, PAGE_CURSOR
from service.webhook_models import DeliveryStatus

_Plugins = Annotated[
    list[PluginName],
    Field(min_length=1, max_length=100, description="Only jobs of these plugins; null or left out: of all"),
]
_Description = Annotated[str, Field(max_length=500, description="For people"), NO_NUL]
_Cursor = Annotated[str, Field(description="`next` of the page before"), PAGE_CURSOR]
_Limit = Annotated[int, Field(ge=1, le=MAX_PAGE, default=50)]


@with_config(STRICT)
class WebhookInput(TypedDict):
    """An endpoint that is to hear of the ends of jobs."""

    url: WebhookUrl
    events: NotRequired[WebhookEvents]
    plugins: NotRequired[_Plugins | None]
    description: NotRequired[_Description | None]


@with_config(STRICT)
class WebhookPatch(TypedDict):
    """What is to change; what is left out stays as it is."""

    url: NotRequired[WebhookUrl]
    events: NotRequired[WebhookEvents]
    plugins: NotRequired[_Plugins | None]
    description: NotRequired[_Description | None]
    enabled: NotRequired[Annotated[bool, Field(description="Whether anything is sent there")]]


@with_config(TEXT)
class WebhookListQuery(TypedDict):
    """Place of a list of webhooks."""

    limit: NotRequired[_Limit]
    cursor: NotRequired[_Cursor]


@with_config(TEXT)
class DeliveryListQuery(TypedDict):
    """Filter and place of a list of deliveries."""

    status: NotRequired[DeliveryStatus]
    limit: NotRequired[_Limit]
    cursor: NotRequired[_Cursor]
