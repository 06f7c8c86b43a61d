"""ScheduleManagementService: owns schedules, and makes their jobs when they tick."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final

import structlog
from uuid_utils import uuid7

from service import ticks
from service.db import schedule_firings, schedules
from service.db.database import Database
from service.db.schedule_firings import Fired, Firing
from service.db.schedules import NewSchedule, ScheduleKey
from service.db.transaction import Operation, RefusedError
from service.documents import Documents
from service.errors import (
    NotStorableError,
    PluginPausedError,
    QueueFullError,
    ScheduleExistsError,
    ScheduleNotFoundError,
    ServiceError,
    ServiceUnavailableError,
)
from service.events import SCHEDULES, EventBus
from service.intake import Intake
from service.metrics import Metrics
from service.models import DEFAULT_TENANT, BlobRef, Timestamp, canonical_uuid, timestamp
from service.plugin_management import PluginManagementService
from service.schedule_models import ScheduleDefinition, ScheduleRecord

#: The largest payload, as JSON without its bytes: every tick writes it anew.
MAX_PAYLOAD_BYTES: Final = 262_144
#: When a tick is tried again that found no room for its job.
NO_ROOM_S: Final = 2.0
#: When a tick is looked at again that another process was making.
_ELSEWHERE_S: Final = 0.05
#: When a schedule is tried again that cannot be followed, by a fault of ours; sooner if it is changed.
_BROKEN_S: Final = 60.0

log = structlog.get_logger(__name__)


class ScheduleManagementService:
    """Owns schedules. Each tick makes at most one job, however many processes there are; see `ticks.due`.

    A schedule of another tenant is an unknown one: `ScheduleNotFoundError`.
    """

    def __init__(
        self,
        database: Database,
        plugins: PluginManagementService,
        intake: Intake,
        *,
        events: EventBus,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._documents = Documents(database.blobs)
        self._plugins = plugins
        self._intake = intake
        self._events = events
        self._metrics = metrics
        self._broken: dict[tuple[str, Timestamp | None], float] = {}  # until when, by schedule and tick

    # --- what consumers ask for ---------------------------------------------------------------------------------

    async def create(self, definition: ScheduleDefinition, *, tenant: str = DEFAULT_TENANT) -> ScheduleRecord:
        """Record a schedule that ticks from now on, its payload checked as a submission's.

        Raises `ScheduleInvalidError`, `ScheduleExistsError`, `TooManySchedulesError`, and what
        `JobManagementService.submit_job` raises for a plugin or payload.
        """
        new = await self._checked(str(uuid7()), definition, tenant)
        return await self._write(schedules.insert, new)

    async def replace(
        self, schedule_id: str, definition: ScheduleDefinition, *, tenant: str = DEFAULT_TENANT
    ) -> ScheduleRecord:
        """Make a schedule be what `definition` says from now on; raises as `create` does, and `ScheduleNotFoundError`.

        Ticks that were missed before are forgotten; a paused one stays paused.
        """
        key = (await self.get(schedule_id, tenant=tenant)).id
        return await self._write(schedules.replace, await self._checked(key, definition, tenant))

    async def get(self, schedule_id: str, *, tenant: str = DEFAULT_TENANT) -> ScheduleRecord:
        """The record with references in place of bytes; raises `ScheduleNotFoundError`."""
        record = await schedules.get(self._database.reader, _key(schedule_id, tenant))
        if record is None:
            raise ScheduleNotFoundError(schedule_id)
        return record

    async def read_bytes(self, ref: BlobRef) -> bytes:
        """The bytes behind a reference of a schedule's payload; raises `BytesGoneError` when it was replaced since."""
        return (await self._database.blobs.read([ref]))[ref.sha256]

    async def list_all(self, *, tenant: str = DEFAULT_TENANT) -> list[ScheduleRecord]:
        """The tenant's schedules by name, without payloads."""
        return await schedules.list_all(self._database.reader, tenant)

    async def delete(self, schedule_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Forget a schedule; the jobs that it made stay. Raises `ScheduleNotFoundError`."""
        if not await self._database.writer.write(schedules.delete, _key(schedule_id, tenant)):
            raise ScheduleNotFoundError(schedule_id)

    async def pause(self, schedule_id: str, *, tenant: str = DEFAULT_TENANT) -> ScheduleRecord:
        """Let it tick no more; again is no error. Raises `ScheduleNotFoundError`."""
        return await self._known(schedules.pause, schedule_id, tenant)

    async def resume(self, schedule_id: str, *, tenant: str = DEFAULT_TENANT) -> ScheduleRecord:
        """Let it tick again from now on: what passed while it was paused is not made up.

        Raises `ScheduleNotFoundError`.
        """
        record = await self._known(schedules.resume, schedule_id, tenant)
        self._events.changed(SCHEDULES)
        return record

    async def run_now(self, schedule_id: str, *, tenant: str = DEFAULT_TENANT) -> str:
        """Make one job now, beside the ticks; its id.

        Raises `ScheduleNotFoundError`, `PluginPausedError`, `QueueFullError`.
        """
        schedule = await self.get(schedule_id, tenant=tenant)
        self._intake.check_open()
        with self._intake.room_for(tenant, [schedule.plugin]):
            key = ScheduleKey(id=schedule.id, tenant=tenant)
            job = await self._database.writer.write(schedule_firings.run_now, key)
        if job is None:
            raise ScheduleNotFoundError(schedule_id)
        self._intake.recorded([job.plugin])
        return job.id

    # --- what the loop asks for ---------------------------------------------------------------------------------

    async def fire_due(self) -> float | None:
        """Make the jobs of everything that is due; how many seconds until something is again, None if nothing will be.

        A tick for which there is no room, or whose plugin takes no jobs now, stays due: it is tried again, and by then
        the misfire rule decides about it and what was missed with it. Where there is not room for all, they are made
        one by one.
        """
        behind = None
        waits: list[float] = []
        while True:
            look = await self._database.writer.write(schedule_firings.look, behind)
            waits += await asyncio.gather(*(self._fire(schedule, look.now) for schedule in look.due))
            if look.wait_s is not None:
                waits.append(look.wait_s)
            if look.behind is None:
                return min(waits, default=None)
            behind = look.behind

    async def _fire(self, due: ScheduleRecord, now: Timestamp) -> float:
        """Make the jobs of one schedule; in how many seconds to look at it again, 0 for when its next tick says so."""
        clock, place = asyncio.get_running_loop().time, (due.id, due.next_at)
        if (left_s := self._broken.get(place, 0.0) - clock()) > 0:
            return left_s
        self._broken.pop(place, None)
        try:
            count = len(ticks.due(due.timing, due.created_at, due.next_at or now, now))
            try:
                fired = await self._make(due, count)
            except QueueFullError:
                # One by one: there may never be room for all that were missed.
                fired = await self._make(due, min(count, 1))
        except (QueueFullError, PluginPausedError) as error:
            log.debug("a tick finds no room", schedule_id=due.id, error=str(error))
            return NO_ROOM_S
        except ServiceUnavailableError:
            raise
        except Exception:  # one schedule must not stop the others
            log.exception("the jobs of a schedule cannot be made", schedule_id=due.id)
            self._broken[place] = clock() + _BROKEN_S
            return _BROKEN_S
        if fired is None:
            return _ELSEWHERE_S
        self._tell(fired)
        return 0.0

    async def _make(self, due: ScheduleRecord, most: int) -> Fired | None:
        with self._intake.room_for(due.tenant, [due.plugin] * most):
            firing = Firing(schedule_id=due.id, most=most)
            return await self._database.writer.write(schedule_firings.fire, firing)

    def _tell(self, fired: Fired) -> None:
        now = datetime.fromisoformat(timestamp())
        for tick, job_id in fired.jobs:
            delay_s = max(0.0, (now - datetime.fromisoformat(tick)).total_seconds())
            self._metrics.fired.labels(fired.plugin).inc()
            self._metrics.tick_delay.observe(delay_s)
            log.debug("tick", schedule_id=fired.schedule_id, tick=tick, job_id=job_id, delay_s=delay_s)
        if fired.jobs:
            self._intake.recorded([fired.plugin] * len(fired.jobs))
        else:
            log.warning("a tick was passed by: it was missed for too long", schedule_id=fired.schedule_id)

    # --- parts ---------------------------------------------------------------------------------------------------

    async def _checked(self, schedule_id: str, definition: ScheduleDefinition, tenant: str) -> NewSchedule:
        await asyncio.to_thread(ticks.check, definition.timing, timestamp())
        manifest = await self._plugins.manifest(definition.plugin)
        document = await self._plugins.validate(definition.plugin, definition.payload)
        payload, _, blobs = await self._documents.store(document)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise NotStorableError("", f"the payload of a schedule has at most {MAX_PAYLOAD_BYTES} characters of JSON")
        return NewSchedule(
            id=schedule_id,
            tenant=tenant,
            name=definition.name,
            plugin=definition.plugin,
            timing=definition.timing,
            options=definition.options,
            max_attempts=definition.options.max_attempts or manifest.max_attempts or 1,
            payload=payload,
            blobs=blobs,
        )

    async def _write(
        self, operation: Operation[NewSchedule, ScheduleRecord | ServiceError], new: NewSchedule
    ) -> ScheduleRecord:
        self._database.ground.check_intake()
        try:
            outcome = await self._database.writer.write(operation, new)
        except RefusedError as error:  # its name was taken between the look and the change
            raise ScheduleExistsError(new.name) from error
        if isinstance(outcome, ServiceError):
            raise outcome
        self._events.changed(SCHEDULES)
        return outcome

    async def _known(
        self, operation: Operation[ScheduleKey, ScheduleRecord | None], schedule_id: str, tenant: str
    ) -> ScheduleRecord:
        record = await self._database.writer.write(operation, _key(schedule_id, tenant))
        if record is None:
            raise ScheduleNotFoundError(schedule_id)
        return record


def _key(schedule_id: str, tenant: str) -> ScheduleKey:
    """Raises `ScheduleNotFoundError` for what is no UUID: there is no such schedule."""
    canonical = canonical_uuid(schedule_id)
    if canonical is None:
        raise ScheduleNotFoundError(schedule_id[:100])
    return ScheduleKey(id=canonical, tenant=tenant)
