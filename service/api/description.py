"""The OpenAPI document as it is served: of the routes, and of the plugins that are known by now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from service.api import openapi
from service.api.plugin_operations import with_plugins
from service.api.resources import Resource
from service.api.route import JSON_TYPE, Route
from service.plugin_management import PluginManagementService
from service.plugins.manifest import PluginManifest


class Description:
    """Made when it is first asked for, off the event loop, and anew when a plugin has become available; else the same
    bytes again.
    """

    def __init__(self, routes: Sequence[Route], plugins: PluginManagementService) -> None:
        self._routes = tuple(routes)
        self._plugins = plugins
        self._document: Mapping[str, Any] = {}
        self._of_routes: Resource | None = None
        self._made: tuple[Mapping[str, PluginManifest], Resource] | None = None
        self._making = asyncio.Lock()

    async def of_routes(self) -> Resource:
        """The document that names no plugin."""
        if self._of_routes is None:
            async with self._making:
                return await self._routes_described()
        return self._of_routes

    async def of_routes_and_plugins(self) -> Resource:
        """The document with a typed call for each plugin that is available now."""
        plugins = self._plugins.manifests()
        if self._made is not None and self._made[0] == plugins:
            return self._made[1]
        async with self._making:
            if self._made is None or self._made[0] != plugins:
                await self._routes_described()
                self._made = plugins, await asyncio.to_thread(self._with, plugins)
            return self._made[1]

    async def _routes_described(self) -> Resource:
        if self._of_routes is None:
            self._document = await asyncio.to_thread(openapi.document, self._routes)
            self._of_routes = _resource(self._document)
        return self._of_routes

    def _with(self, plugins: Mapping[str, PluginManifest]) -> Resource:
        return _resource(with_plugins(self._document, self._routes, plugins))


def _resource(document: Mapping[str, Any]) -> Resource:
    return Resource.of(orjson.dumps(document), JSON_TYPE)
